/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What a sibling does in its core's window; each is written by its own thread once it is open. */
#ifndef SIBLINGS_H
#define SIBLINGS_H

#include <stdbool.h>
#include <stdint.h>

#include "state.h"

void sibling_clear(unsigned int vcpu, const struct core *core);
void sibling_snapshot(unsigned int vcpu, const struct core *core);
void sibling_block(unsigned int vcpu, const struct core *core, uint64_t packed, uint64_t tsc);
void sibling_hazard(unsigned int vcpu, const struct core *core, uint64_t packed);
void sibling_count_anew(unsigned int vcpu);
bool sibling_alive(unsigned int vcpu, uint32_t live_blocks);

#endif /* SIBLINGS_H */
