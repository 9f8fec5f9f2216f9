/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Everything that is checked once, when QEMU loads the observer. */
#ifndef INSTALL_H
#define INSTALL_H

#include <stdbool.h>
#include <stdint.h>

#include "qemu_plugin_api.h"

struct options {
	const char *landmarks;
	const char *shm;
	int link;
	unsigned int threads;
	bool engine;
	uint32_t signature;
	uint32_t platforms;
	uint32_t revision;
};

bool options_parse(int argc, char **argv, struct options *options);
bool qemu_fits(const qemu_info_t *info);
bool shm_map(const char *path, const qemu_info_t *info, unsigned int threads);

#endif /* INSTALL_H */
