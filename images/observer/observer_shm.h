/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The file that the observer and the lab share. lab/observer/layout.py mirrors it, and a test
 * holds the two together. The lab makes and sizes the file, the observer checks it and maps it; the
 * guest cannot reach it.
 *
 *   header (one page) | vCPUs | windows, one per core | siblings, one per vCPU |
 *   block tables, one per vCPU | cover tables, one per vCPU | updates | ring of records
 *
 * All of it outlives QEMU.
 */
#ifndef OBSERVER_SHM_H
#define OBSERVER_SHM_H

#include <stdint.h>

#define OBSERVER_MAGIC	     0x6c63616c62616c6dull
#define OBSERVER_SHM_VERSION 7
#define OBSERVER_HEADER_SIZE 4096
#define OBSERVER_MAX_VCPUS   64
#define OBSERVER_MAX_CORES   16
#define OBSERVER_HAZARDS     16
#define OBSERVER_MECHANISMS  16
#define OBSERVER_HOLDS	     16
#define OBSERVER_HOLD_SIZE   64
#define OBSERVER_UPDATES     256

/* What a record reports: lab.model.evidence.EventKind, in its order. */
enum observer_kind {
	OBSERVER_LOAD_BEGIN = 1,
	OBSERVER_LOAD_END = 2,
	OBSERVER_CALL_IN = 3,
	OBSERVER_RELEASE = 4,
	OBSERVER_SELF_NMI = 5,
	OBSERVER_WAIT_LOOP = 6,
	OBSERVER_NMI_ENTRY = 7,
	OBSERVER_WINDOW_OPEN = 8,
	OBSERVER_WINDOW_CLOSE = 9,
	OBSERVER_IN_FLIGHT = 10,
	OBSERVER_OUTSIDE = 11,
	OBSERVER_HAZARD = 12,
	OBSERVER_RETRY = 13,
	OBSERVER_EARLY = 14,
	OBSERVER_IPI_NMI = 15,
	OBSERVER_HELD = 16,	    /* a vCPU is held; the detail is which hold */
	OBSERVER_LET_GO = 17,	    /* and goes on, told to */
	OBSERVER_HOLD_OVERRUN = 18, /* or since its bound ended */
	OBSERVER_RESUMED = 19,	    /* the first block that it begins after a hold */
	OBSERVER_BACKTRACE = 20,    /* the kernel is about to send NMIs for backtraces */
	OBSERVER_NMI_TAKEN = 21,    /* QEMU enters an NMI; the detail is the instruction put off */
	OBSERVER_NMI_HANDLER = 22,  /* it calls a chain of ordinary NMI handlers */
	OBSERVER_UPDATE = 23,	    /* what a WRMSR 0x79 names; the detail is the update's number */
};

/* What more than version 1 the interface of the QEMU at hand shows: lab.model.evidence.Sees. */
enum observer_sees {
	SEES_REGISTERS = 1,  /* each WRMSR's register number */
	SEES_INLINE = 2,     /* blocks are stored by QEMU's own code */
	SEES_INTERRUPTS = 4, /* where interrupts are taken, and to which address */
	SEES_UPDATES = 8,    /* which bytes a WRMSR 0x79 names */
	SEES_ENGINE = 16,    /* and the observer answers for the engine that takes them */
};

/* What becomes of an update that is written: lab.model.evidence.Taken, in its order. */
enum observer_taken {
	TAKEN_UNASKED = 1,    /* no engine of the observer's: it was looked at only */
	TAKEN_DONE = 2,	      /* its core has the revision of its header */
	TAKEN_OTHER = 3,      /* or, as told to, another one */
	TAKEN_REFUSED = 4,    /* refused, as told to */
	TAKEN_FAULT = 5,      /* the WRMSR faults, as told to */
	TAKEN_UNREADABLE = 6, /* refused: there is no memory where it should be */
	TAKEN_MALFORMED = 7,  /* its header's versions or sizes are none that there are */
	TAKEN_CHECKSUM = 8,   /* the sum of its words is not 0 */
	TAKEN_SIGNATURE = 9,  /* it is for another CPU */
	TAKEN_PLATFORM = 10,  /* or for other platforms */
	TAKEN_OLDER = 11,     /* it is older than what the core has */
};

/* How the engine treats a sound update: lab.model.engine.Engine, in its order. */
enum observer_engine {
	ENGINE_TAKES = 0,
	ENGINE_REFUSES = 1,
	ENGINE_FAULTS = 2,
	ENGINE_OTHER_REVISION = 3, /* the core has one above the header's afterwards */
	ENGINE_ONE_CORE = 4,	   /* core 0 takes it, all others refuse */
	ENGINE_CPUID_CHANGES = 5,  /* all take it, and a bit of CPUID is another one afterwards */
};

/* Where a late load is, seen from one core: lab.model.phase.Phase, in its order. */
enum observer_phase {
	PHASE_ANY = 0,
	PHASE_BEFORE = 1,
	PHASE_GATHER = 2,  /* begun, and not all threads of the core have called in */
	PHASE_ARMED = 3,   /* all have */
	PHASE_WINDOW = 4,  /* the core is being updated */
	PHASE_CLOSING = 5, /* it is, and no sibling has been let go */
	PHASE_RELEASE = 6, /* siblings leave */
	PHASE_AFTER = 7,   /* the load has ended */
};

/* Classes of hazards: lab.model.evidence.Hazard, in its order. */
enum observer_hazard {
	HAZARD_NONE = 0,
	HAZARD_MSR = 1,
	HAZARD_IRET = 2,
	HAZARD_MWAIT = 3,
	HAZARD_CPUID = 4,
	HAZARD_SWAPGS = 5,
	HAZARD_GSBASE = 6,
	HAZARD_DR_CR = 7,
	HAZARD_OTHER = 8,
};

enum observer_mode {
	OBSERVER_MODE_RUN = 0,	 /* siblings run on during a window */
	OBSERVER_MODE_STALL = 1, /* each is held at its next block until the window closes */
};

/* One event. Numbers start at 1; the stamp is the number, written last, 0 while none is there. */
struct observer_record {
	uint64_t stamp;
	uint64_t mono_ns;
	uint64_t tsc;
	uint64_t pc;
	uint16_t kind;
	uint16_t vcpu;
	uint16_t core;
	uint16_t hazard;
	uint32_t load;
	uint32_t trial;
	/* Which hold, what an NMI interrupted, how long a WRMSR 0x79 is, or an update's number. */
	uint64_t detail;
	uint64_t reserved;
};

/* Shape, written by the lab before QEMU starts and never again. */
struct observer_shape {
	uint64_t magic;
	uint32_t version;
	uint32_t record_size;
	uint32_t vcpu_size;
	uint32_t window_size;
	uint32_t sibling_size;
	uint32_t block_size;
	uint32_t vcpus;
	uint32_t threads;
	uint32_t ring_records;
	uint32_t table_blocks; /* a power of two */
	uint32_t cover_blocks; /* a power of two */
	uint32_t cover_size;
	uint32_t update_size;
	uint32_t reserved;
	uint64_t total_size;
	uint64_t vcpu_offset;
	uint64_t window_offset;
	uint64_t sibling_offset;
	uint64_t table_offset;
	uint64_t cover_offset;
	uint64_t update_offset;
	uint64_t ring_offset;
};

/* What the lab asks for; all of it is set before armed_trial is. */
struct observer_control {
	uint32_t armed_trial; /* 0 is not armed */
	uint32_t mechanism;   /* bit of the regions and points that count */
	uint32_t mode;
	uint32_t live_blocks; /* wait-region blocks that show a sibling to be alive */
	uint64_t extend_bound_ns;
	uint64_t stretch_ns[OBSERVER_MAX_CORES];
	uint32_t nmis_sent;	 /* of this trial, written before each is sent */
	uint32_t nmis_acked;	 /* and after each is acknowledged */
	uint64_t stall_bound_ns; /* how much longer than its stretch a window stalls siblings */
	uint32_t holds;		 /* how many there are */
	uint32_t cover;		 /* 1: count all blocks of the load in the cover tables */
	uint32_t engine;	 /* enum observer_engine */
	uint32_t reserved[9];
};

/*
 * Where one vCPU is to be held: right before a block, or at a landmark. The vCPU waits there until
 * let_go is the trial's number, or the bound ends; first for its phase to begin, if it may be
 * early.
 */
struct observer_hold {
	uint64_t address; /* of a block or a landmark, 0 for any, or any of its kind */
	uint64_t bound_ns;
	uint32_t kind; /* of a landmark (enum observer_kind), 0 for a block */
	uint32_t vcpu;
	uint32_t phase;	  /* of the vCPU's core, PHASE_ANY for any */
	uint32_t arrival; /* at which it is held, 1 for the first that counts */
	uint32_t let_go;
	uint32_t arrivals; /* so far in the trial, written by that vCPU's thread only */
	uint32_t early;	   /* 1: arrivals count from the load's begin, and it waits for the phase */
	uint32_t reserved[5];
};

/* What the observer tells; each counter only grows. */
struct observer_status {
	uint64_t install_mono_ns; /* with install_tsc, the first pair that ties the two clocks */
	uint64_t install_tsc;
	uint64_t nmi_entries;	 /* recorded, over all trials */
	uint64_t load_begin_tsc; /* of the last watched load */
	uint64_t load_end_tsc;
	uint32_t load; /* late loads begun since the guest started */
	uint32_t load_active;
	uint32_t link_failures;
	uint32_t windows_lost;
	uint32_t installed;
	uint32_t watched_load; /* the last load of an armed trial, which gaps are looked for in */
	uint32_t watched_trial;
	uint32_t covers_lost;  /* blocks that found no place in a cover table, over all trials */
	uint32_t points_wrong; /* WRMSR 0x79 of the landmark file that are another instruction */
	uint32_t interface;    /* the version of the plugin interface */
	uint32_t sees;	       /* enum observer_sees */
	uint32_t cpuid_missed; /* CPUIDs whose changed bit could not be shown */
};

struct observer_header {
	struct observer_shape shape;
	uint8_t pad_shape[256 - sizeof(struct observer_shape)];
	struct observer_control control;
	uint8_t pad_control[512 - sizeof(struct observer_control)];
	struct observer_status status;
	uint8_t pad_status[256 - sizeof(struct observer_status)];
	uint64_t next_seq; /* on a line of its own: all vCPUs add to it */
	uint8_t pad_next[1024 - sizeof(uint64_t)];
	struct observer_hold holds[OBSERVER_HOLDS];
	uint8_t pad_end[OBSERVER_HEADER_SIZE - 2048 - OBSERVER_HOLDS * OBSERVER_HOLD_SIZE];
};

/* One vCPU, written by its own thread, on lines of its own. */
struct observer_vcpu {
	uint64_t block;	   /* packed (state.h): the block it is in while watched, or halted in */
	uint64_t last_tsc; /* its last callback while a load was watched */
	uint64_t gap_tsc;  /* the longest time between two of those in gap_trial */
	uint64_t end_tsc;  /* the longest from its last callback to a load's end, written there */
	uint32_t gap_load;
	uint32_t gap_trial;
	uint32_t halts; /* goes up on halting and on going on: odd is halted */
	uint32_t held;	/* by its core's window: as the primary, or as a stalled sibling */
	uint32_t reserved[20];
};

/* The last window of one core. */
struct observer_window {
	uint32_t trial; /* 0 is none */
	uint32_t load;
	uint32_t primary;
	uint32_t mechanism;
	uint64_t pc;
	uint64_t open_seq;
	uint64_t open_ns;
	uint64_t open_tsc;
	uint64_t close_seq; /* 0 while open */
	uint64_t close_ns;
	uint64_t close_tsc;
	uint64_t asked_ns;
	uint64_t extended_ns;
	uint32_t mode;
	uint32_t reserved[9];
};

struct observer_seen_hazard {
	uint64_t pc;
	uint32_t count;
	uint32_t hazard;
};

/* What one sibling did in its core's last window. */
struct observer_sibling {
	uint32_t trial;
	uint32_t load;
	uint64_t in_flight; /* packed block, 0 when halted */
	uint64_t region_blocks;
	uint64_t outside_blocks;
	uint64_t first_tsc;
	uint64_t last_region_tsc;
	uint64_t stalled_tsc; /* when it got to the block it was stalled at, 0 if it never did */
	uint32_t halted;      /* when the window closed */
	uint32_t blocks_lost;
	uint32_t hazards_lost;
	uint32_t stall_overrun; /* the stall's bound let it go while the window was open */
	struct observer_seen_hazard hazards[OBSERVER_HAZARDS];
};

/* How often a sibling began one block; a count of 0 is an empty place. */
struct observer_block {
	uint64_t pc;
	uint64_t first_seq;
	uint64_t last_seq;
	uint32_t count;
	uint32_t in_region;
};

/* In an NMI handler, so that no further NMI can enter (SDM 3A, 6.7.1). */
#define COVER_MASKED 0x100

/* How often a vCPU began one block in one phase of a load; a count of 0 is an empty place. */
struct observer_cover {
	uint64_t pc;
	uint32_t phase; /* with COVER_MASKED where it is so */
	uint32_t count;
};

/* What one WRMSR 0x79 named, in a place of OBSERVER_UPDATES by its number, which is written last.
 */
struct observer_update {
	uint64_t number; /* from 1 on, 0 is an empty place */
	uint64_t operand;
	uint64_t digest;   /* FNV-1a over all of its 32-bit words, 0 where they were not read */
	uint32_t revision; /* of its header, as all that follow up to its size */
	uint32_t signature;
	uint32_t platforms;
	uint32_t total_size;
	uint32_t taken;	 /* enum observer_taken */
	uint32_t before; /* the core's revision, 0 without an engine */
	uint32_t after;
	uint32_t reserved[3];
};

/* One datagram on the link. */
struct observer_message {
	uint32_t kind;
	uint32_t vcpu;
	uint64_t seq;
	uint64_t mono_ns;
	uint32_t load;
	uint32_t detail; /* of a hold's messages, which hold */
};

_Static_assert(sizeof(struct observer_record) == 64, "a record is one cache line");
_Static_assert(sizeof(struct observer_header) == OBSERVER_HEADER_SIZE, "the header is one page");
_Static_assert(sizeof(struct observer_vcpu) == 128, "a vCPU shares no line pair");
_Static_assert(sizeof(struct observer_window) == 128, "a window shares no line pair");
_Static_assert(sizeof(struct observer_block) == 32, "blocks fill lines");
_Static_assert(sizeof(struct observer_cover) == 16, "covers fill lines");
_Static_assert(sizeof(struct observer_hold) == OBSERVER_HOLD_SIZE, "a hold is one cache line");
_Static_assert(sizeof(struct observer_update) == 64, "an update is one cache line");
_Static_assert(sizeof(struct observer_message) == 32, "a message is 32 bytes");

#endif /* OBSERVER_SHM_H */
