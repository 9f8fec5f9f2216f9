/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What the observer needs of QEMU, in one shape for every version of the plugin interface. Where a
 * version has more, it is used: from version 3 on QEMU's own code stores which block a vCPU is in,
 * and calls the observer only in blocks of a vCPU that is watched.
 */
#ifndef INTERFACE_H
#define INTERFACE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "qemu_plugin_api.h"

/* No x86 instruction is longer (SDM 2A, 2.3.11). */
#define MAX_INSN_BYTES 15

/* One vCPU's words that each of its blocks stores and loads, in this order (window.c). */
struct own {
	uint64_t block; /* packed (state.h): the block it is in */
	uint64_t watch; /* why more is to be done in its blocks, 0 for nothing */
	uint64_t pad[6];
};

struct own *own_of(unsigned int vcpu);

/* Which of those that only newer versions can do this QEMU does (enum observer_sees). */
uint32_t interface_sees(void);

/* Have QEMU call what follows below. False, once said why, when it cannot. */
bool interface_register(qemu_plugin_id_t id);

/* Copy an instruction's bytes and return how many there are. */
size_t insn_bytes(const struct qemu_plugin_insn *insn, uint8_t bytes[MAX_INSN_BYTES]);

/* Of a block that is being translated: store which it is, and call watched_block(). */
void follow_block(struct qemu_plugin_tb *tb, uint64_t packed);

/* The registers that the observer looks at. */
enum gpr {
	GPR_EAX,
	GPR_ECX,
	GPR_EDX,
	GPR_CS,
	GPRS,
};

/*
 * The low half of a register of a vCPU whose thread calls, in a callback that reads registers, or
 * writes them; false when that cannot be done. What is written clears the high half, as the CPU's
 * own 32-bit results do.
 */
bool read_gpr(unsigned int vcpu, enum gpr gpr, uint32_t *value);
bool write_gpr(unsigned int vcpu, enum gpr gpr, uint32_t value);

/* Guest memory as that vCPU sees it, good until the next call for it; NULL when there is none. */
const uint8_t *read_guest(unsigned int vcpu, uint64_t address, size_t size);

/* Whether this version can write registers, and let a vCPU go on elsewhere. */
#define CAN_BE_ENGINE (PLUGIN_API_VERSION >= 6)

/* Have that vCPU go on there, from a callback that says that it does; does not return. */
void go_on_at(uint64_t address);

/* What QEMU calls, in the thread of the vCPU; observer.c has them. */
void translate_block(struct qemu_plugin_tb *tb);
void watched_block(unsigned int vcpu, uint64_t packed);
void vcpu_halts(unsigned int vcpu);
void vcpu_resumes(unsigned int vcpu);
/* It has taken an interrupt before the instruction at from, and goes on at to. */
void vcpu_interrupted(unsigned int vcpu, uint64_t from, uint64_t to);
/* It has taken an exception at that instruction; called with the engine on only. */
void vcpu_excepted(unsigned int vcpu, uint64_t from);

#endif /* INTERFACE_H */
