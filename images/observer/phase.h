/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Where the late load that is going on is, seen from each core. */
#ifndef PHASE_H
#define PHASE_H

#include <stdint.h>

#include "observer_shm.h"

/* A landmark of a watched load was reached, or a window opened or closed. */
void phase_follow(unsigned int vcpu, uint32_t kind);

#endif /* PHASE_H */
