/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Which class of hazard an instruction is of, from its bytes. */
#ifndef HAZARDS_H
#define HAZARDS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "observer_shm.h"

enum observer_hazard hazard_of(const uint8_t *bytes, size_t size);

/* WRMSR or WRMSRNS, whose register's number is in ECX. */
bool is_wrmsr(const uint8_t *bytes, size_t size);
bool is_rdmsr(const uint8_t *bytes, size_t size);

#endif /* HAZARDS_H */
