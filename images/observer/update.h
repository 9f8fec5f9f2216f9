/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The microcode update that a WRMSR 0x79 names, read from the guest's memory. */
#ifndef UPDATE_H
#define UPDATE_H

#include <stdint.h>

#include "observer_shm.h"

/* The CPU that an update must be for. */
struct update_for {
	uint32_t signature;
	uint32_t platforms;
};

/*
 * In a callback that reads registers, before WRMSR 0x79: read what EDX:EAX names, and note address,
 * header and digest of it. Returns what is wrong with it, TAKEN_UNASKED for nothing. A processor of
 * NULL matches any.
 */
enum observer_taken update_read(unsigned int vcpu, const struct update_for *processor,
				struct observer_update *update);

#endif /* UPDATE_H */
