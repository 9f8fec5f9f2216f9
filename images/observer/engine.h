/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The part of a CPU that takes microcode updates, for guests whose kernel has nothing of ours: an
 * emulator ignores WRMSR 0x79, and answers RDMSR 0x8B with what it had at reset.
 */
#ifndef ENGINE_H
#define ENGINE_H

#include <stdbool.h>
#include <stdint.h>

#include "install.h"

/* IA32_BIOS_UPDT_TRIG and IA32_BIOS_SIGN_ID (SDM 4, table 2-2). */
#define MSR_UCODE_WRITE 0x79
#define MSR_UCODE_REV	0x8b

/* False, once said why, when the engine is asked for and this version cannot be one. */
bool engine_prepare(const struct options *options);
bool engine_is_on(void);

/*
 * The vCPU is about to execute WRMSR 0x79, in a callback that reads registers, and writes them
 * where the engine is on: see what it writes, put it on record, and have the core take it.
 */
void engine_update(unsigned int vcpu, uint64_t pc);

/* Only with the engine on: it is about to execute WRMSR 0x8B, or CPUID. */
void engine_write_revision(unsigned int vcpu);
void engine_cpuid(unsigned int vcpu);
/* It has executed that CPUID; or it will, and nothing can be changed behind it. */
void engine_cpuid_done(unsigned int vcpu);
void engine_cpuid_missed(unsigned int vcpu);

/* It has executed RDMSR: answer for 0x8B. False when that was another one. */
bool engine_answer(unsigned int vcpu);
/* It is about to execute an RDMSR that ends its block: execute that of 0x8B in its place. */
void engine_read_instead(unsigned int vcpu, uint64_t next);

/* It has taken an exception at the instruction at from. */
void engine_excepted(unsigned int vcpu, uint64_t from);

#endif /* ENGINE_H */
