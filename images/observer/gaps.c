// SPDX-License-Identifier: GPL-2.0-or-later
#include "gaps.h"

/* A vCPU's first callback in a load: what it waited since the load began counts too. */
static void enter_load(struct observer_vcpu *vcpu)
{
	const struct observer_status *status = &observer.header->status;
	uint32_t load = load_relaxed(&status->watched_load);
	uint32_t trial = load_relaxed(&status->watched_trial);

	if (vcpu->gap_load == load)
		return;
	if (vcpu->gap_trial != trial)
		store_relaxed(&vcpu->gap_tsc, 0);
	store_relaxed(&vcpu->gap_trial, trial);
	store_relaxed(&vcpu->last_tsc, load_relaxed(&status->load_begin_tsc));
	store_release(&vcpu->gap_load, load);
}

/* The vCPU runs: how long since it last was seen to? */
void gap_seen(struct observer_vcpu *vcpu, uint64_t tsc)
{
	enter_load(vcpu);
	if (tsc > vcpu->last_tsc && tsc - vcpu->last_tsc > vcpu->gap_tsc)
		store_relaxed(&vcpu->gap_tsc, tsc - vcpu->last_tsc);
	store_relaxed(&vcpu->last_tsc, tsc);
}

/* The vCPU did not run for a reason of its own: halted, or held by its window. */
void gap_restart(struct observer_vcpu *vcpu)
{
	enter_load(vcpu);
	store_relaxed(&vcpu->last_tsc, now_tsc());
}

/* The observer keeps the vCPU from running, which is no gap of the host's. */
void gap_hold(struct observer_vcpu *vcpu)
{
	store_relaxed(&vcpu->held, 1);
}

/* It goes on: its gap begins anew before it counts as running again. */
void gap_let_go(struct observer_vcpu *vcpu)
{
	gap_restart(vcpu);
	store_release(&vcpu->held, 0);
}

void gaps_begin(uint32_t trial)
{
	struct observer_status *status = &observer.header->status;

	if (status->watched_trial != trial)
		for (uint32_t i = 0; i < observer.vcpu_count; i++)
			store_relaxed(&observer.vcpus[i].end_tsc, 0);
	store_relaxed(&status->load_begin_tsc, now_tsc());
	store_relaxed(&status->watched_trial, trial);
	store_relaxed(&status->watched_load, load_relaxed(&status->load));
	for (uint32_t i = 0; i < observer.core_count; i++)
		watch_core(&observer.cores[i], WATCH_LOAD);
}

/* Count the time of those that were starved up to the load's end, too. */
void gaps_end(void)
{
	struct observer_status *status = &observer.header->status;
	uint64_t tsc = now_tsc();

	if (status->load != status->watched_load)
		return;
	store_relaxed(&status->load_end_tsc, tsc);
	for (uint32_t i = 0; i < observer.core_count; i++)
		unwatch_core(&observer.cores[i], WATCH_LOAD);
	for (uint32_t i = 0; i < observer.vcpu_count; i++) {
		struct observer_vcpu *vcpu = &observer.vcpus[i];
		uint64_t since = load_acquire(&vcpu->gap_load) == status->watched_load
					 ? load_relaxed(&vcpu->last_tsc)
					 : status->load_begin_tsc;

		if (!is_halted(vcpu) && !load_relaxed(&vcpu->held) && tsc > since &&
		    tsc - since > vcpu->end_tsc)
			store_relaxed(&vcpu->end_tsc, tsc - since);
	}
}
