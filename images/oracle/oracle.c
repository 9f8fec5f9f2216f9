// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * The oracle: a TCG plugin that sees which code each vCPU executes while another thread of its core
 * is in WRMSR 0x79 (design, sections 2 and 5). It only looks, but for holding that one WRMSR open
 * as long as it is told to, and in stall mode the siblings meanwhile.
 *
 * Callbacks run in the vCPUs' threads, all at the same time and without QEMU's big lock.
 */
#include "gaps.h"
#include "hazards.h"
#include "install.h"
#include "landmarks.h"
#include "phase.h"
#include "places.h"
#include "qemu_plugin_api.h"
#include "ring.h"
#include "state.h"
#include "window.h"

PLUGIN_EXPORT int qemu_plugin_version = PLUGIN_API_VERSION;

struct oracle oracle;

/* Apart, so that the way every block takes saves no registers for it. */
static __attribute__((noinline)) void watched_block(unsigned int vcpu, uint64_t packed,
						    uint32_t watch)
{
	uint64_t tsc = now_tsc();
	bool closed = false;

	if (watch & WATCH_LOAD)
		gap_seen(&oracle.vcpus[vcpu], tsc);
	if (watch & WATCH_WINDOW)
		closed = window_block(vcpu, packed, tsc);
	/* Last: a block that closes its core's window is in the phase behind it. */
	if (watch & WATCH_PLACES)
		places_block(vcpu, pc_of(packed), closed);
}

static void on_block(unsigned int vcpu, void *userdata)
{
	uint32_t watch;

	store_relaxed(&oracle.vcpus[vcpu].block, (uint64_t)userdata);
	__atomic_signal_fence(__ATOMIC_SEQ_CST); /* for the compiler; the rest is in window.c */
	watch = load_acquire(&core_of(vcpu)->watch);
	if (__builtin_expect(watch, 0))
		watched_block(vcpu, (uint64_t)userdata, watch);
}

static void on_hazard(unsigned int vcpu, void *userdata)
{
	if (mark_of((uint64_t)userdata) == HAZARD_IRET)
		places_iret(vcpu);
	if (load_acquire(&core_of(vcpu)->watch) & WATCH_WINDOW)
		window_hazard(vcpu, (uint64_t)userdata);
}

static void on_enable(unsigned int vcpu, void *userdata)
{
	(void)userdata;
	places_enable(vcpu);
}

/* Loads are numbered whether armed or not, but only an armed one is watched. */
static void begin_load(uint32_t trial)
{
	struct oracle_status *status = &oracle.header->status;

	count_one(&status->load);
	store_release(&status->load_active, 1);
	if (trial)
		gaps_begin(trial);
}

static void end_load(void)
{
	struct oracle_status *status = &oracle.header->status;

	if (load_relaxed(&status->load_active)) {
		gaps_end();
		places_end();
	}
	store_release(&status->load_active, 0);
}

static void report_point(unsigned int vcpu, const struct point *point, uint32_t trial)
{
	struct oracle_status *status = &oracle.header->status;
	struct event event = {
		.kind = point->kind,
		.vcpu = vcpu,
		.pc = point->address,
		.load = load_acquire(&status->load_active) ? load_relaxed(&status->load) : 0,
		.trial = trial,
	};
	struct stamp stamp = ring_put(&event);

	if (event.kind == ORACLE_NMI_ENTRY)
		count_one(&status->nmi_entries);
	if (event.kind == ORACLE_LOAD_BEGIN || event.kind == ORACLE_LOAD_END)
		link_send(&event, &stamp);
}

static void reach_point(unsigned int vcpu, const struct point *point)
{
	uint32_t trial = armed_trial();
	uint32_t mechanism = load_relaxed(&oracle.header->control.mechanism) % ORACLE_MECHANISMS;

	if (trial && !(point->mechanisms >> mechanism & 1))
		return;
	if (point->kind == POINT_WRMSR79) {
		places_point(vcpu, ORACLE_WINDOW_OPEN, point->address);
		window_open(vcpu, point->address);
		return;
	}
	if (point->kind == ORACLE_LOAD_BEGIN)
		begin_load(trial);
	/* One that is held at its call-in has not called in. */
	if (point->kind == ORACLE_CALL_IN)
		places_point(vcpu, point->kind, point->address);
	if (trial) {
		report_point(vcpu, point, trial);
		phase_follow(vcpu, point->kind);
		/* Behind that: nobody is looked at in a phase of the load before. */
		if (point->kind == ORACLE_LOAD_BEGIN)
			places_begin(trial);
	}
	if (point->kind != ORACLE_CALL_IN)
		places_point(vcpu, point->kind, point->address);
	if (point->kind == ORACLE_LOAD_END)
		end_load();
}

static void on_points(unsigned int vcpu, void *userdata)
{
	const struct point *point = userdata;

	for (;; point++) {
		reach_point(vcpu, point);
		if (point->last_here)
			return;
	}
}

static void on_halt(qemu_plugin_id_t id, unsigned int vcpu)
{
	struct oracle_vcpu *own = &oracle.vcpus[vcpu];

	(void)id;
	if (load_acquire(&core_of(vcpu)->watch) & WATCH_LOAD)
		gap_seen(own, now_tsc());
	store_release(&own->halts, own->halts | 1);
}

static void on_resume(qemu_plugin_id_t id, unsigned int vcpu)
{
	struct oracle_vcpu *own = &oracle.vcpus[vcpu];

	(void)id;
	store_release(&own->halts, (own->halts | 1) + 1);
	if (load_acquire(&core_of(vcpu)->watch) & WATCH_LOAD)
		gap_restart(own);
}

static bool is_wrmsr(const struct qemu_plugin_insn *insn)
{
	const uint8_t *bytes = qemu_plugin_insn_data(insn);

	return qemu_plugin_insn_size(insn) == 2 && bytes[0] == 0x0f && bytes[1] == 0x30;
}

/* STI; what restores flags on the kernel's ways out of a rendezvous is one, too. */
static bool enables_interrupts(const struct qemu_plugin_insn *insn)
{
	return qemu_plugin_insn_size(insn) == 1 &&
	       *(const uint8_t *)qemu_plugin_insn_data(insn) == 0xfb;
}

static void watch_insn(struct qemu_plugin_insn *insn, uint64_t pc)
{
	const struct point *points = points_at(pc);
	enum oracle_hazard hazard =
		hazard_of(qemu_plugin_insn_data(insn), qemu_plugin_insn_size(insn));

	/* Landmarks of another kernel: an innocent instruction must not be taken for an update. */
	if (points && points->kind == POINT_WRMSR79 && !is_wrmsr(insn)) {
		count_one(&oracle.header->status.points_wrong);
		points = NULL;
	}

	/* The hazard first: a window that opens here is not this vCPU's own hazard. */
	if (hazard)
		qemu_plugin_register_vcpu_insn_exec_cb(insn, on_hazard, QEMU_PLUGIN_CB_NO_REGS,
						       (void *)pack(pc, hazard));
	if (enables_interrupts(insn))
		qemu_plugin_register_vcpu_insn_exec_cb(insn, on_enable, QEMU_PLUGIN_CB_NO_REGS,
						       NULL);
	if (points)
		qemu_plugin_register_vcpu_insn_exec_cb(insn, on_points, QEMU_PLUGIN_CB_NO_REGS,
						       (void *)points);
}

/* A block belongs to a wait region only if all of its instructions do. */
static void on_translate(qemu_plugin_id_t id, struct qemu_plugin_tb *tb)
{
	size_t count = qemu_plugin_tb_n_insns(tb);
	uint16_t regions = UINT16_MAX;

	(void)id;
	for (size_t i = 0; i < count; i++) {
		struct qemu_plugin_insn *insn = qemu_plugin_tb_get_insn(tb, i);
		uint64_t pc = qemu_plugin_insn_vaddr(insn);

		if (regions)
			regions &= regions_at(pc);
		watch_insn(insn, pc);
	}
	qemu_plugin_register_vcpu_tb_exec_cb(tb, on_block, QEMU_PLUGIN_CB_NO_REGS,
					     (void *)pack(qemu_plugin_tb_vaddr(tb), regions));
}

PLUGIN_EXPORT int qemu_plugin_install(qemu_plugin_id_t id, const qemu_info_t *info, int argc,
				      char **argv)
{
	struct options options;

	if (!qemu_fits(info) || !options_parse(argc, argv, &options) ||
	    !landmarks_read(options.landmarks) || !shm_map(options.shm, info, options.threads) ||
	    !window_prepare())
		return -1;

	oracle.link = options.link;
	read_clocks(&oracle.header->status.install_mono_ns, &oracle.header->status.install_tsc);
	qemu_plugin_register_vcpu_tb_trans_cb(id, on_translate);
	qemu_plugin_register_vcpu_idle_cb(id, on_halt);
	qemu_plugin_register_vcpu_resume_cb(id, on_resume);
	store_release(&oracle.header->status.installed, 1);
	return 0;
}
