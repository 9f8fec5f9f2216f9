// SPDX-License-Identifier: GPL-2.0-or-later
#include "phase.h"

#include "state.h"

static void set_all(uint32_t phase)
{
	for (uint32_t i = 0; i < observer.core_count; i++) {
		store_relaxed(&observer.cores[i].called_in, 0);
		store_release(&observer.cores[i].phase, phase);
	}
}

/* From one phase to a later one only: a release may be reached again on a way that leads there. */
static void pass(struct core *core, uint32_t from, uint32_t to)
{
	__atomic_compare_exchange_n(&core->phase, &from, to, false, __ATOMIC_RELEASE,
				    __ATOMIC_RELAXED);
}

static void call_in(struct core *core, unsigned int thread)
{
	uint64_t all = (1ull << observer.threads) - 1;
	uint64_t bit = 1ull << thread;

	if ((__atomic_fetch_or(&core->called_in, bit, __ATOMIC_RELAXED) | bit) == all)
		pass(core, PHASE_GATHER, PHASE_ARMED);
}

void phase_follow(unsigned int vcpu, uint32_t kind)
{
	struct core *core = core_of(vcpu);

	switch (kind) {
	case OBSERVER_LOAD_BEGIN:
		set_all(PHASE_GATHER);
		break;
	case OBSERVER_CALL_IN:
		call_in(core, vcpu % observer.threads);
		break;
	case OBSERVER_WINDOW_OPEN:
		store_release(&core->phase, PHASE_WINDOW);
		break;
	case OBSERVER_WINDOW_CLOSE:
		pass(core, PHASE_WINDOW, PHASE_CLOSING);
		break;
	case OBSERVER_RELEASE:
		if (vcpu != load_relaxed(&core->primary))
			pass(core, PHASE_CLOSING, PHASE_RELEASE);
		break;
	case OBSERVER_LOAD_END:
		set_all(PHASE_AFTER);
		break;
	}
}
