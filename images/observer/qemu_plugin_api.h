/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The few entry points of QEMU's TCG plugin interface that the observer uses, in the shape that
 * each version of the interface gives them. Only interface.c calls what differs between versions.
 *
 * Distributions ship no header for it. This one declares only what is called here; QEMU resolves
 * the names when it loads the plugin. A QEMU takes a range of versions, and refuses others:
 *
 *   1  QEMU 7.2 to 8.2
 *   2  9.0: registers can be read, scoreboards
 *   3  9.1: an instruction's bytes are copied; conditional callbacks, inline stores
 *   4  9.2, 10.0: guest memory can be read
 *   5  10.1: registers can be written; 10.2 has discontinuity callbacks under this number, too
 *   6  11.0: the register calls answer with a bool, and a vCPU can be sent to another instruction
 *   7  11.1, which takes no other: callbacks get userdata in place of the plugin's id
 */
#ifndef QEMU_PLUGIN_API_H
#define QEMU_PLUGIN_API_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define PLUGIN_EXPORT __attribute__((visibility("default")))

/* The version to compile for; QEMU compares it with what it offers. */
#ifndef PLUGIN_API_VERSION
#define PLUGIN_API_VERSION 1
#endif

#if PLUGIN_API_VERSION < 1 || PLUGIN_API_VERSION > 7
#error "PLUGIN_API_VERSION is 1 to 7"
#endif

typedef uint64_t qemu_plugin_id_t;

/* Opaque: a block being translated, and one instruction of it. Both die with the callback. */
struct qemu_plugin_tb;
struct qemu_plugin_insn;

/* What QEMU tells of itself at install. */
typedef struct qemu_info_t {
	const char *target_name;
	struct {
		int min;
		int cur;
	} version;
	bool system_emulation;
	struct {
		int smp_vcpus;
		int max_vcpus;
	} system;
} qemu_info_t;

/* What a callback does to guest registers; version 1 can do no more than say that it does nothing.
 */
enum qemu_plugin_cb_flags {
	QEMU_PLUGIN_CB_NO_REGS = 0,
	QEMU_PLUGIN_CB_R_REGS = 1,
	QEMU_PLUGIN_CB_RW_REGS = 2,
	QEMU_PLUGIN_CB_RW_REGS_PC = 3,
};

typedef void (*qemu_plugin_vcpu_udata_cb_t)(unsigned int vcpu, void *userdata);

/* What the plugin gives QEMU. */
extern PLUGIN_EXPORT int qemu_plugin_version;
PLUGIN_EXPORT int qemu_plugin_install(qemu_plugin_id_t id, const qemu_info_t *info, int argc,
				      char **argv);

/* What QEMU gives the plugin. */
#if PLUGIN_API_VERSION < 7
typedef void (*qemu_plugin_vcpu_cb_t)(qemu_plugin_id_t id, unsigned int vcpu);
typedef void (*qemu_plugin_tb_trans_cb_t)(qemu_plugin_id_t id, struct qemu_plugin_tb *tb);

void qemu_plugin_register_vcpu_idle_cb(qemu_plugin_id_t id, qemu_plugin_vcpu_cb_t cb);
void qemu_plugin_register_vcpu_resume_cb(qemu_plugin_id_t id, qemu_plugin_vcpu_cb_t cb);
void qemu_plugin_register_vcpu_tb_trans_cb(qemu_plugin_id_t id, qemu_plugin_tb_trans_cb_t cb);
#else
typedef void (*qemu_plugin_vcpu_cb_t)(unsigned int vcpu, void *userdata);
typedef void (*qemu_plugin_tb_trans_cb_t)(struct qemu_plugin_tb *tb, void *userdata);

void qemu_plugin_register_vcpu_idle_cb(qemu_plugin_id_t id, qemu_plugin_vcpu_cb_t cb,
				       void *userdata);
void qemu_plugin_register_vcpu_resume_cb(qemu_plugin_id_t id, qemu_plugin_vcpu_cb_t cb,
					 void *userdata);
void qemu_plugin_register_vcpu_tb_trans_cb(qemu_plugin_id_t id, qemu_plugin_tb_trans_cb_t cb,
					   void *userdata);
#endif

void qemu_plugin_register_vcpu_tb_exec_cb(struct qemu_plugin_tb *tb, qemu_plugin_vcpu_udata_cb_t cb,
					  enum qemu_plugin_cb_flags flags, void *userdata);
void qemu_plugin_register_vcpu_insn_exec_cb(struct qemu_plugin_insn *insn,
					    qemu_plugin_vcpu_udata_cb_t cb,
					    enum qemu_plugin_cb_flags flags, void *userdata);

size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *tb);
uint64_t qemu_plugin_tb_vaddr(const struct qemu_plugin_tb *tb);
struct qemu_plugin_insn *qemu_plugin_tb_get_insn(const struct qemu_plugin_tb *tb, size_t index);
size_t qemu_plugin_insn_size(const struct qemu_plugin_insn *insn);
uint64_t qemu_plugin_insn_vaddr(const struct qemu_plugin_insn *insn);

#if PLUGIN_API_VERSION < 3
const void *qemu_plugin_insn_data(const struct qemu_plugin_insn *insn);
#else
size_t qemu_plugin_insn_data(const struct qemu_plugin_insn *insn, void *bytes, size_t size);
#endif

#if PLUGIN_API_VERSION >= 2
/* GLib's, which QEMU brings: a growing array of bytes, and one of elements. */
typedef struct {
	uint8_t *data;
	unsigned int len;
} GByteArray;

typedef struct {
	char *data;
	unsigned int len;
} GArray;

GByteArray *g_byte_array_new(void);
GByteArray *g_byte_array_set_size(GByteArray *array, unsigned int length);
unsigned int g_array_get_element_size(GArray *array);
char *g_array_free(GArray *array, int free_segment);

struct qemu_plugin_register;

typedef struct {
	struct qemu_plugin_register *handle;
	const char *name;
	const char *feature;
} qemu_plugin_reg_descriptor;

/* Of the vCPU whose thread calls. The bytes are appended. */
GArray *qemu_plugin_get_registers(void);
#if PLUGIN_API_VERSION < 6
int qemu_plugin_read_register(struct qemu_plugin_register *handle, GByteArray *bytes);
#else
bool qemu_plugin_read_register(struct qemu_plugin_register *handle, GByteArray *bytes);
#endif
#endif

#if PLUGIN_API_VERSION >= 4
/* By the page tables of the vCPU whose thread calls. The bytes replace those of the array. */
bool qemu_plugin_read_memory_vaddr(uint64_t address, GByteArray *bytes, size_t size);
#endif

#if PLUGIN_API_VERSION >= 6
/* Of the vCPU whose thread calls, in a callback that said so; the array has all of the register. */
bool qemu_plugin_write_register(struct qemu_plugin_register *handle, GByteArray *bytes);

/* The vCPU goes on there. Does not return. */
__attribute__((noreturn)) void qemu_plugin_set_pc(uint64_t address);
#endif

#if PLUGIN_API_VERSION >= 3
/* Memory that QEMU keeps for each vCPU, which its translated code reads and writes by itself. */
struct qemu_plugin_scoreboard;

typedef struct {
	struct qemu_plugin_scoreboard *score;
	size_t offset;
} qemu_plugin_u64;

enum qemu_plugin_op {
	QEMU_PLUGIN_INLINE_ADD_U64 = 0,
	QEMU_PLUGIN_INLINE_STORE_U64 = 1,
};

enum qemu_plugin_cond {
	QEMU_PLUGIN_COND_NE = 3,
};

struct qemu_plugin_scoreboard *qemu_plugin_scoreboard_new(size_t element_size);
void *qemu_plugin_scoreboard_find(struct qemu_plugin_scoreboard *score, unsigned int vcpu);
void qemu_plugin_register_vcpu_tb_exec_inline_per_vcpu(struct qemu_plugin_tb *tb,
						       enum qemu_plugin_op op,
						       qemu_plugin_u64 entry, uint64_t value);
void qemu_plugin_register_vcpu_tb_exec_cond_cb(struct qemu_plugin_tb *tb,
					       qemu_plugin_vcpu_udata_cb_t cb,
					       enum qemu_plugin_cb_flags flags,
					       enum qemu_plugin_cond cond, qemu_plugin_u64 entry,
					       uint64_t value, void *userdata);
#endif

#if PLUGIN_API_VERSION >= 5
enum qemu_plugin_discon_type {
	QEMU_PLUGIN_DISCON_INTERRUPT = 1,
	QEMU_PLUGIN_DISCON_EXCEPTION = 2,
};

#if PLUGIN_API_VERSION < 7
typedef void (*qemu_plugin_vcpu_discon_cb_t)(qemu_plugin_id_t id, unsigned int vcpu,
					     enum qemu_plugin_discon_type type, uint64_t from,
					     uint64_t to);

/* QEMU 10.1 has no such function, and 10.2 offers the same version with it. */
__attribute__((weak)) void qemu_plugin_register_vcpu_discon_cb(qemu_plugin_id_t id,
							       enum qemu_plugin_discon_type type,
							       qemu_plugin_vcpu_discon_cb_t cb);
#else
typedef void (*qemu_plugin_vcpu_discon_cb_t)(unsigned int vcpu, enum qemu_plugin_discon_type type,
					     uint64_t from, uint64_t to, void *userdata);

__attribute__((weak)) void qemu_plugin_register_vcpu_discon_cb(qemu_plugin_id_t id,
							       enum qemu_plugin_discon_type type,
							       qemu_plugin_vcpu_discon_cb_t cb,
							       void *userdata);
#endif
#endif

#endif /* QEMU_PLUGIN_API_H */
