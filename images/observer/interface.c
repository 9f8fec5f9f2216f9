// SPDX-License-Identifier: GPL-2.0-or-later
#include "interface.h"

#include <string.h>

#include "engine.h"
#include "state.h"

PLUGIN_EXPORT int qemu_plugin_version = PLUGIN_API_VERSION;

/*
 * A build may be told to be called in each block all the same, as version 1 has to be: whatever the
 * two ways see must be alike.
 */
#if PLUGIN_API_VERSION >= 3 && !defined(OBSERVER_CALL_EVERY_BLOCK)
#define INLINE_BLOCKS 1
#else
#define INLINE_BLOCKS 0
#endif

static void on_watched(unsigned int vcpu, void *userdata)
{
	watched_block(vcpu, (uint64_t)userdata);
}

#if INLINE_BLOCKS
static struct qemu_plugin_scoreboard *owns;

struct own *own_of(unsigned int vcpu)
{
	return qemu_plugin_scoreboard_find(owns, vcpu);
}

static bool owns_prepare(void)
{
	owns = qemu_plugin_scoreboard_new(sizeof(struct own));
	if (!owns)
		complain("QEMU has no memory for its vCPUs' words");
	return owns;
}

/* In the order in which they are asked for, and both in front of the block's first instruction. */
void follow_block(struct qemu_plugin_tb *tb, uint64_t packed)
{
	const qemu_plugin_u64 block = {owns, offsetof(struct own, block)};
	const qemu_plugin_u64 watch = {owns, offsetof(struct own, watch)};

	qemu_plugin_register_vcpu_tb_exec_inline_per_vcpu(tb, QEMU_PLUGIN_INLINE_STORE_U64, block,
							  packed);
	qemu_plugin_register_vcpu_tb_exec_cond_cb(tb, on_watched, QEMU_PLUGIN_CB_NO_REGS,
						  QEMU_PLUGIN_COND_NE, watch, 0, (void *)packed);
}
#else
static struct own owns[OBSERVER_MAX_VCPUS] __attribute__((aligned(64)));

struct own *own_of(unsigned int vcpu)
{
	return &owns[vcpu];
}

static bool owns_prepare(void)
{
	return true;
}

static void on_block(unsigned int vcpu, void *userdata)
{
	struct own *own = &owns[vcpu];

	store_relaxed(&own->block, (uint64_t)userdata);
	__atomic_signal_fence(__ATOMIC_SEQ_CST); /* for the compiler; the rest is in window.c */
	if (__builtin_expect(load_acquire(&own->watch), 0))
		on_watched(vcpu, userdata);
}

void follow_block(struct qemu_plugin_tb *tb, uint64_t packed)
{
	qemu_plugin_register_vcpu_tb_exec_cb(tb, on_block, QEMU_PLUGIN_CB_NO_REGS, (void *)packed);
}
#endif

#if PLUGIN_API_VERSION < 3
size_t insn_bytes(const struct qemu_plugin_insn *insn, uint8_t bytes[MAX_INSN_BYTES])
{
	size_t size = at_most(qemu_plugin_insn_size(insn), MAX_INSN_BYTES);

	memcpy(bytes, qemu_plugin_insn_data(insn), size);
	return size;
}
#else
size_t insn_bytes(const struct qemu_plugin_insn *insn, uint8_t bytes[MAX_INSN_BYTES])
{
	return qemu_plugin_insn_data(insn, bytes, MAX_INSN_BYTES);
}
#endif

#if PLUGIN_API_VERSION < 2
bool read_gpr(unsigned int vcpu, enum gpr gpr, uint32_t *value)
{
	(void)vcpu;
	(void)gpr;
	(void)value;
	return false;
}
#else
/* As the descriptors have them, in 64-bit and in 32-bit targets. */
static const char *const names[GPRS][2] = {
	[GPR_EAX] = {"rax", "eax"},
	[GPR_ECX] = {"rcx", "ecx"},
	[GPR_EDX] = {"rdx", "edx"},
	[GPR_CS] = {"cs", "cs"},
};

/* Each is used by its vCPU's thread alone. */
static struct {
	struct qemu_plugin_register *gprs[GPRS];
	GByteArray *bytes;
} __attribute__((aligned(64))) registers[OBSERVER_MAX_VCPUS];

/* Newer versions have more behind what is declared of a descriptor. */
static void find_gprs(unsigned int vcpu)
{
	GArray *all = qemu_plugin_get_registers();
	size_t step = g_array_get_element_size(all);

	for (unsigned int i = 0; i < all->len; i++) {
		const qemu_plugin_reg_descriptor *each = (const void *)(all->data + i * step);

		for (unsigned int gpr = 0; each->name && gpr < GPRS; gpr++)
			if (!strcmp(each->name, names[gpr][0]) ||
			    !strcmp(each->name, names[gpr][1]))
				registers[vcpu].gprs[gpr] = each->handle;
	}
	g_array_free(all, 1);
}

static GByteArray *bytes_of(unsigned int vcpu)
{
	if (!registers[vcpu].bytes) {
		registers[vcpu].bytes = g_byte_array_new();
		find_gprs(vcpu);
	}
	g_byte_array_set_size(registers[vcpu].bytes, 0);
	return registers[vcpu].bytes;
}

bool read_gpr(unsigned int vcpu, enum gpr gpr, uint32_t *value)
{
	GByteArray *bytes = bytes_of(vcpu);

	if (!registers[vcpu].gprs[gpr])
		return false;
	/* Up to version 5 the answer is a size, and negative where there is none. */
	if (qemu_plugin_read_register(registers[vcpu].gprs[gpr], bytes) <= 0 ||
	    bytes->len < sizeof(*value))
		return false;
	memcpy(value, bytes->data, sizeof(*value));
	return true;
}
#endif

#if PLUGIN_API_VERSION < 4
const uint8_t *read_guest(unsigned int vcpu, uint64_t address, size_t size)
{
	(void)vcpu;
	(void)address;
	(void)size;
	return NULL;
}
#else
const uint8_t *read_guest(unsigned int vcpu, uint64_t address, size_t size)
{
	GByteArray *bytes = bytes_of(vcpu);

	if (!qemu_plugin_read_memory_vaddr(address, bytes, size) || bytes->len < size)
		return NULL;
	return bytes->data;
}
#endif

#if !CAN_BE_ENGINE
bool write_gpr(unsigned int vcpu, enum gpr gpr, uint32_t value)
{
	(void)vcpu;
	(void)gpr;
	(void)value;
	return false;
}

void go_on_at(uint64_t address)
{
	(void)address;
}
#else
bool write_gpr(unsigned int vcpu, enum gpr gpr, uint32_t value)
{
	GByteArray *bytes = bytes_of(vcpu);

	/* A register is as long as the vCPU's mode has it, and is written whole. */
	if (!registers[vcpu].gprs[gpr] ||
	    !qemu_plugin_read_register(registers[vcpu].gprs[gpr], bytes) ||
	    bytes->len < sizeof(value))
		return false;
	memset(bytes->data, 0, bytes->len);
	memcpy(bytes->data, &value, sizeof(value));
	return qemu_plugin_write_register(registers[vcpu].gprs[gpr], bytes);
}

void go_on_at(uint64_t address)
{
	qemu_plugin_set_pc(address);
}
#endif

#if PLUGIN_API_VERSION < 7
static void on_translate(qemu_plugin_id_t id, struct qemu_plugin_tb *tb)
{
	(void)id;
	translate_block(tb);
}

static void on_halt(qemu_plugin_id_t id, unsigned int vcpu)
{
	(void)id;
	vcpu_halts(vcpu);
}

static void on_resume(qemu_plugin_id_t id, unsigned int vcpu)
{
	(void)id;
	vcpu_resumes(vcpu);
}

#define FOR_ALL
#else
static void on_translate(struct qemu_plugin_tb *tb, void *userdata)
{
	(void)userdata;
	translate_block(tb);
}

static void on_halt(unsigned int vcpu, void *userdata)
{
	(void)userdata;
	vcpu_halts(vcpu);
}

static void on_resume(unsigned int vcpu, void *userdata)
{
	(void)userdata;
	vcpu_resumes(vcpu);
}

#define FOR_ALL , NULL
#endif

#if PLUGIN_API_VERSION < 5
static bool has_interrupts(void)
{
	return false;
}

static void follow_interrupts(qemu_plugin_id_t id)
{
	(void)id;
}
#else
static void on_discontinuity(unsigned int vcpu, enum qemu_plugin_discon_type type, uint64_t from,
			     uint64_t to)
{
	if (type == QEMU_PLUGIN_DISCON_INTERRUPT)
		vcpu_interrupted(vcpu, from, to);
	else
		vcpu_excepted(vcpu, from);
}

#if PLUGIN_API_VERSION < 7
static void on_interrupt(qemu_plugin_id_t id, unsigned int vcpu, enum qemu_plugin_discon_type type,
			 uint64_t from, uint64_t to)
{
	(void)id;
	on_discontinuity(vcpu, type, from, to);
}
#else
static void on_interrupt(unsigned int vcpu, enum qemu_plugin_discon_type type, uint64_t from,
			 uint64_t to, void *userdata)
{
	(void)userdata;
	on_discontinuity(vcpu, type, from, to);
}
#endif

static bool has_interrupts(void)
{
	return qemu_plugin_register_vcpu_discon_cb;
}

static void follow_interrupts(qemu_plugin_id_t id)
{
	if (has_interrupts())
		qemu_plugin_register_vcpu_discon_cb(
			id,
			QEMU_PLUGIN_DISCON_INTERRUPT |
				(engine_is_on() ? QEMU_PLUGIN_DISCON_EXCEPTION : 0),
			on_interrupt FOR_ALL);
}
#endif

uint32_t interface_sees(void)
{
	return (PLUGIN_API_VERSION >= 2 ? SEES_REGISTERS : 0) | (INLINE_BLOCKS ? SEES_INLINE : 0) |
	       (has_interrupts() ? SEES_INTERRUPTS : 0) |
	       (PLUGIN_API_VERSION >= 4 ? SEES_UPDATES : 0) | (engine_is_on() ? SEES_ENGINE : 0);
}

bool interface_register(qemu_plugin_id_t id)
{
	if (!owns_prepare())
		return false;
	qemu_plugin_register_vcpu_tb_trans_cb(id, on_translate FOR_ALL);
	qemu_plugin_register_vcpu_idle_cb(id, on_halt FOR_ALL);
	qemu_plugin_register_vcpu_resume_cb(id, on_resume FOR_ALL);
	follow_interrupts(id);
	return true;
}
