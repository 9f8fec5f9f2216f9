/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Windows: from a core's first WRMSR 0x79 of a load to its vCPU's next block. */
#ifndef WINDOW_H
#define WINDOW_H

#include <stdbool.h>
#include <stdint.h>

/* No window is held longer than this together: the 6.1 kernel panics after one second. */
#define STRETCH_CAP_NS 800000000ull
#define EXTEND_CAP_NS  200000000ull

/* Register for what window_open() needs of the host kernel. */
bool window_prepare(void);

/* The vCPU is about to execute WRMSR 0x79, an instruction of so many bytes. */
void window_open(unsigned int vcpu, uint64_t pc, unsigned int size);

/*
 * While the core's window is open: a vCPU begins a block, true when that closes the window; or it
 * is about to execute a hazard.
 */
bool window_block(unsigned int vcpu, uint64_t packed, uint64_t tsc);
void window_hazard(unsigned int vcpu, uint64_t packed);

#endif /* WINDOW_H */
