// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * The observer: a TCG plugin that sees which code each vCPU executes while another thread of its
 * core is in WRMSR 0x79 (design, sections 2 and 5). It only looks, but for holding that one WRMSR
 * open as long as it is told to, and in stall mode the siblings meanwhile; and where it is told to
 * it answers for the engine that takes updates (engine.c).
 *
 * Callbacks run in the vCPUs' threads, all at the same time and without QEMU's big lock.
 */
#include "engine.h"
#include "gaps.h"
#include "hazards.h"
#include "install.h"
#include "landmarks.h"
#include "phase.h"
#include "places.h"
#include "ring.h"
#include "state.h"
#include "window.h"

#define CB_READS (PLUGIN_API_VERSION >= 2 ? QEMU_PLUGIN_CB_R_REGS : QEMU_PLUGIN_CB_NO_REGS)

struct observer observer;

/* One more than the trial in which a vCPU was last seen to take an NMI, until it is at the entry.
 */
static uint64_t taken[OBSERVER_MAX_VCPUS];

/* What the lab reads of a vCPU that is watched or halted; its own words are QEMU's. */
static void show_block(unsigned int vcpu, uint64_t packed)
{
	store_relaxed(&observer.vcpus[vcpu].block, packed);
}

static void watch_rest(unsigned int vcpu)
{
	if (armed_trial() != load_relaxed(&observer.header->status.watched_trial))
		__atomic_fetch_and(&own_of(vcpu)->watch, ~(uint64_t)WATCH_REST, __ATOMIC_RELAXED);
}

void watched_block(unsigned int vcpu, uint64_t packed)
{
	uint64_t watch = watch_of(vcpu);
	uint64_t tsc = now_tsc();
	bool closed = false;

	show_block(vcpu, packed);
	if (watch & WATCH_REST)
		watch_rest(vcpu);
	if (watch & WATCH_LOAD)
		gap_seen(&observer.vcpus[vcpu], tsc);
	if (watch & WATCH_WINDOW)
		closed = window_block(vcpu, packed, tsc);
	/* Last: a block that closes its core's window is in the phase behind it. */
	if (watch & WATCH_PLACES)
		places_block(vcpu, pc_of(packed), closed);
}

static void on_hazard(unsigned int vcpu, void *userdata)
{
	if (mark_of((uint64_t)userdata) == HAZARD_IRET)
		places_iret(vcpu);
	if (watch_of(vcpu) & WATCH_WINDOW)
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
	struct observer_status *status = &observer.header->status;

	count_one(&status->load);
	store_release(&status->load_active, 1);
	if (trial)
		gaps_begin(trial);
}

static void end_load(void)
{
	struct observer_status *status = &observer.header->status;

	if (load_relaxed(&status->load_active)) {
		for (uint32_t i = 0; armed_trial() && i < observer.core_count; i++)
			watch_core(&observer.cores[i], WATCH_REST);
		gaps_end();
		places_end();
	}
	store_release(&status->load_active, 0);
}

static void report_point(unsigned int vcpu, const struct point *point, uint32_t trial)
{
	struct observer_status *status = &observer.header->status;
	struct event event = {
		.kind = point->kind,
		.vcpu = vcpu,
		.pc = point->address,
		.load = load_acquire(&status->load_active) ? load_relaxed(&status->load) : 0,
		.trial = trial,
	};
	struct stamp stamp = ring_put(&event);

	if (event.kind == OBSERVER_NMI_ENTRY)
		count_one(&status->nmi_entries);
	if (event.kind == OBSERVER_LOAD_BEGIN || event.kind == OBSERVER_LOAD_END)
		link_send(&event, &stamp);
}

/* An NMI's two records are of one trial, also where one begins or ends between them. */
static uint32_t trial_of(unsigned int vcpu, uint32_t kind)
{
	uint64_t pending = kind == OBSERVER_NMI_ENTRY ? taken[vcpu] : 0;

	if (!pending)
		return armed_trial();
	taken[vcpu] = 0;
	return pending - 1;
}

static void reach_point(unsigned int vcpu, const struct point *point)
{
	uint32_t trial = trial_of(vcpu, point->kind);
	uint32_t mechanism =
		load_relaxed(&observer.header->control.mechanism) % OBSERVER_MECHANISMS;

	if (trial && !(point->mechanisms >> mechanism & 1))
		return;
	if (point->kind == OBSERVER_LOAD_BEGIN)
		begin_load(trial);
	/* One that is held at its call-in has not called in. */
	if (point->kind == OBSERVER_CALL_IN)
		places_point(vcpu, point->kind, point->address);
	if (trial) {
		report_point(vcpu, point, trial);
		phase_follow(vcpu, point->kind);
		/* Behind that: nobody is looked at in a phase of the load before. */
		if (point->kind == OBSERVER_LOAD_BEGIN)
			places_begin(trial);
	}
	if (point->kind != OBSERVER_CALL_IN)
		places_point(vcpu, point->kind, point->address);
	if (point->kind == OBSERVER_LOAD_END)
		end_load();
}

static void on_points(unsigned int vcpu, void *userdata)
{
	const struct point *point = userdata;

	for (;; point++) {
		if (point->kind != POINT_WRMSR79)
			reach_point(vcpu, point);
		if (point->last_here)
			return;
	}
}

/*
 * A vCPU is about to execute a WRMSR that is a landmark or, where registers can be read, any. The
 * register's number decides where it is known: a landmark whose WRMSR writes another MSR is one of
 * another kernel. The mark is the instruction's length.
 */
static void on_wrmsr(unsigned int vcpu, void *userdata)
{
	uint64_t pc = pc_of((uint64_t)userdata);
	bool marked;
	uint32_t ecx;

	if (!armed_trial() && !engine_is_on())
		return;
	marked = has_point(pc, POINT_WRMSR79);
	if (!read_gpr(vcpu, GPR_ECX, &ecx)) {
		if (!marked)
			return;
	} else if (ecx != MSR_UCODE_WRITE) {
		if (marked && armed_trial())
			count_one(&observer.header->status.points_wrong);
		if (engine_is_on() && ecx == MSR_UCODE_REV)
			engine_write_revision(vcpu);
		return;
	}
	if (armed_trial()) {
		places_point(vcpu, OBSERVER_WINDOW_OPEN, pc);
		window_open(vcpu, pc, mark_of((uint64_t)userdata));
	}
	/* Behind the time for which the window is held: as late as the instruction itself. */
	if (interface_sees() & SEES_UPDATES)
		engine_update(vcpu, pc);
}

static void on_cpuid(unsigned int vcpu, void *userdata)
{
	(void)userdata;
	engine_cpuid(vcpu);
}

static void on_cpuid_done(unsigned int vcpu, void *userdata)
{
	(void)userdata;
	engine_cpuid_done(vcpu);
}

static void on_last_cpuid(unsigned int vcpu, void *userdata)
{
	(void)userdata;
	engine_cpuid(vcpu);
	engine_cpuid_missed(vcpu);
}

static void on_rdmsr_done(unsigned int vcpu, void *userdata)
{
	(void)userdata;
	engine_answer(vcpu);
}

static void on_last_rdmsr(unsigned int vcpu, void *userdata)
{
	engine_read_instead(vcpu, (uint64_t)userdata);
}

void vcpu_halts(unsigned int vcpu)
{
	struct observer_vcpu *own = &observer.vcpus[vcpu];

	if (watch_of(vcpu) & WATCH_LOAD)
		gap_seen(own, now_tsc());
	show_block(vcpu, load_relaxed(&own_of(vcpu)->block));
	store_release(&own->halts, own->halts | 1);
}

void vcpu_resumes(unsigned int vcpu)
{
	struct observer_vcpu *own = &observer.vcpus[vcpu];

	store_release(&own->halts, (own->halts | 1) + 1);
	if (watch_of(vcpu) & WATCH_LOAD)
		gap_restart(own);
}

void vcpu_interrupted(unsigned int vcpu, uint64_t from, uint64_t to)
{
	const struct observer_status *status = &observer.header->status;
	struct event event = {
		.kind = OBSERVER_NMI_TAKEN,
		.vcpu = vcpu,
		.pc = to,
		.trial = armed_trial(),
		.detail = from,
	};

	if (!has_point(to, OBSERVER_NMI_ENTRY))
		return;
	taken[vcpu] = event.trial + 1ull;
	if (!event.trial)
		return;
	event.load = load_acquire(&status->load_active) ? load_relaxed(&status->load) : 0;
	ring_put(&event);
}

void vcpu_excepted(unsigned int vcpu, uint64_t from)
{
	engine_excepted(vcpu, from);
}

/* STI; what restores flags on the kernel's ways out of a rendezvous is one, too. */
static bool enables_interrupts(const uint8_t *bytes, size_t size)
{
	return size == 1 && bytes[0] == 0xfb;
}

/*
 * An RDMSR is answered for in front of the instruction that follows. One that ends its block has
 * none that is known to follow it: it is executed here, and its vCPU sent on. Last of all that is
 * asked for at it, for nothing behind that would be called.
 */
static void serve_engine(struct qemu_plugin_insn *insn, uint64_t pc, const uint8_t *bytes,
			 size_t size, struct qemu_plugin_insn *next)
{
	if (hazard_of(bytes, size) == HAZARD_CPUID) {
		qemu_plugin_register_vcpu_insn_exec_cb(insn, next ? on_cpuid : on_last_cpuid,
						       CB_READS, NULL);
		if (next)
			qemu_plugin_register_vcpu_insn_exec_cb(next, on_cpuid_done,
							       QEMU_PLUGIN_CB_RW_REGS, NULL);
	}
	if (!is_rdmsr(bytes, size))
		return;
	if (next)
		qemu_plugin_register_vcpu_insn_exec_cb(next, on_rdmsr_done, QEMU_PLUGIN_CB_RW_REGS,
						       NULL);
	else
		qemu_plugin_register_vcpu_insn_exec_cb(
			insn, on_last_rdmsr, QEMU_PLUGIN_CB_RW_REGS_PC, (void *)(pc + size));
}

static void watch_insn(struct qemu_plugin_insn *insn, uint64_t pc, struct qemu_plugin_insn *next)
{
	uint8_t bytes[MAX_INSN_BYTES];
	size_t size = insn_bytes(insn, bytes);
	const struct point *points = points_at(pc);
	enum observer_hazard hazard = hazard_of(bytes, size);
	bool marked = has_point(pc, POINT_WRMSR79);

	/* The hazard first: a window that opens here is not this vCPU's own hazard. */
	if (hazard)
		qemu_plugin_register_vcpu_insn_exec_cb(insn, on_hazard, QEMU_PLUGIN_CB_NO_REGS,
						       (void *)pack(pc, hazard));
	if (enables_interrupts(bytes, size))
		qemu_plugin_register_vcpu_insn_exec_cb(insn, on_enable, QEMU_PLUGIN_CB_NO_REGS,
						       NULL);
	if (points && points->kind != POINT_WRMSR79)
		qemu_plugin_register_vcpu_insn_exec_cb(insn, on_points, QEMU_PLUGIN_CB_NO_REGS,
						       (void *)points);
	/* Landmarks of another kernel: an innocent instruction must not be taken for an update. */
	if (!is_wrmsr(bytes, size)) {
		if (marked)
			count_one(&observer.header->status.points_wrong);
	} else if (marked || interface_sees() & SEES_REGISTERS) {
		qemu_plugin_register_vcpu_insn_exec_cb(
			insn, on_wrmsr, engine_is_on() ? QEMU_PLUGIN_CB_RW_REGS : CB_READS,
			(void *)pack(pc, size));
	}
	if (engine_is_on())
		serve_engine(insn, pc, bytes, size, next);
}

/* A block belongs to a wait region only if all of its instructions do. */
void translate_block(struct qemu_plugin_tb *tb)
{
	size_t count = qemu_plugin_tb_n_insns(tb);
	uint16_t regions = UINT16_MAX;

	for (size_t i = 0; i < count; i++) {
		struct qemu_plugin_insn *insn = qemu_plugin_tb_get_insn(tb, i);
		struct qemu_plugin_insn *next =
			i + 1 < count ? qemu_plugin_tb_get_insn(tb, i + 1) : NULL;
		uint64_t pc = qemu_plugin_insn_vaddr(insn);

		if (regions)
			regions &= regions_at(pc);
		watch_insn(insn, pc, next);
	}
	follow_block(tb, pack(qemu_plugin_tb_vaddr(tb), regions));
}

PLUGIN_EXPORT int qemu_plugin_install(qemu_plugin_id_t id, const qemu_info_t *info, int argc,
				      char **argv)
{
	struct options options;

	if (!qemu_fits(info) || !options_parse(argc, argv, &options) || !engine_prepare(&options) ||
	    !landmarks_read(options.landmarks) || !shm_map(options.shm, info, options.threads) ||
	    !window_prepare())
		return -1;

	observer.header->status.interface = PLUGIN_API_VERSION;
	observer.header->status.sees = interface_sees();
	observer.link = options.link;
	read_clocks(&observer.header->status.install_mono_ns, &observer.header->status.install_tsc);
	if (!interface_register(id))
		return -1;
	store_release(&observer.header->status.installed, 1);
	return 0;
}
