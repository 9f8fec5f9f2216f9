/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Places in a watched load: holding a vCPU where it is told to, and counting which blocks each
 * begins in which phase. One that enables interrupts behind its core's window has left the load:
 * what it begins from there on, whatever interrupts it, is counted as after it.
 */
#ifndef PLACES_H
#define PLACES_H

#include <stdbool.h>
#include <stdint.h>

/* No vCPU is held longer than this at one place: kernels wait for others for a second. */
#define HOLD_CAP_NS 500000000ull

/* A load of an armed trial begins. */
void places_begin(uint32_t trial);

/* It has ended. */
void places_end(void);

/* A vCPU begins a block, which has closed its core's window or not. */
void places_block(unsigned int vcpu, uint64_t pc, bool closed);

/* A vCPU is about to enable interrupts. */
void places_enable(unsigned int vcpu);

/* A vCPU is about to return from an interrupt, which lets NMIs in again. */
void places_iret(unsigned int vcpu);

/* A vCPU is at a landmark of that kind. */
void places_point(unsigned int vcpu, uint32_t kind, uint64_t pc);

#endif /* PLACES_H */
