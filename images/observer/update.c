// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * The layout of an update and of its table of further signatures: SDM 3A, 9.11.1 and 9.11.2. The
 * operand is the address of its data, with the header in front.
 */
#include "update.h"

#include <stdbool.h>
#include <stddef.h>
#include <string.h>

#include "interface.h"

#define DEFAULT_DATA_SIZE  2000
#define DEFAULT_TOTAL_SIZE 2048
/* Larger than any there is; a header that is none says anything. */
#define MAX_TOTAL_SIZE (16u << 20)
#define CHUNK_BYTES    4096u

#define FNV_BASIS 0xcbf29ce484222325ull
#define FNV_PRIME 0x100000001b3ull

struct header {
	uint32_t version;
	uint32_t revision;
	uint32_t date;
	uint32_t signature;
	uint32_t checksum;
	uint32_t loader;
	uint32_t platforms;
	uint32_t data_size;
	uint32_t total_size;
	uint32_t reserved[3];
};

struct table {
	uint32_t count;
	uint32_t checksum;
	uint32_t reserved[3];
};

struct entry {
	uint32_t signature;
	uint32_t platforms;
	uint32_t checksum;
};

_Static_assert(sizeof(struct header) == 48, "the header of all updates");

static bool copy(unsigned int vcpu, uint64_t address, void *to, size_t size)
{
	const uint8_t *bytes = read_guest(vcpu, address, size);

	if (bytes)
		memcpy(to, bytes, size);
	return bytes;
}

static bool is_sized(const struct header *header)
{
	return header->total_size % 4 == 0 && header->total_size <= MAX_TOTAL_SIZE &&
	       header->data_size % 4 == 0 && header->data_size <= MAX_TOTAL_SIZE &&
	       header->data_size + sizeof(*header) <= header->total_size;
}

/* The sum and the digest of all words; false when some cannot be read. */
static bool weigh(unsigned int vcpu, uint64_t address, uint32_t size, uint32_t *sum,
		  uint64_t *digest)
{
	*sum = 0;
	*digest = FNV_BASIS;
	while (size) {
		uint32_t count = size < CHUNK_BYTES ? size : CHUNK_BYTES;
		const uint8_t *bytes = read_guest(vcpu, address, count);

		if (!bytes)
			return false;
		for (uint32_t at = 0; at < count; at += 4) {
			uint32_t word;

			memcpy(&word, bytes + at, sizeof(word));
			*sum += word;
			*digest = (*digest ^ word) * FNV_PRIME;
		}
		address += count;
		size -= count;
	}
	return true;
}

static bool has_signature(const struct update_for *processor, uint32_t signature)
{
	return signature == processor->signature;
}

/* Up to 6.17 Linux never asked for a mask of 0; from then on it stands for all platforms. */
static bool has_platform(const struct update_for *processor, uint32_t platforms)
{
	return !platforms || platforms & processor->platforms;
}

/* By the header, or by an entry of the table behind the data. */
static enum observer_taken match(unsigned int vcpu, const struct update_for *processor,
				 uint64_t address, const struct header *header)
{
	uint64_t at = address + sizeof(*header) + header->data_size;
	uint64_t end = address + header->total_size;
	enum observer_taken problem = TAKEN_SIGNATURE;
	struct table table;
	struct entry entry;

	if (has_signature(processor, header->signature)) {
		if (has_platform(processor, header->platforms))
			return TAKEN_UNASKED;
		problem = TAKEN_PLATFORM;
	}
	if (at + sizeof(table) > end || !copy(vcpu, at, &table, sizeof(table)))
		return problem;
	at += sizeof(table);
	for (uint32_t i = 0; i < table.count && at + sizeof(entry) <= end; i++) {
		if (!copy(vcpu, at, &entry, sizeof(entry)))
			return problem;
		if (has_signature(processor, entry.signature)) {
			if (has_platform(processor, entry.platforms))
				return TAKEN_UNASKED;
			problem = TAKEN_PLATFORM;
		}
		at += sizeof(entry);
	}
	return problem;
}

enum observer_taken update_read(unsigned int vcpu, const struct update_for *processor,
				struct observer_update *update)
{
	struct header header;
	uint64_t address;
	uint32_t low;
	uint32_t high;
	uint32_t sum;

	if (!read_gpr(vcpu, GPR_EAX, &low) || !read_gpr(vcpu, GPR_EDX, &high))
		return TAKEN_UNREADABLE;
	update->operand = (uint64_t)high << 32 | low;
	address = update->operand - sizeof(header);
	if (!copy(vcpu, address, &header, sizeof(header)))
		return TAKEN_UNREADABLE;

	if (!header.data_size) {
		header.data_size = DEFAULT_DATA_SIZE;
		header.total_size = DEFAULT_TOTAL_SIZE;
	}
	update->revision = header.revision;
	update->signature = header.signature;
	update->platforms = header.platforms;
	update->total_size = header.total_size;
	if (header.version != 1 || header.loader != 1 || !is_sized(&header))
		return TAKEN_MALFORMED;
	if (!weigh(vcpu, address, header.total_size, &sum, &update->digest)) {
		update->digest = 0;
		return TAKEN_UNREADABLE;
	}
	if (sum)
		return TAKEN_CHECKSUM;
	return processor ? match(vcpu, processor, address, &header) : TAKEN_UNASKED;
}
