// SPDX-License-Identifier: GPL-2.0-or-later
#include "ring.h"

#include <sys/socket.h>

#include "state.h"

#define STAMP_BUSY UINT64_MAX

/*
 * Claim the record's place. A writer that the host took off its CPU for a whole round of the ring
 * still owns it: then this event is lost, which its reader counts, rather than both garbled.
 */
static bool claim(struct observer_record *record)
{
	uint64_t old = load_relaxed(&record->stamp);

	return old != STAMP_BUSY &&
	       __atomic_compare_exchange_n(&record->stamp, &old, STAMP_BUSY, false,
					   __ATOMIC_ACQUIRE, __ATOMIC_RELAXED);
}

struct stamp ring_put(const struct event *event)
{
	struct stamp stamp = {.seq = count_one(&observer.header->next_seq)};
	struct observer_record *record = &observer.ring[stamp.seq % observer.ring_records];

	read_clocks(&stamp.mono_ns, &stamp.tsc);
	if (!claim(record))
		return stamp;
	/* A reader that sees any of what follows sees the place busy as well. */
	__atomic_thread_fence(__ATOMIC_RELEASE);
	record->mono_ns = stamp.mono_ns;
	record->tsc = stamp.tsc;
	record->pc = event->pc;
	record->kind = event->kind;
	record->vcpu = event->vcpu;
	record->core = event->vcpu / observer.threads;
	record->hazard = event->hazard;
	record->load = event->load;
	record->trial = event->trial;
	record->detail = event->detail;
	store_release(&record->stamp, stamp.seq);
	return stamp;
}

void link_send(const struct event *event, const struct stamp *stamp)
{
	struct observer_message message = {
		.kind = event->kind,
		.vcpu = event->vcpu,
		.seq = stamp->seq,
		.mono_ns = stamp->mono_ns,
		.load = event->load,
		.detail = event->detail,
	};

	/* The guest must never wait for the lab. */
	if (send(observer.link, &message, sizeof(message), MSG_DONTWAIT | MSG_NOSIGNAL) !=
	    sizeof(message))
		count_one(&observer.header->status.link_failures);
}
