/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The landmark file: which addresses to report, and which code a waiting thread may execute. */
#ifndef LANDMARKS_H
#define LANDMARKS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "observer_shm.h"

/* Kinds beyond those that are records of their own; last at its address. */
#define POINT_WRMSR79 0x100

struct point {
	uint64_t address;
	uint32_t kind;
	uint16_t mechanisms;
	bool last_here; /* the next point has another address */
};

bool landmarks_read(const char *path);

/* The first point at an address, with others there behind it, or NULL. */
const struct point *points_at(uint64_t address);

bool has_point(uint64_t address, uint32_t kind);

/* The mechanisms whose wait region an address belongs to. */
uint16_t regions_at(uint64_t address);

#endif /* LANDMARKS_H */
