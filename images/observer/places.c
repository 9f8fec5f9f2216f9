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
#define MAX_PROBES 256

#define GOLDEN 0x9e3779b97f4a7c15ull

static struct {
	/* One more than the number of its last hold; 0 once it has begun a block since. */
	uint32_t held;
	uint32_t left;	 /* it has enabled interrupts behind its core's window */
	uint32_t masked; /* no NMI can enter: it has entered one, and executed no IRET since */
} __attribute__((aligned(64))) places[OBSERVER_MAX_VCPUS];

/* The last trial of which a load was watched. */
static uint32_t watched_trial;

static uint32_t count_holds(void)
{
	return at_most(load_relaxed(&observer.header->control.holds), OBSERVER_HOLDS);
}

void places_begin(uint32_t trial)
{
	const struct observer_control *control = &observer.header->control;
	size_t covers = (size_t)observer.vcpu_count * observer.cover_blocks;

	/* A plan is about one load: one that a kernel begins by itself after it is left alone. */
	if (watched_trial == trial || (!count_holds() && !load_relaxed(&control->cover)))
		return;
	watched_trial = trial;
	for (uint32_t i = 0; i < count_holds(); i++)
		store_relaxed(&observer.header->holds[i].arrivals, 0);
	if (load_relaxed(&control->cover))
		memset(observer.covers, 0, covers * sizeof(struct observer_cover));
	for (uint32_t i = 0; i < observer.vcpu_count; i++) {
		store_relaxed(&places[i].held, 0);
		store_relaxed(&places[i].left, 0);
	}
	for (uint32_t i = 0; i < observer.core_count; i++)
		watch_core(&observer.cores[i], WATCH_PLACES);
}

void places_end(void)
{
	for (uint32_t i = 0; i < observer.core_count; i++)
		unwatch_core(&observer.cores[i], WATCH_PLACES);
}

static void put(uint32_t trial, unsigned int vcpu, enum observer_kind kind, uint64_t pc,
		uint32_t which)
{
	const struct observer_status *status = &observer.header->status;
	struct event event = {
		.kind = kind,
		.vcpu = vcpu,
		.pc = pc,
		.load = load_relaxed(&status->load),
		.trial = trial,
		.detail = which,
	};
	struct stamp stamp = ring_put(&event);

	if (kind == OBSERVER_HELD)
		link_send(&event, &stamp);
}

static bool counts(const struct observer_hold *place, uint32_t phase)
{
	if (place->phase == PHASE_ANY)
		return true;
	if (place->early)
		return phase >= PHASE_GATHER && phase <= place->phase;
	return phase == place->phase;
}

static bool is_due(const struct observer_hold *place, unsigned int vcpu)
{
	return !place->early || load_acquire(&core_of(vcpu)->phase) >= place->phase;
}

/*
 * All of it belongs to the trial in which it begins. Once that one is not armed any more nobody can
 * let the vCPU go, and it must not be in the way of the next. A vCPU that is early is not said to
 * be held before its phase has begun.
 */
static void hold(uint32_t trial, unsigned int vcpu, uint32_t which, uint64_t pc)
{
	struct observer_hold *place = &observer.header->holds[which];
	uint64_t end = now_ns() + at_most(load_relaxed(&place->bound_ns), HOLD_CAP_NS);
	bool due = false;
	bool told;

	gap_hold(&observer.vcpus[vcpu]);
	for (;;) {
		uint64_t now = now_ns();
		struct timespec step = to_timespec(at_most(now + HOLD_STEP_NS, end));

		if (!due && is_due(place, vcpu)) {
			due = true;
			put(trial, vcpu, OBSERVER_HELD, pc, which);
		}
		told = due && load_acquire(&place->let_go) == trial;
		if (told || armed_trial() != trial || now >= end)
			break;
		clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &step, NULL);
	}
	put(trial, vcpu, told ? OBSERVER_LET_GO : OBSERVER_HOLD_OVERRUN, pc, which);
	store_relaxed(&places[vcpu].held, which + 1);
	gap_let_go(&observer.vcpus[vcpu]);
}

static void look_for_holds(unsigned int vcpu, uint32_t kind, uint64_t pc)
{
	uint32_t trial = armed_trial();

	for (uint32_t i = 0; trial && i < count_holds(); i++) {
		struct observer_hold *place = &observer.header->holds[i];
		/* Anew for each: while it was held by one, the others of its core have gone on. */
		uint32_t phase = load_acquire(&core_of(vcpu)->phase);

		if (place->vcpu != vcpu || place->kind != kind ||
		    (place->address && place->address != pc) || !counts(place, phase))
			continue;
		store_relaxed(&place->arrivals, place->arrivals + 1);
		if (place->arrivals == place->arrival)
			hold(trial, vcpu, i, pc);
	}
}

static void cover(unsigned int vcpu, uint64_t pc)
{
	struct observer_cover *table = &observer.covers[(size_t)vcpu * observer.cover_blocks];
	uint32_t phase = load_relaxed(&places[vcpu].left) ? PHASE_AFTER
							  : load_relaxed(&core_of(vcpu)->phase);

	if (load_relaxed(&places[vcpu].masked))
		phase |= COVER_MASKED;

	uint32_t mask = observer.cover_blocks - 1;
	uint32_t at = ((pc ^ phase) * GOLDEN) >> 32;

	for (uint32_t probe = 0; probe < MAX_PROBES && probe <= mask; probe++) {
		struct observer_cover *place = &table[(at + probe) & mask];

		if (place->count && (place->pc != pc || place->phase != phase))
			continue;
		place->pc = pc;
		place->phase = phase;
		if (place->count != UINT32_MAX)
			place->count++;
		return;
	}
	count_one(&observer.header->status.covers_lost);
}

void places_block(unsigned int vcpu, uint64_t pc, bool closed)
{
	uint32_t held = load_relaxed(&places[vcpu].held);

	if (held) {
		store_relaxed(&places[vcpu].held, 0);
		put(watched_trial, vcpu, OBSERVER_RESUMED, pc, held - 1);
	}
	if (load_relaxed(&observer.header->control.cover))
		cover(vcpu, pc);
	if (closed)
		look_for_holds(vcpu, OBSERVER_WINDOW_CLOSE, pc);
	look_for_holds(vcpu, 0, pc);
}

void places_enable(unsigned int vcpu)
{
	uint32_t phase = load_relaxed(&core_of(vcpu)->phase);

	if (watch_of(vcpu) & WATCH_PLACES && (phase == PHASE_CLOSING || phase == PHASE_RELEASE))
		store_relaxed(&places[vcpu].left, 1);
}

void places_iret(unsigned int vcpu)
{
	store_relaxed(&places[vcpu].masked, 0);
}

void places_point(unsigned int vcpu, uint32_t kind, uint64_t pc)
{
	if (kind == OBSERVER_NMI_ENTRY)
		store_relaxed(&places[vcpu].masked, 1);
	if (watch_of(vcpu) & WATCH_PLACES)
		look_for_holds(vcpu, kind, pc);
}
