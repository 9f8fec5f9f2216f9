// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Accepted lines, addresses and masks in hex with or without 0x:
 *
 *   # comment
 *   point KIND MECHANISMS ADDRESS
 *   region MECHANISMS START END		END is exclusive
 */
#include "landmarks.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "state.h"

#define LINE_CHARS  256
#define MAX_WORDS   4
#define MAX_POINTS  1024
#define MAX_REGIONS 1024

struct region {
	uint64_t start;
	uint64_t end;
	uint16_t mechanisms;
};

static struct point points[MAX_POINTS];
static size_t point_count;
static struct region regions[MAX_REGIONS];
static size_t region_count;

static const struct {
	const char *name;
	uint32_t kind;
} kinds[] = {
	{"load-begin", OBSERVER_LOAD_BEGIN},   {"load-end", OBSERVER_LOAD_END},
	{"call-in", OBSERVER_CALL_IN},	       {"release", OBSERVER_RELEASE},
	{"self-nmi", OBSERVER_SELF_NMI},       {"wait-loop", OBSERVER_WAIT_LOOP},
	{"nmi-entry", OBSERVER_NMI_ENTRY},     {"wrmsr79", POINT_WRMSR79},
	{"ipi-nmi", OBSERVER_IPI_NMI},	       {"backtrace", OBSERVER_BACKTRACE},
	{"nmi-handler", OBSERVER_NMI_HANDLER},
};

#define KIND_COUNT (sizeof(kinds) / sizeof(kinds[0]))

static bool parse_hex(const char *word, uint64_t limit, uint64_t *value)
{
	char *end;

	if (!strchr("0123456789abcdefABCDEF", word[0]))
		return false;
	errno = 0;
	*value = strtoull(word, &end, 16);
	return !errno && !*end && *value <= limit;
}

static uint32_t parse_kind(const char *word)
{
	for (size_t i = 0; i < KIND_COUNT; i++)
		if (!strcmp(word, kinds[i].name))
			return kinds[i].kind;
	return 0;
}

/* The same address in the same role may be a landmark of several mechanisms: one point. */
static const char *add_point(uint32_t kind, uint16_t mechanisms, uint64_t address)
{
	for (size_t i = 0; i < point_count; i++) {
		if (points[i].kind == kind && points[i].address == address) {
			points[i].mechanisms |= mechanisms;
			return NULL;
		}
	}
	if (point_count == MAX_POINTS)
		return "too many points";
	points[point_count++] = (struct point){address, kind, mechanisms, false};
	return NULL;
}

static const char *parse_point(char **words)
{
	uint32_t kind = parse_kind(words[1]);
	uint64_t mechanisms;
	uint64_t address;

	if (!kind)
		return "unknown kind of point";
	if (!parse_hex(words[2], UINT16_MAX, &mechanisms) || !mechanisms)
		return "the mechanism mask is not 1 to ffff";
	if (!parse_hex(words[3], UINT64_MAX, &address))
		return "the address is not a hex number";
	return add_point(kind, mechanisms, address);
}

static const char *parse_region(char **words)
{
	struct region region;
	uint64_t mechanisms;

	if (!parse_hex(words[1], UINT16_MAX, &mechanisms) || !mechanisms)
		return "the mechanism mask is not 1 to ffff";
	if (!parse_hex(words[2], UINT64_MAX, &region.start) ||
	    !parse_hex(words[3], UINT64_MAX, &region.end))
		return "start or end is not a hex number";
	if (region.start >= region.end)
		return "the region ends before it starts";
	if (region_count == MAX_REGIONS)
		return "too many regions";
	region.mechanisms = mechanisms;
	regions[region_count++] = region;
	return NULL;
}

/* Return what is wrong with the line, or NULL. */
static const char *parse_line(char *line)
{
	char *words[MAX_WORDS];
	size_t count = 0;
	char *rest;

	line[strcspn(line, "#\n")] = '\0';
	for (char *word = strtok_r(line, " \t\r", &rest); word;
	     word = strtok_r(NULL, " \t\r", &rest)) {
		if (count == MAX_WORDS)
			return "more than four words";
		words[count++] = word;
	}
	if (!count)
		return NULL;
	if (strcmp(words[0], "point") && strcmp(words[0], "region"))
		return "neither 'point' nor 'region'";
	if (count != MAX_WORDS)
		return "fewer than four words";
	return words[0][0] == 'p' ? parse_point(words) : parse_region(words);
}

static int compare_points(const void *left, const void *right)
{
	const struct point *a = left;
	const struct point *b = right;

	if (a->address != b->address)
		return a->address < b->address ? -1 : 1;
	return (a->kind > b->kind) - (a->kind < b->kind);
}

static void sort_points(void)
{
	qsort(points, point_count, sizeof(points[0]), compare_points);
	for (size_t i = 0; i < point_count; i++)
		points[i].last_here =
			i + 1 == point_count || points[i + 1].address != points[i].address;
}

bool landmarks_read(const char *path)
{
	const char *problem = NULL;
	char line[LINE_CHARS];
	unsigned int number = 0;
	FILE *file = fopen(path, "re");

	if (!file) {
		complain("landmarks '%s' cannot be opened: %s", path, strerror(errno));
		return false;
	}
	while (!problem && fgets(line, sizeof(line), file)) {
		number++;
		if (!strchr(line, '\n') && !feof(file))
			problem = "the line is too long";
		else
			problem = parse_line(line);
	}
	if (!problem && ferror(file))
		problem = "the file cannot be read on";
	fclose(file);
	if (problem) {
		complain("landmarks '%s', line %u: %s", path, number, problem);
		return false;
	}
	sort_points();
	return true;
}

const struct point *points_at(uint64_t address)
{
	size_t low = 0;
	size_t high = point_count;

	while (low < high) {
		size_t middle = low + (high - low) / 2;

		if (points[middle].address < address)
			low = middle + 1;
		else
			high = middle;
	}
	return low < point_count && points[low].address == address ? &points[low] : NULL;
}

bool has_point(uint64_t address, uint32_t kind)
{
	const struct point *point = points_at(address);

	for (; point; point = point->last_here ? NULL : point + 1)
		if (point->kind == kind)
			return true;
	return false;
}

uint16_t regions_at(uint64_t address)
{
	uint16_t mechanisms = 0;

	for (size_t i = 0; i < region_count; i++)
		if (address >= regions[i].start && address < regions[i].end)
			mechanisms |= regions[i].mechanisms;
	return mechanisms;
}
