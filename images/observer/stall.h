/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Stalls: while a window is open, each sibling of its core is held where its next block begins. */
#ifndef STALL_H
#define STALL_H

#include <stdbool.h>
#include <stdint.h>

#include "state.h"

/* No sibling is stalled longer than this after its window opened: kernels wait for a second. */
#define STALL_CAP_NS 900000000ull

/* By the primary: before WATCH_WINDOW is set, and once all that the window shows is written. */
void stall_begin(struct core *core, uint64_t asked_ns);
void stall_end(struct core *core);

/* A sibling that saw WATCH_WINDOW begins a block: true when that happens in the window after all.
 */
bool stall_block(unsigned int vcpu, struct core *core, uint64_t tsc);

/* The sibling shows that it executes nothing: it is stalled, or halted. */
bool stall_shows(unsigned int vcpu);

#endif /* STALL_H */
