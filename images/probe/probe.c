/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A plugin that tells what QEMU it was loaded into, and does nothing else.
 *
 * QEMU compares PROBE_VERSION with the interfaces that it takes before it calls anything here. One
 * below all of them and one above has it say which those are; one that it takes gets the line that
 * lab/build/probe.py reads.
 */
#include <inttypes.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define PLUGIN_EXPORT __attribute__((visibility("default")))

/* The beginning of what QEMU tells of itself at install, which is the same in every interface. */
struct qemu_info {
	const char *target_name;
	struct {
		int min;
		int cur;
	} version;
	bool system_emulation;
};

extern PLUGIN_EXPORT int qemu_plugin_version;
PLUGIN_EXPORT int qemu_plugin_install(uint64_t id, const struct qemu_info *info, int argc,
				      char **argv);

/* One of QEMU's functions, in every interface; only its address is used. */
void qemu_plugin_tb_n_insns(void);

int qemu_plugin_version = PROBE_VERSION;

/*
 * Print the file that QEMU's code is in. /proc/self/exe would name the loader where a script starts
 * QEMU by one of its own.
 */
static void print_program(void)
{
	uintptr_t wanted = (uintptr_t)&qemu_plugin_tb_n_insns;
	FILE *maps = fopen("/proc/self/maps", "r");
	char line[8192];

	while (maps && fgets(line, sizeof(line), maps)) {
		uintptr_t begin, end;
		char *path = strchr(line, '/');

		if (sscanf(line, "%" SCNxPTR "-%" SCNxPTR, &begin, &end) == 2 && path &&
		    wanted >= begin && wanted < end)
			fprintf(stderr, "%s", path);
	}
	if (maps)
		fclose(maps);
}

int qemu_plugin_install(uint64_t id, const struct qemu_info *info, int argc, char **argv)
{
	(void)id;
	(void)argc;
	(void)argv;
	fprintf(stderr, "mclab-probe: %s %s %d ", info->target_name,
		info->system_emulation ? "system" : "user", getpid());
	print_program();
	fflush(stderr);
	/* QEMU ends here: it has told all. */
	return 1;
}
