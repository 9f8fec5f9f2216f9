# SPDX-License-Identifier: GPL-2.0-or-later
"""The table of mechanisms under test: those of images/kernels, and those of the kernels that users bring."""

import msgspec

from lab.errors import UsageError, tell_nearest
from lab.mechanisms.code_places import Call, Copied, CopiedStretch, Copies, Exits, Locked, Path, Return, Turn
from lab.mechanisms.mechanism import RENDEZVOUS, Expectation, Landmarks, Mechanism, Threads

#: Kernels have ndelay() and touch_nmi_watchdog() under these names. The rendezvous before 6.7 calls both while it
#: waits.
_WAIT_CALLS = (
    "__ndelay",
    "__udelay",
    "__const_udelay",
    "__delay",
    "touch_nmi_watchdog",
    "arch_touch_nmi_watchdog",
    "touch_softlockup_watchdog",
)
#: Kernels have cpumask_first() under these names. The rendezvous calls it between its two waits.
_FIRST_SIBLING = ("find_first_bit", "_find_first_bit")

_STOP_MACHINE_REGION = ("__reload_late", "__wait_for_cpus")

#: Functions that may contain the code of 6.12 after inlining, the innermost first.
_LOAD_612 = ("load_late_stop_cpus", "load_late_locked", "reload_store")
_HANDLER_612 = ("microcode_update_handler", "microcode_nmi_handler")
_PRIMARY_612 = ("__load_primary", "load_primary", *_HANDLER_612)
_SIBLING_612 = ("load_secondary_wait", "load_secondary", *_HANDLER_612)

_UPSTREAM = Landmarks(
    load_begin="load_late_stop_cpus",
    load_end=Return(Call("stop_machine_cpuslocked", _LOAD_612)),
    call_in="wait_for_cpus",
    release=Exits("wait_for_ctrl"),
    # The primary goes on after the update. The only call through a pointer is apply_microcode().
    primary_release=Return(Call("", _PRIMARY_612)),
    self_nmi=Call("", ("load_cpus_stopped",)),
    offline_call_in=Locked("microcode_offline_nmi_handler"),
    ipi_nmi=Call("apic_send_nmi_to_offline_cpu", ("kick_offline_cpus", "load_primary", *_HANDLER_612)),
    ipi_nmi_to=Threads.OFFLINE,
    wait_loop="wait_for_ctrl",
    wait_region=(
        "microcode_offline_nmi_handler",
        "wait_for_cpus",
        Path(Return(Call("wait_for_cpus", _SIBLING_612)), Call("wait_for_ctrl", _SIBLING_612)),
        "wait_for_ctrl",
    ),
    self_nmi_by=Threads.ALL,
)

#: Functions that may contain the loader's code before 6.7 after inlining, the innermost first. The code calls the same
#: function to call in and to leave. The last of these calls is the way out.
_STOP = Call("stop_machine_cpuslocked", ("microcode_reload_late", "load_late_locked", "reload_store"))
_GATHER = Call("__wait_for_cpus", ("__reload_late",), Turn.FIRST)
_LEAVE = Call("__wait_for_cpus", ("__reload_late",), Turn.LAST)

_STOP_MACHINE = Landmarks(
    load_begin="microcode_reload_late",
    load_end="mclab_load_end",
    call_in="__wait_for_cpus",
    release="mclab_record_release",
    self_nmi="",
    wait_loop="__wait_for_cpus",
    wait_region=_STOP_MACHINE_REGION,
    wait_calls=_WAIT_CALLS,
)

#: The common part of all rendezvous in the NMI handler. Each mechanism has its own way into the handler.
_IN_NMI = msgspec.structs.replace(
    _STOP_MACHINE,
    call_in="mclab_nmi_call_in",
    wait_loop="mclab_nmi_wait_for_primary",
    wait_region=("mclab_nmi_call_in", "mclab_nmi_load_sibling", "mclab_nmi_wait_for_primary"),
    wait_calls=(),
)

#: arch/x86/kernel/cpu/microcode/smi_handler.S: one copy at SMBASE + 0x8000 of each CPU but the first.
_SMI_HANDLERS = Copies(
    template="mclab_smi_handler",
    first="mclab_smi_copy_first",
    step="mclab_smi_copy_step",
    count="mclab_smi_copies",
)

MECHANISMS = (
    Mechanism(
        name="stop-machine",
        summary="rendezvous in stop_machine(), no protection against NMIs (negative control)",
        base="linux-6.1",
        bit=0,
        expectation=Expectation.CAUGHT,
        landmarks=_STOP_MACHINE,
    ),
    Mechanism(
        name="nmi-spin-as-posted",
        summary="patch 5/5 of August 2022 as posted: the NMI handler's wait loop is never entered (negative control)",
        base="linux-6.1",
        bit=1,
        expectation=Expectation.CAUGHT,
        landmarks=msgspec.structs.replace(
            _STOP_MACHINE,
            wait_loop="mclab_spin_wait_loop",
            wait_region=(*_STOP_MACHINE_REGION, "mclab_spin_wait_loop"),
        ),
    ),
    Mechanism(
        name="nmi-self",
        summary="choice 1 of the mail: rendezvous and update inside the NMI handler, reached by a self-NMI",
        base="linux-6.1",
        bit=2,
        expectation=Expectation.CLEAN,
        landmarks=msgspec.structs.replace(_IN_NMI, self_nmi="mclab_send_self_nmi", self_nmi_by=Threads.ALL),
    ),
    Mechanism(
        name="nmi-spin",
        summary="patch 5/5 of August 2022 as meant: a sibling that takes an NMI spins in the handler until released",
        base="linux-6.1",
        bit=3,
        expectation=Expectation.MEASURED,
        landmarks=msgspec.structs.replace(
            _STOP_MACHINE,
            wait_loop="mclab_spin_nmi_as_meant",
            wait_region=(*_STOP_MACHINE_REGION, "mclab_spin_nmi_as_meant", "mclab_spin_wait_loop"),
        ),
    ),
    Mechanism(
        name="nmi-broadcast",
        summary="one NMI IPI to all, then the threads of each core meet in the handler",
        base="linux-6.1",
        bit=4,
        expectation=Expectation.CLEAN,
        landmarks=msgspec.structs.replace(_IN_NMI, ipi_nmi="mclab_send_nmi_to_all", ipi_nmi_to=Threads.ALL),
    ),
    Mechanism(
        name="nmi-siblings",
        summary="siblings held in the NMI handler, the primary outside of it",
        base="linux-6.1",
        bit=5,
        expectation=Expectation.CLEAN,
        landmarks=msgspec.structs.replace(_IN_NMI, self_nmi="mclab_send_self_nmi", self_nmi_by=Threads.SIBLINGS),
    ),
    Mechanism(
        name="park-hlt",
        summary="sibling in HLT with its NMI sources shut (local vector table masked), woken by an NMI IPI",
        base="linux-6.1",
        bit=6,
        expectation=Expectation.CLEAN,
        landmarks=msgspec.structs.replace(
            _STOP_MACHINE,
            call_in="mclab_park_hlt",
            primary_call_in="mclab_park_wait_siblings",
            wait_loop="mclab_park_hlt",
            wait_region=("mclab_park_hlt",),
            wait_calls=(),
            ipi_nmi="mclab_park_wake",
            ipi_nmi_to=Threads.SIBLINGS,
            lint1_masked_by=Threads.SIBLINGS,
        ),
    ),
    Mechanism(
        name="park-mwait",
        summary="sibling in MWAIT with its NMI sources shut (local vector table masked), woken by a write to its line",
        base="linux-6.1",
        bit=7,
        expectation=Expectation.CLEAN,
        landmarks=msgspec.structs.replace(
            _STOP_MACHINE,
            call_in="mclab_park_mwait",
            primary_call_in="mclab_park_wait_siblings",
            wait_loop="mclab_park_mwait",
            wait_region=("mclab_park_mwait",),
            wait_calls=(),
            lint1_masked_by=Threads.SIBLINGS,
            parking=("mclab_park_mwait",),
        ),
        needs_monitor=True,
        # With more than one vCPU QEMU's MWAIT is a PAUSE. So the lab cannot see what hardware executes in a window.
        unshown=("harmless",),
    ),
    Mechanism(
        name="init-sipi",
        summary="sibling taken offline and held in wait-for-SIPI by an INIT, then brought back by INIT SIPI SIPI",
        base="linux-6.1",
        bit=8,
        expectation=Expectation.CLEAN,
        landmarks=msgspec.structs.replace(
            _STOP_MACHINE,
            load_begin="mclab_init_prepare",
            load_end="mclab_init_finished",
            call_in="mclab_init_park",
            primary_call_in="mclab_init_reset_siblings",
            release="start_secondary",
            primary_release="mclab_record_release",
            wait_loop="mclab_init_park",
            wait_region=("mclab_init_park",),
            wait_calls=(),
            lint1_masked_by=Threads.SIBLINGS,
            parking=("mclab_init_park",),
        ),
        siblings_absent=True,
        unaimable="an NMI to a thread that waits for a SIPI resets an emulated machine",
    ),
    Mechanism(
        name="uniform",
        summary=(
            "the update itself holds the sibling, NMIs stay pending: no rendezvous, and no promise of the instruction"
            " in flight when it begins"
        ),
        base="linux-6.1",
        bit=10,
        expectation=Expectation.CLEAN,
        landmarks=Landmarks(load_begin=_STOP_MACHINE.load_begin, load_end=_STOP_MACHINE.load_end),
        stalled=True,
        unshown=RENDEZVOUS,
    ),
    Mechanism(
        name="smi",
        summary="all threads of a core in SMM, where the handler updates; CPU 0 outside, its sibling held in SMM",
        base="linux-6.1",
        bit=9,
        expectation=Expectation.CLEAN,
        landmarks=msgspec.structs.replace(
            _STOP_MACHINE,
            call_in=Copied("mclab_smi_call_in", _SMI_HANDLERS),
            # This is CPU 0. The firmware keeps the SMBASE of CPU 0 for itself.
            primary_call_in="mclab_smi_call_in_outside",
            release=Copied("mclab_smi_leave", _SMI_HANDLERS),
            primary_release="mclab_record_release",
            update=Copied("mclab_smi_wrmsr", _SMI_HANDLERS),
            wait_loop=Copied("mclab_smi_hold", _SMI_HANDLERS),
            wait_region=(CopiedStretch("mclab_smi_call_in", "mclab_smi_leave", _SMI_HANDLERS),),
            wait_calls=(),
        ),
    ),
    Mechanism(
        name="upstream",
        summary="mainline since 6.7: rendezvous and update inside the NMI handler, unmodified but for the engine",
        base="linux-6.12",
        bit=0,
        expectation=Expectation.CLEAN,
        landmarks=_UPSTREAM,
    ),
)

#: The mechanisms of kernels that a user brings, with nothing of the lab inside (``--kernel``).
STOCK_MECHANISMS = (
    Mechanism(
        name="stock-rendezvous",
        summary="any kernel before 6.7 as it is: the rendezvous in stop_machine(), no protection against NMIs",
        base="stock-before-6.7",
        bit=0,
        expectation=Expectation.CAUGHT,
        landmarks=Landmarks(
            load_begin=_STOP,
            load_end=Return(_STOP),
            call_in="__wait_for_cpus",
            release=Return(_LEAVE),
            self_nmi="",
            wait_loop="__wait_for_cpus",
            wait_region=("__wait_for_cpus", Path(Return(_GATHER), _LEAVE)),
            wait_calls=(*_WAIT_CALLS, *_FIRST_SIBLING),
        ),
    ),
    Mechanism(
        name="stock-nmi",
        summary="any kernel since 6.7 as it is: rendezvous and update inside the NMI handler",
        base="stock-since-6.7",
        bit=0,
        expectation=Expectation.CLEAN,
        landmarks=_UPSTREAM,
    ),
)

#: ``make run`` shows these: two negative controls, and the mechanism that mainline chose in the end.
FIRST_CAMPAIGN = ("stop-machine", "nmi-spin-as-posted", "nmi-self")

_BY_NAME = {mechanism.name: mechanism for mechanism in (*MECHANISMS, *STOCK_MECHANISMS)}


def find_mechanism(name: str) -> Mechanism:
    """Return the mechanism of a given name.

    :raise UsageError: no mechanism has this name; the text lists the mechanisms of the lab's own kernels
    """
    try:
        return _BY_NAME[name]
    except KeyError:
        known = [mechanism.name for mechanism in MECHANISMS]
        near = tell_nearest(name, known)
        raise UsageError(f"mechanism '{name}' is unknown: there are {', '.join(known)}{near}") from None


def mechanisms_of(base: str) -> tuple[Mechanism, ...]:
    """Return the mechanisms that the kernel of a base has."""
    return tuple(mechanism for mechanism in _BY_NAME.values() if mechanism.base == base)
