/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Events: into the ring for all, over the link for those that the lab acts upon. */
#ifndef RING_H
#define RING_H

#include <stdint.h>

#include "observer_shm.h"

struct event {
	enum observer_kind kind;
	unsigned int vcpu;
	uint64_t pc;
	enum observer_hazard hazard;
	uint32_t load;
	uint32_t trial;
	uint64_t detail;
};

/* When and as which record an event was written. */
struct stamp {
	uint64_t seq;
	uint64_t mono_ns;
	uint64_t tsc;
};

struct stamp ring_put(const struct event *event);
void link_send(const struct event *event, const struct stamp *stamp);

#endif /* RING_H */
