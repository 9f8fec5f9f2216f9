/* SPDX-License-Identifier: GPL-2.0-or-later */
/* How long the host left a vCPU without running, while a late load was going on. */
#ifndef GAPS_H
#define GAPS_H

#include <stdint.h>

#include "state.h"

void gap_seen(struct observer_vcpu *vcpu, uint64_t tsc);
void gap_restart(struct observer_vcpu *vcpu);
void gap_hold(struct observer_vcpu *vcpu);
void gap_let_go(struct observer_vcpu *vcpu);
void gaps_begin(uint32_t trial);
void gaps_end(void);

#endif /* GAPS_H */
