// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Which blocks a stalled sibling executes in a window: the primary sets core->stall, then
 * WATCH_WINDOW, and passes a fence through every thread (window.c) before it looks at what each
 * sibling is in. A sibling stores the block it begins and then loads the flag. So either it sees
 * the flag and waits here, before the block's first instruction; or the primary sees the block, and
 * reports it as in flight. One that does both, for it stored its block just before the fence, is
 * reported in flight though it waits: too much then, never too little. What it was in before had
 * ended when the primary looked, and the update begins after that.
 *
 * The block in flight runs to its end. Its instructions may still be recorded in the window, as
 * hazards or landmarks; with no block counted in it there is no other they can belong to.
 *
 * On closing, the window's record comes first, then the flag is cleared, and core->stall last. So
 * whatever a sibling does next is numbered after the record; one that was halted all the time and
 * is woken late still sees the flag; and one that sees core->stall cleared begins after the window.
 *
 * QEMU may need a stalled vCPU for work that no other may overlap (start_exclusive()), and then
 * keeps the primary from its next block, which would close the window. Only the bound ends that.
 */
#include "stall.h"

#include <limits.h>
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "gaps.h"

void stall_begin(struct core *core, uint64_t asked_ns)
{
	uint64_t bound_ns = load_relaxed(&observer.header->control.stall_bound_ns);

	core->stall_until_ns =
		now_ns() + at_most(asked_ns + at_most(bound_ns, STALL_CAP_NS), STALL_CAP_NS);
	store_release(&core->stall, core->trial);
}

void stall_end(struct core *core)
{
	store_release(&core->stall, 0);
	syscall(SYS_futex, &core->stall, FUTEX_WAKE_PRIVATE, INT_MAX, NULL, NULL, 0);
}

/* Return when the window is closed, or the bound has ended. */
static void wait_for_close(struct core *core, uint32_t trial)
{
	struct timespec until = to_timespec(core->stall_until_ns);

	while (load_acquire(&core->stall) == trial && now_ns() < core->stall_until_ns)
		syscall(SYS_futex, &core->stall, FUTEX_WAIT_BITSET_PRIVATE, trial, &until, NULL,
			FUTEX_BITSET_MATCH_ANY);
}

bool stall_block(unsigned int vcpu, struct core *core, uint64_t tsc)
{
	struct observer_sibling *sibling = &observer.siblings[vcpu];
	struct observer_vcpu *own = &observer.vcpus[vcpu];
	uint32_t trial = load_acquire(&core->stall);

	if (!trial)
		return false;
	if (sibling->stall_overrun)
		return true;

	gap_hold(own);
	store_relaxed(&sibling->stalled_tsc, tsc);
	wait_for_close(core, trial);
	gap_let_go(own);

	if (load_acquire(&core->stall) != trial)
		return false;
	store_relaxed(&sibling->stall_overrun, 1);
	return true;
}

bool stall_shows(unsigned int vcpu)
{
	const struct observer_sibling *sibling = &observer.siblings[vcpu];

	if (is_halted(&observer.vcpus[vcpu]))
		return true;
	return load_relaxed(&sibling->stalled_tsc) && !load_relaxed(&sibling->stall_overrun);
}
