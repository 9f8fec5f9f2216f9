// SPDX-License-Identifier: GPL-2.0-or-later
#include "window.h"

#include <errno.h>
#include <linux/membarrier.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "gaps.h"
#include "phase.h"
#include "ring.h"
#include "siblings.h"
#include "stall.h"
#include "state.h"

/* How often a window that waits for signs of life looks for them. */
#define EXTEND_STEP_NS 200000ull

/*
 * Every vCPU, on every block, stores which block it is in and then loads whether its core's window
 * is open; the opener stores the flag and then loads the blocks. For no block to slip through,
 * each side's store must be visible before its load: a full fence on both. Blocks begin tens of
 * millions of times a second and windows open once in milliseconds, so the opener pays for both:
 * membarrier(2) makes every running thread of QEMU pass a full fence between the opener's store
 * and its load, and the hot path needs nothing but to keep its order. Either the opener then sees
 * the block, or the vCPU sees the flag: the fence comes behind the vCPU's store, or before its
 * load. That holds whoever wrote the store and the load, the compiler (interface.c keeps it from
 * swapping them) or QEMU, whose translated code has a block's callbacks in the order asked for.
 */
static int membarrier(int command)
{
	return syscall(SYS_membarrier, command, 0, 0);
}

bool window_prepare(void)
{
	if (!membarrier(MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED))
		return true;
	complain("this host has no membarrier(2) with private expedited commands (Linux 4.14): %s",
		 strerror(errno));
	return false;
}

static void sleep_until(uint64_t mono_ns)
{
	struct timespec until = to_timespec(mono_ns);

	while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL) == EINTR)
		;
}

static bool is_stalling(const struct core *core)
{
	return core->mode == OBSERVER_MODE_STALL;
}

static bool all_alive(const struct core *core, unsigned int first)
{
	uint32_t live_blocks = load_relaxed(&observer.header->control.live_blocks);

	for (unsigned int vcpu = first; vcpu < first + observer.threads; vcpu++) {
		if (vcpu == core->primary)
			continue;
		if (is_stalling(core) ? !stall_shows(vcpu) : !sibling_alive(vcpu, live_blocks))
			return false;
	}
	return true;
}

static void count_anew(unsigned int first)
{
	for (unsigned int vcpu = first; vcpu < first + observer.threads; vcpu++)
		sibling_count_anew(vcpu);
}

/*
 * Wait until no NMI of the lab's is between its sending and its acknowledgement and the siblings
 * have run since the last was acknowledged. One that comes at the very end would show nothing:
 * nobody could tell a sibling that stays quiet from one that the host has not run since.
 */
static void wait_for_life(struct core *core, struct observer_window *window, unsigned int first,
			  uint64_t begin)
{
	const struct observer_control *control = &observer.header->control;
	uint64_t now;

	for (now = begin; now < core->hold_until_ns; now = now_ns()) {
		uint32_t latest = load_acquire(&control->nmis_acked);

		if (latest != core->acked) {
			core->acked = latest;
			count_anew(first);
		} else if (load_acquire(&control->nmis_sent) == latest && all_alive(core, first)) {
			break;
		}
		sleep_until(at_most(now_ns() + EXTEND_STEP_NS, core->hold_until_ns));
	}
	store_relaxed(&window->extended_ns, window->extended_ns + (now - begin));
}

/* Hold the primary as long as asked, and then until its siblings have shown themselves. */
static void hold_open(struct core *core, struct observer_window *window, unsigned int first)
{
	const struct observer_control *control = &observer.header->control;
	uint64_t end = now_ns() + window->asked_ns;

	core->hold_until_ns = end + at_most(load_relaxed(&control->extend_bound_ns), EXTEND_CAP_NS);
	core->acked = load_acquire(&control->nmis_acked);
	if (window->asked_ns)
		sleep_until(end);
	/* A halted sibling that an NMI has only just woken gets a step to reach its stall. */
	if (!is_stalling(core))
		core->acked = load_acquire(&control->nmis_acked);
	count_anew(first);
	wait_for_life(core, window, first, end);
}

/* Set all that a window starts with, while nobody yet looks at it. */
static void begin(struct core *core, struct observer_window *window, const struct event *opening)
{
	unsigned int number = core - observer.cores;

	core->primary = opening->vcpu;
	core->trial = opening->trial;
	core->load = opening->load;
	core->mechanism = load_relaxed(&observer.header->control.mechanism) % OBSERVER_MECHANISMS;
	core->mode = load_relaxed(&observer.header->control.mode);
	memset(window, 0, sizeof(*window));
	window->load = opening->load;
	window->primary = opening->vcpu;
	window->mechanism = core->mechanism;
	window->mode = core->mode;
	window->pc = opening->pc;
	window->asked_ns =
		at_most(load_relaxed(&observer.header->control.stretch_ns[number]), STRETCH_CAP_NS);
}

static void run_window(struct core *core, struct observer_window *window, struct event *opening)
{
	unsigned int first = (core - observer.cores) * observer.threads;
	struct stamp stamp;

	begin(core, window, opening);
	for (unsigned int vcpu = first; vcpu < first + observer.threads; vcpu++)
		if (vcpu != opening->vcpu)
			sibling_clear(vcpu, core);

	if (is_stalling(core))
		stall_begin(core, window->asked_ns);
	stamp = ring_put(opening);
	/* Behind its record: whoever is held in the window is so within it. */
	phase_follow(opening->vcpu, OBSERVER_WINDOW_OPEN);
	window->open_seq = stamp.seq;
	window->open_ns = stamp.mono_ns;
	window->open_tsc = stamp.tsc;
	store_release(&window->trial, core->trial);
	watch_core(core, WATCH_WINDOW);
	membarrier(MEMBARRIER_CMD_PRIVATE_EXPEDITED);
	for (unsigned int vcpu = first; vcpu < first + observer.threads; vcpu++)
		if (vcpu != opening->vcpu)
			sibling_snapshot(vcpu, core);
	link_send(opening, &stamp);
	hold_open(core, window, first);
}

void window_open(unsigned int vcpu, uint64_t pc, unsigned int size)
{
	const struct observer_status *status = &observer.header->status;
	struct core *core = core_of(vcpu);
	struct observer_window *window = &observer.windows[core - observer.cores];
	struct event event = {.kind = OBSERVER_EARLY, .vcpu = vcpu, .pc = pc, .detail = size};

	event.trial = armed_trial();
	if (!event.trial)
		return;
	if (!load_acquire(&status->load_active)) {
		ring_put(&event);
		return;
	}
	event.load = load_relaxed(&status->load);
	if (__atomic_exchange_n(&core->opened_load, event.load, __ATOMIC_ACQ_REL) == event.load) {
		event.kind = OBSERVER_RETRY;
		ring_put(&event);
		return;
	}
	if (window->trial == event.trial) {
		/* A second load in one trial: the first one's window is not overwritten. */
		count_one(&observer.header->status.windows_lost);
		return;
	}
	event.kind = OBSERVER_WINDOW_OPEN;
	gap_hold(&observer.vcpus[vcpu]);
	run_window(core, window, &event);
	gap_let_go(&observer.vcpus[vcpu]);
}

static void window_close(struct core *core, uint64_t pc)
{
	struct observer_window *window = &observer.windows[core - observer.cores];
	unsigned int first = (core - observer.cores) * observer.threads;
	struct event event = {
		.kind = OBSERVER_WINDOW_CLOSE,
		.vcpu = core->primary,
		.pc = pc,
		.load = core->load,
		.trial = core->trial,
	};
	struct stamp stamp;

	if (!is_stalling(core)) {
		/* The host may have run others for long since the WRMSR, and NMIs have come. */
		gap_hold(&observer.vcpus[core->primary]);
		wait_for_life(core, window, first, now_ns());
		gap_let_go(&observer.vcpus[core->primary]);
		unwatch_core(core, WATCH_WINDOW);
		/* As on opening: whoever went on before this is seen to have. */
		membarrier(MEMBARRIER_CMD_PRIVATE_EXPEDITED);
	}
	for (unsigned int vcpu = first; vcpu < first + observer.threads; vcpu++)
		if (vcpu != core->primary)
			observer.siblings[vcpu].halted = is_halted(&observer.vcpus[vcpu]);
	stamp = ring_put(&event);
	phase_follow(core->primary, OBSERVER_WINDOW_CLOSE);
	window->close_ns = stamp.mono_ns;
	window->close_tsc = stamp.tsc;
	store_release(&window->close_seq, stamp.seq);
	/* Last: no sibling goes on, nor begins that was halted, before all that is written. */
	if (is_stalling(core)) {
		unwatch_core(core, WATCH_WINDOW);
		stall_end(core);
	}
	link_send(&event, &stamp);
}

bool window_block(unsigned int vcpu, uint64_t packed, uint64_t tsc)
{
	struct core *core = core_of(vcpu);

	if (vcpu == core->primary) {
		window_close(core, pc_of(packed));
		return true;
	}
	if (!is_stalling(core))
		sibling_block(vcpu, core, packed, tsc);
	else if (stall_block(vcpu, core, tsc))
		sibling_block(vcpu, core, packed, now_tsc());
	return false;
}

void window_hazard(unsigned int vcpu, uint64_t packed)
{
	struct core *core = core_of(vcpu);

	if (vcpu != core->primary)
		sibling_hazard(vcpu, core, packed);
}
