// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * How a revision is read (SDM 3A, 9.11.7): a write of 0 to IA32_BIOS_SIGN_ID, then CPUID with
 * EAX=1, which puts the revision into its high half, then RDMSR. So each vCPU has what the MSR
 * holds, and each core has the revision: its threads share what takes updates.
 */
#include "engine.h"

#include "ring.h"
#include "state.h"
#include "update.h"

#define CS_CPL 3

/* The leaf whose EDX has MD_CLEAR (SDM 2A, CPUID): what real updates have brought. */
#define LEAF_FEATURES 7
#define MD_CLEAR      (1u << 10)

/* A WRMSR of this one with reserved bits set faults, and changes nothing (SDM 3A, 11.4.4). */
#define MSR_APIC_BASE 0x1b

static struct {
	bool on;
	struct update_for processor;
	uint32_t revisions[OBSERVER_MAX_CORES];
	uint64_t updates; /* written so far, by any */
	uint32_t changed; /* 1: MD_CLEAR is another one than QEMU's */
	uint32_t changed_load;
} engine;

/* Each is used by its vCPU's thread alone. */
static struct {
	uint32_t shown;	   /* the high half of MSR 0x8B */
	uint64_t fault_pc; /* of a WRMSR that is made to fault, 0 for none */
	uint32_t eax;	   /* as they were before */
	uint32_t edx;
	bool features; /* it is executing CPUID of that leaf */
} __attribute__((aligned(64))) own[OBSERVER_MAX_VCPUS];

bool engine_is_on(void)
{
	return engine.on;
}

bool engine_prepare(const struct options *options)
{
	if (options->engine && !CAN_BE_ENGINE) {
		complain("option engine is 'on': plugin interface %d cannot write registers; "
			 "allowed from interface 6 on",
			 PLUGIN_API_VERSION);
		return false;
	}
	engine.on = options->engine;
	engine.processor = (struct update_for){options->signature, options->platforms};
	for (unsigned int core = 0; core < OBSERVER_MAX_CORES; core++)
		engine.revisions[core] = options->revision;
	for (unsigned int vcpu = 0; vcpu < OBSERVER_MAX_VCPUS; vcpu++)
		own[vcpu].shown = options->revision;
	return true;
}

static uint32_t *revision_of(unsigned int vcpu)
{
	return &engine.revisions[core_of(vcpu) - observer.cores];
}

static enum observer_taken decide(unsigned int vcpu, const struct observer_update *update)
{
	if (update->revision < update->before)
		return TAKEN_OLDER;
	/* What a trial asks for ends with it. */
	if (!armed_trial())
		return TAKEN_DONE;
	switch (load_relaxed(&observer.header->control.engine)) {
	case ENGINE_REFUSES:
		return TAKEN_REFUSED;
	case ENGINE_FAULTS:
		return TAKEN_FAULT;
	case ENGINE_OTHER_REVISION:
		return TAKEN_OTHER;
	case ENGINE_ONE_CORE:
		return core_of(vcpu) == observer.cores ? TAKEN_DONE : TAKEN_REFUSED;
	}
	return TAKEN_DONE;
}

static void fault(unsigned int vcpu, uint64_t pc)
{
	if (!read_gpr(vcpu, GPR_EAX, &own[vcpu].eax) || !read_gpr(vcpu, GPR_EDX, &own[vcpu].edx))
		return;
	own[vcpu].fault_pc = pc;
	write_gpr(vcpu, GPR_ECX, MSR_APIC_BASE);
	write_gpr(vcpu, GPR_EAX, UINT32_MAX);
	write_gpr(vcpu, GPR_EDX, UINT32_MAX);
}

/* The handler finds the registers as the WRMSR had them. */
void engine_excepted(unsigned int vcpu, uint64_t from)
{
	if (!own[vcpu].fault_pc || own[vcpu].fault_pc != from)
		return;
	own[vcpu].fault_pc = 0;
	write_gpr(vcpu, GPR_ECX, MSR_UCODE_WRITE);
	write_gpr(vcpu, GPR_EAX, own[vcpu].eax);
	write_gpr(vcpu, GPR_EDX, own[vcpu].edx);
}

/* Once in a load, by the first core that is updated in it. */
static void change_features(void)
{
	uint32_t load = load_relaxed(&observer.header->status.load);

	if (__atomic_exchange_n(&engine.changed_load, load, __ATOMIC_ACQ_REL) != load)
		__atomic_fetch_xor(&engine.changed, 1, __ATOMIC_RELEASE);
}

static void take(unsigned int vcpu, uint64_t pc, struct observer_update *update)
{
	update->before = load_relaxed(revision_of(vcpu));
	if (update->taken == TAKEN_UNASKED)
		update->taken = decide(vcpu, update);
	if (update->taken == TAKEN_DONE) {
		store_release(revision_of(vcpu), update->revision);
		if (armed_trial() &&
		    load_relaxed(&observer.header->control.engine) == ENGINE_CPUID_CHANGES)
			change_features();
	} else if (update->taken == TAKEN_OTHER) {
		store_release(revision_of(vcpu), update->revision + 1);
	} else if (update->taken == TAKEN_FAULT) {
		fault(vcpu, pc);
	}
	update->after = load_relaxed(revision_of(vcpu));
}

/* Claimed by its number, so that a reader sees which of those that fell into one place it has. */
static void put(unsigned int vcpu, uint64_t pc, const struct observer_update *update)
{
	const struct observer_status *status = &observer.header->status;
	struct event event = {
		.kind = OBSERVER_UPDATE,
		.vcpu = vcpu,
		.pc = pc,
		.trial = armed_trial(),
		.detail = __atomic_add_fetch(&engine.updates, 1, __ATOMIC_RELAXED),
	};
	struct observer_update *place = &observer.updates[event.detail % OBSERVER_UPDATES];

	if (!event.trial)
		return;
	event.load = load_acquire(&status->load_active) ? load_relaxed(&status->load) : 0;
	store_release(&place->number, 0);
	__atomic_thread_fence(__ATOMIC_RELEASE);
	*place = *update;
	store_release(&place->number, event.detail);
	ring_put(&event);
}

void engine_update(unsigned int vcpu, uint64_t pc)
{
	struct observer_update update = {0};

	update.taken = update_read(vcpu, engine.on ? &engine.processor : NULL, &update);
	if (engine.on)
		take(vcpu, pc, &update);
	put(vcpu, pc, &update);
}

void engine_write_revision(unsigned int vcpu)
{
	uint32_t edx;

	if (read_gpr(vcpu, GPR_EDX, &edx))
		own[vcpu].shown = edx;
}

void engine_cpuid(unsigned int vcpu)
{
	uint32_t eax;
	uint32_t ecx;

	own[vcpu].features = false;
	if (!read_gpr(vcpu, GPR_EAX, &eax))
		return;
	if (eax == 1)
		own[vcpu].shown = load_acquire(revision_of(vcpu));
	else if (eax == LEAF_FEATURES && read_gpr(vcpu, GPR_ECX, &ecx))
		own[vcpu].features = !ecx && load_acquire(&engine.changed);
}

void engine_cpuid_done(unsigned int vcpu)
{
	uint32_t edx;

	if (own[vcpu].features && read_gpr(vcpu, GPR_EDX, &edx))
		write_gpr(vcpu, GPR_EDX, edx ^ MD_CLEAR);
	own[vcpu].features = false;
}

void engine_cpuid_missed(unsigned int vcpu)
{
	if (own[vcpu].features)
		count_one(&observer.header->status.cpuid_missed);
}

bool engine_answer(unsigned int vcpu)
{
	uint32_t ecx;

	if (!read_gpr(vcpu, GPR_ECX, &ecx) || ecx != MSR_UCODE_REV)
		return false;
	return write_gpr(vcpu, GPR_EAX, 0) && write_gpr(vcpu, GPR_EDX, own[vcpu].shown);
}

void engine_read_instead(unsigned int vcpu, uint64_t next)
{
	uint32_t cs;

	/* User space gets the fault that is due. */
	if (!read_gpr(vcpu, GPR_CS, &cs) || cs & CS_CPL || !engine_answer(vcpu))
		return;
	go_on_at(next);
}
