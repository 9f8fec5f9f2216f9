// SPDX-License-Identifier: GPL-2.0-or-later
#include "install.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "state.h"

#define OPTIONS                                                                                    \
	"landmarks=FILE, shm=FILE, link=FD, threads=N, engine=on|off, signature=HEX, "             \
	"platforms=HEX, revision=HEX"
#define REQUIRED "landmarks, shm, link, threads"

/* The value of an argument "name=value" if that is its name, else NULL. */
static const char *value_of(const char *argument, const char *name)
{
	size_t length = strlen(name);

	return !strncmp(argument, name, length) && argument[length] == '=' ? argument + length + 1
									   : NULL;
}

static bool parse_number(const char *name, const char *text, long low, long high, long *number)
{
	char *end;

	errno = 0;
	*number = strtol(text, &end, 10);
	if (!errno && end != text && !*end && *number >= low && *number <= high)
		return true;
	complain("option %s is '%s': allowed is %ld to %ld", name, text, low, high);
	return false;
}

static bool parse_word(const char *name, const char *text, uint32_t *word)
{
	char *end;
	unsigned long value;

	errno = 0;
	value = strtoul(text, &end, 16);
	if (!errno && strchr("0123456789abcdefABCDEF", text[0]) && *text && !*end &&
	    value <= UINT32_MAX) {
		*word = value;
		return true;
	}
	complain("option %s is '%s': allowed is 0 to ffffffff, in hex", name, text);
	return false;
}

static bool parse_switch(const char *name, const char *text, bool *on)
{
	*on = !strcmp(text, "on");
	if (*on || !strcmp(text, "off"))
		return true;
	complain("option %s is '%s': allowed is on or off", name, text);
	return false;
}

static bool parse_one(const char *argument, struct options *options)
{
	const char *value;
	long number;

	if ((value = value_of(argument, "landmarks"))) {
		options->landmarks = value;
	} else if ((value = value_of(argument, "shm"))) {
		options->shm = value;
	} else if ((value = value_of(argument, "link"))) {
		if (!parse_number("link", value, 0, INT32_MAX, &number))
			return false;
		options->link = number;
	} else if ((value = value_of(argument, "threads"))) {
		if (!parse_number("threads", value, 1, OBSERVER_MAX_VCPUS, &number))
			return false;
		options->threads = number;
	} else if ((value = value_of(argument, "engine"))) {
		return parse_switch("engine", value, &options->engine);
	} else if ((value = value_of(argument, "signature"))) {
		return parse_word("signature", value, &options->signature);
	} else if ((value = value_of(argument, "platforms"))) {
		return parse_word("platforms", value, &options->platforms);
	} else if ((value = value_of(argument, "revision"))) {
		return parse_word("revision", value, &options->revision);
	} else {
		complain("option '%s' is unknown: there are " OPTIONS, argument);
		return false;
	}
	return true;
}

/* A stream would run messages together, and only these two keep them apart. */
static bool is_link(int fd)
{
	socklen_t size = sizeof(int);
	int type;

	if (!getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &size) &&
	    (type == SOCK_SEQPACKET || type == SOCK_DGRAM))
		return true;
	complain("option link: %d is not an open SEQPACKET or DGRAM socket", fd);
	return false;
}

bool options_parse(int argc, char **argv, struct options *options)
{
	*options = (struct options){.link = -1};
	for (int i = 0; i < argc; i++)
		if (!parse_one(argv[i], options))
			return false;
	if (!options->landmarks || !options->shm || options->link < 0 || !options->threads) {
		complain("option %s is missing: required are " REQUIRED,
			 !options->landmarks ? "landmarks"
			 : !options->shm     ? "shm"
			 : options->link < 0 ? "link"
					     : "threads");
		return false;
	}
	if (options->engine && (!options->signature || !options->platforms || !options->revision)) {
		complain("option engine is 'on': it needs signature, platforms and revision");
		return false;
	}
	return is_link(options->link);
}

bool qemu_fits(const qemu_info_t *info)
{
	if (info->version.min > PLUGIN_API_VERSION || info->version.cur < PLUGIN_API_VERSION) {
		complain("this QEMU offers plugin interface %d to %d, the observer needs %d",
			 info->version.min, info->version.cur, PLUGIN_API_VERSION);
		return false;
	}
	if (!info->system_emulation) {
		complain("this is QEMU's user emulation, the observer needs system emulation");
		return false;
	}
	if (strcmp(info->target_name, "x86_64")) {
		complain("this QEMU emulates '%s', the observer needs x86_64", info->target_name);
		return false;
	}
	if (info->system.max_vcpus > OBSERVER_MAX_VCPUS) {
		complain("this guest may have %d vCPUs, the observer takes up to %d",
			 info->system.max_vcpus, OBSERVER_MAX_VCPUS);
		return false;
	}
	return true;
}
