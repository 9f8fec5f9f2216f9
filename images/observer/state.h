/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What all parts of the observer share: the mapped file, the cores, and the packing of a block. */
#ifndef STATE_H
#define STATE_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <time.h>
#include <x86intrin.h>

#include "interface.h"
#include "observer_shm.h"

#define NSEC_PER_SEC 1000000000ull

/* Why a vCPU must do more than store its block. */
#define WATCH_WINDOW 1u /* its window is open */
#define WATCH_LOAD   2u /* a late load of an armed trial is going on: look for gaps */
#define WATCH_PLACES 4u /* and it has holds, or all its blocks are counted */
#define WATCH_REST   8u /* it is over, and the trial is not: show where the vCPU comes to rest */

struct core {
	/* Of the open window; set before WATCH_WINDOW is, constant while it is. */
	uint32_t primary;
	uint32_t trial;
	uint32_t load;
	uint32_t mechanism;
	uint32_t mode;
	uint64_t stall_until_ns;
	/* Of the open window, for its primary's thread alone. */
	uint32_t acked;		/* the lab's NMIs since which the siblings are looked at */
	uint64_t hold_until_ns; /* beyond which nobody is waited for */
	/* The trial whose window stalls siblings, 0 when none does: what they wait on. */
	uint32_t stall;
	/* The load in which this core met its first WRMSR 0x79. */
	uint32_t opened_load;
	/* Of the load that is going on. */
	uint32_t phase;
	uint64_t called_in; /* a bit per thread */
} __attribute__((aligned(128)));

struct observer {
	struct observer_header *header;
	struct observer_vcpu *vcpus;
	struct observer_window *windows;
	struct observer_sibling *siblings;
	struct observer_block *tables;
	struct observer_cover *covers;
	struct observer_update *updates;
	struct observer_record *ring;
	struct core *core_by_vcpu[OBSERVER_MAX_VCPUS]; /* spares every block a division */
	uint64_t alive_from[OBSERVER_MAX_VCPUS]; /* region blocks that do not show life any more */
	struct core cores[OBSERVER_MAX_CORES];
	uint32_t vcpu_count;
	uint32_t core_count;
	uint32_t threads;
	uint32_t ring_records;
	uint32_t table_blocks;
	uint32_t cover_blocks;
	int link;
};

/* Hidden: reached without the indirection that would let another library replace it. */
extern struct observer observer __attribute__((visibility("hidden")));

/* Say why the observer cannot be loaded; QEMU then ends. */
#define complain(...)                                                                              \
	do {                                                                                       \
		fprintf(stderr, "observer: " __VA_ARGS__);                                         \
		fputc('\n', stderr);                                                               \
	} while (0)

#define load_relaxed(p)	    __atomic_load_n(p, __ATOMIC_RELAXED)
#define load_acquire(p)	    __atomic_load_n(p, __ATOMIC_ACQUIRE)
#define store_relaxed(p, v) __atomic_store_n(p, v, __ATOMIC_RELAXED)
#define store_release(p, v) __atomic_store_n(p, v, __ATOMIC_RELEASE)
#define count_one(p)	    __atomic_fetch_add(p, 1, __ATOMIC_RELAXED)

/*
 * A block, or a hazard, as a callback's userdata: the low 48 bits of its address, and 16 bits of
 * mark: the mechanisms whose wait region holds the whole block, or the hazard's class. So nothing
 * is allocated per translation, and nothing leaks when QEMU throws its translations away.
 */
#define PACK_PC_BITS 48

static inline uint64_t pack(uint64_t pc, uint16_t mark)
{
	return (pc & ((1ull << PACK_PC_BITS) - 1)) | (uint64_t)mark << PACK_PC_BITS;
}

static inline uint64_t pc_of(uint64_t packed)
{
	return (uint64_t)((int64_t)(packed << 16) >> 16); /* canonical: bit 47 fills those above */
}

static inline uint16_t mark_of(uint64_t packed)
{
	return packed >> PACK_PC_BITS;
}

static inline bool in_region(uint64_t packed, uint32_t mechanism)
{
	return mark_of(packed) >> mechanism & 1;
}

static inline struct core *core_of(unsigned int vcpu)
{
	return observer.core_by_vcpu[vcpu];
}

static inline uint64_t watch_of(unsigned int vcpu)
{
	return load_acquire(&own_of(vcpu)->watch);
}

static inline void watch_core(const struct core *core, uint64_t why)
{
	unsigned int first = (core - observer.cores) * observer.threads;

	for (unsigned int vcpu = first; vcpu < first + observer.threads; vcpu++)
		__atomic_fetch_or(&own_of(vcpu)->watch, why, __ATOMIC_RELEASE);
}

static inline void unwatch_core(const struct core *core, uint64_t why)
{
	unsigned int first = (core - observer.cores) * observer.threads;

	for (unsigned int vcpu = first; vcpu < first + observer.threads; vcpu++)
		__atomic_fetch_and(&own_of(vcpu)->watch, ~why, __ATOMIC_RELEASE);
}

static inline uint32_t armed_trial(void)
{
	return load_acquire(&observer.header->control.armed_trial);
}

static inline bool is_halted(const struct observer_vcpu *vcpu)
{
	return load_relaxed(&vcpu->halts) & 1;
}

static inline uint64_t now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * NSEC_PER_SEC + now.tv_nsec;
}

static inline struct timespec to_timespec(uint64_t mono_ns)
{
	return (struct timespec){
		.tv_sec = mono_ns / NSEC_PER_SEC,
		.tv_nsec = mono_ns % NSEC_PER_SEC,
	};
}

static inline uint64_t at_most(uint64_t value, uint64_t limit)
{
	return value < limit ? value : limit;
}

static inline uint64_t now_tsc(void)
{
	return __rdtsc();
}

/* More cycles than reading the clock takes: the host took the thread off its CPU meanwhile. */
#define CLOCK_READ_CYCLES 20000
#define CLOCK_READ_TRIES  3

/* Read both clocks as one moment, so that the lab can turn TSC into time by such pairs. */
static inline void read_clocks(uint64_t *mono_ns, uint64_t *tsc)
{
	for (int i = 0; i < CLOCK_READ_TRIES; i++) {
		uint64_t before = now_tsc();
		uint64_t taken;

		*mono_ns = now_ns();
		taken = now_tsc() - before;
		*tsc = before + taken / 2;
		if (taken < CLOCK_READ_CYCLES)
			return;
	}
}

#endif /* STATE_H */
