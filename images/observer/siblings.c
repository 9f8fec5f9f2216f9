// SPDX-License-Identifier: GPL-2.0-or-later
#include "siblings.h"

#include <string.h>

#include "ring.h"

/* A full table must not make every block of the guest walk all of it. */
#define MAX_PROBES 32

#define GOLDEN 0x9e3779b97f4a7c15ull

static struct observer_block *table_of(unsigned int vcpu)
{
	return &observer.tables[(size_t)vcpu * observer.table_blocks];
}

void sibling_clear(unsigned int vcpu, const struct core *core)
{
	struct observer_sibling *sibling = &observer.siblings[vcpu];

	memset(table_of(vcpu), 0, observer.table_blocks * sizeof(struct observer_block));
	memset(sibling, 0, sizeof(*sibling));
	sibling->trial = core->trial;
	sibling->load = core->load;
}

static void put_event(unsigned int vcpu, const struct core *core, enum observer_kind kind,
		      uint64_t pc, enum observer_hazard hazard)
{
	ring_put(&(struct event){
		.kind = kind,
		.vcpu = vcpu,
		.pc = pc,
		.hazard = hazard,
		.load = core->load,
		.trial = core->trial,
	});
}

/* Note what the sibling is in the middle of; the window is open already. */
void sibling_snapshot(unsigned int vcpu, const struct core *core)
{
	struct observer_sibling *sibling = &observer.siblings[vcpu];
	const struct observer_vcpu *own = &observer.vcpus[vcpu];
	uint64_t block = is_halted(own) ? 0 : load_relaxed(&own_of(vcpu)->block);

	store_relaxed(&sibling->in_flight, block);
	put_event(vcpu, core, OBSERVER_IN_FLIGHT, pc_of(block), HAZARD_NONE);
}

/* Find a block's place in the table, an empty one if it is new, or NULL if there is none. */
static struct observer_block *find_place(unsigned int vcpu, uint64_t pc)
{
	struct observer_block *table = table_of(vcpu);
	uint32_t mask = observer.table_blocks - 1;
	uint32_t at = (pc * GOLDEN) >> 32;

	for (uint32_t probe = 0; probe < MAX_PROBES && probe <= mask; probe++) {
		struct observer_block *place = &table[(at + probe) & mask];

		if (!place->count || place->pc == pc)
			return place;
	}
	return NULL;
}

void sibling_block(unsigned int vcpu, const struct core *core, uint64_t packed, uint64_t tsc)
{
	struct observer_sibling *sibling = &observer.siblings[vcpu];
	bool inside = in_region(packed, core->mechanism);
	uint64_t pc = pc_of(packed);
	struct observer_block *place = find_place(vcpu, pc);

	if (!sibling->first_tsc)
		sibling->first_tsc = tsc;
	if (inside) {
		sibling->last_region_tsc = tsc;
		store_relaxed(&sibling->region_blocks, sibling->region_blocks + 1);
	} else {
		sibling->outside_blocks++;
	}

	if (!place) {
		sibling->blocks_lost++;
		return;
	}
	if (!place->count) {
		place->pc = pc;
		place->in_region = inside;
		place->first_seq = load_relaxed(&observer.header->next_seq);
		if (!inside)
			put_event(vcpu, core, OBSERVER_OUTSIDE, pc, HAZARD_NONE);
	}
	place->last_seq = load_relaxed(&observer.header->next_seq);
	if (place->count != UINT32_MAX)
		place->count++;
}

void sibling_hazard(unsigned int vcpu, const struct core *core, uint64_t packed)
{
	struct observer_sibling *sibling = &observer.siblings[vcpu];
	uint64_t pc = pc_of(packed);

	for (unsigned int i = 0; i < OBSERVER_HAZARDS; i++) {
		struct observer_seen_hazard *seen = &sibling->hazards[i];

		if (seen->count && seen->pc != pc)
			continue;
		if (!seen->count) {
			seen->pc = pc;
			seen->hazard = mark_of(packed);
			put_event(vcpu, core, OBSERVER_HAZARD, pc, mark_of(packed));
		}
		seen->count++;
		return;
	}
	sibling->hazards_lost++;
}

void sibling_count_anew(unsigned int vcpu)
{
	observer.alive_from[vcpu] = load_relaxed(&observer.siblings[vcpu].region_blocks);
}

bool sibling_alive(unsigned int vcpu, uint32_t live_blocks)
{
	uint64_t blocks = load_relaxed(&observer.siblings[vcpu].region_blocks);

	/* A halted vCPU that has an NMI pending is about to show it; the judge knows of those. */
	return blocks - observer.alive_from[vcpu] >= live_blocks ||
	       is_halted(&observer.vcpus[vcpu]);
}
