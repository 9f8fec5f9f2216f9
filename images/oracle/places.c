// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * A vCPU that is held sleeps in a callback: before the first instruction of a block, or before a
 * landmark's. What is made pending meanwhile enters at the head of the next block, since QEMU looks
 * for interrupts before it enters a block and not at the callback. The first block that it begins
 * after a hold is recorded, so that it shows whether an NMI entered right there.
 *
 * QEMU may need a held vCPU for work that no other may overlap (start_exclusive()); the bound of
 * each hold ends that, too.
 */
#include "places.h"

#include <string.h>

#include "gaps.h"
#include "ring.h"
#include "state.h"

/* How often a held vCPU looks whether it may go on. */
#define HOLD_STEP_NS 20000ull

/* A full table must not make every block of the guest walk all of it. */
#define MAX_PROBES 32

#define GOLDEN 0x9e3779b97f4a7c15ull

static struct {
	uint32_t resumed; /* it was held, and has begun no block since */
} __attribute__((aligned(64))) places[ORACLE_MAX_VCPUS];

static uint32_t count_holds(void)
{
	return at_most(load_relaxed(&oracle.header->control.holds), ORACLE_HOLDS);
}

void places_begin(uint32_t trial)
{
	const struct oracle_control *control = &oracle.header->control;
	size_t covers = (size_t)oracle.vcpu_count * oracle.cover_blocks;

	(void)trial;
	if (!count_holds() && !load_relaxed(&control->cover))
		return;
	for (uint32_t i = 0; i < count_holds(); i++)
		store_relaxed(&oracle.header->holds[i].arrivals, 0);
	if (load_relaxed(&control->cover))
		memset(oracle.covers, 0, covers * sizeof(struct oracle_cover));
	for (uint32_t i = 0; i < oracle.vcpu_count; i++)
		store_relaxed(&places[i].resumed, 0);
	for (uint32_t i = 0; i < oracle.core_count; i++)
		__atomic_fetch_or(&oracle.cores[i].watch, WATCH_PLACES, __ATOMIC_RELEASE);
}

void places_end(void)
{
	for (uint32_t i = 0; i < oracle.core_count; i++)
		__atomic_fetch_and(&oracle.cores[i].watch, ~WATCH_PLACES, __ATOMIC_RELEASE);
}

static void put(unsigned int vcpu, enum oracle_kind kind, uint64_t pc, uint32_t which, bool tell)
{
	const struct oracle_status *status = &oracle.header->status;
	struct event event = {
		.kind = kind,
		.vcpu = vcpu,
		.pc = pc,
		.load = load_relaxed(&status->load),
		.trial = armed_trial(),
		.detail = which,
	};
	struct stamp stamp = ring_put(&event);

	if (tell)
		link_send(&event, &stamp);
}

static void hold(unsigned int vcpu, uint32_t which, uint64_t pc)
{
	struct oracle_hold *place = &oracle.header->holds[which];
	uint32_t trial = armed_trial();
	uint64_t end = now_ns() + at_most(load_relaxed(&place->bound_ns), HOLD_CAP_NS);
	uint64_t now;

	gap_hold(&oracle.vcpus[vcpu]);
	put(vcpu, ORACLE_HELD, pc, which, true);
	while (load_acquire(&place->let_go) != trial && (now = now_ns()) < end) {
		struct timespec step = to_timespec(at_most(now + HOLD_STEP_NS, end));

		clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &step, NULL);
	}
	put(vcpu, load_acquire(&place->let_go) == trial ? ORACLE_LET_GO : ORACLE_HOLD_OVERRUN, pc,
	    which, false);
	store_relaxed(&places[vcpu].resumed, 1);
	gap_let_go(&oracle.vcpus[vcpu]);
}

static void look_for_holds(unsigned int vcpu, uint32_t kind, uint64_t pc)
{
	uint32_t phase = load_relaxed(&core_of(vcpu)->phase);

	for (uint32_t i = 0; i < count_holds(); i++) {
		struct oracle_hold *place = &oracle.header->holds[i];

		if (place->vcpu != vcpu || place->kind != kind ||
		    (place->address && place->address != pc) ||
		    (place->phase != PHASE_ANY && place->phase != phase))
			continue;
		store_relaxed(&place->arrivals, place->arrivals + 1);
		if (place->arrivals == place->arrival)
			hold(vcpu, i, pc);
	}
}

static void cover(unsigned int vcpu, uint64_t pc)
{
	struct oracle_cover *table = &oracle.covers[(size_t)vcpu * oracle.cover_blocks];
	uint32_t phase = load_relaxed(&core_of(vcpu)->phase);
	uint32_t mask = oracle.cover_blocks - 1;
	uint32_t at = ((pc ^ phase) * GOLDEN) >> 32;

	for (uint32_t probe = 0; probe < MAX_PROBES && probe <= mask; probe++) {
		struct oracle_cover *place = &table[(at + probe) & mask];

		if (place->count && (place->pc != pc || place->phase != phase))
			continue;
		place->pc = pc;
		place->phase = phase;
		if (place->count != UINT32_MAX)
			place->count++;
		return;
	}
	count_one(&oracle.header->status.covers_lost);
}

void places_block(unsigned int vcpu, uint64_t pc, bool closed)
{
	if (load_relaxed(&places[vcpu].resumed)) {
		store_relaxed(&places[vcpu].resumed, 0);
		put(vcpu, ORACLE_RESUMED, pc, 0, false);
	}
	if (load_relaxed(&oracle.header->control.cover))
		cover(vcpu, pc);
	if (closed)
		look_for_holds(vcpu, ORACLE_WINDOW_CLOSE, pc);
	look_for_holds(vcpu, 0, pc);
}

void places_point(unsigned int vcpu, uint32_t kind, uint64_t pc)
{
	if (load_acquire(&core_of(vcpu)->watch) & WATCH_PLACES)
		look_for_holds(vcpu, kind, pc);
}
