# SPDX-License-Identifier: GPL-2.0-or-later
"""Made-up evidence, records and runs in the shape that real ones have, for the tests of folders, store and report."""

import random
from pathlib import Path

import msgspec
from old_run import OldRun

from lab.campaign.old_runs import MechanismAsked, RunInfo
from lab.evidence.folder import write_evidence, write_verdict
from lab.mechanisms.table import FIRST_CAMPAIGN, find_mechanism
from lab.model.evidence import (
    SCHEMA_VERSION,
    CpuLedger,
    CpuState,
    Ending,
    EventKind,
    Evidence,
    GuestEvidence,
    Hazard,
    Images,
    InjectionLog,
    ObserverEvent,
    ObserverEvidence,
    RendezvousState,
    Sent,
    SiblingView,
    Timings,
    VcpuRunning,
    WindowSeen,
)
from lab.model.plan import draw_plan
from lab.model.scenario import Scenario
from lab.model.topology import Topology
from lab.model.verdict import Durations, Finding, Invariant, NmiCount, Outcome, Proof, Span, TrialRecord, Verdict

TOPOLOGY = Topology(1, 2, 2)
IMAGES = Images(
    kernel_sha256="3f" * 32,
    vmlinux_sha256="a1" * 32,
    initramfs_sha256="77" * 32,
    observer_sha256="c0" * 32,
    qemu_version="7.2.17",
    kernel_release="6.1.158-mclab",
)
T0_NS = 812_000_000_000
US = 1_000

#: The way of an NMI through 6.1 without FSGSBASE: block, class of hazard, microseconds after the one before.
NMI_PATH = (
    ("asm_exc_nmi+0x0", Hazard.NONE, 0.0),
    ("asm_exc_nmi+0x7", Hazard.SWAPGS, 1.1),
    ("asm_exc_nmi+0x1e", Hazard.DR_CR, 0.9),
    ("asm_exc_nmi+0x5a", Hazard.NONE, 1.3),
    ("exc_nmi+0x0", Hazard.NONE, 4.0),
    ("exc_nmi+0x3d", Hazard.DR_CR, 2.5),
    ("default_do_nmi+0x0", Hazard.NONE, 6.2),
    ("nmi_handle+0x0", Hazard.NONE, 3.1),
    ("nmi_handle+0x4c", Hazard.NONE, 0.8),
    ("perf_event_nmi_handler+0x0", Hazard.NONE, 2.0),
    ("intel_pmu_handle_irq+0x2b", Hazard.MSR, 4.4),
    ("mclab_ledger_nmi+0x0", Hazard.NONE, 9.0),
    ("asm_exc_nmi+0x164", Hazard.NONE, 12.5),
    ("asm_exc_nmi+0x191", Hazard.MSR, 1.4),
    ("asm_exc_nmi+0x1c0", Hazard.IRET, 2.2),
)


def make_scenario(mechanism: str) -> Scenario:
    return Scenario(mechanism=mechanism, topology=TOPOLOGY)


class _Ring:
    """Gives events their sequence numbers and clocks."""

    def __init__(self) -> None:
        self.events: list[ObserverEvent] = []

    def add(self, at_us: float, kind: EventKind, vcpu: int, symbol: str = "", hazard: Hazard = Hazard.NONE) -> None:
        mono_ns = T0_NS + int(at_us * US)
        self.events.append(
            ObserverEvent(
                seq=0,
                mono_ns=mono_ns,
                tsc=mono_ns * 2,
                kind=kind,
                vcpu=vcpu,
                load=1,
                pc=0xFFFFFFFF81000000 + len(self.events) * 0x40,
                symbol=symbol,
                hazard=hazard,
            )
        )

    def finish(self) -> tuple[ObserverEvent, ...]:
        self.events.sort(key=lambda event: event.mono_ns)
        return tuple(msgspec.structs.replace(event, seq=4000 + number) for number, event in enumerate(self.events))


def make_evidence(mechanism: str = "stop-machine", seed: int = 7, *, broken: bool = True) -> Evidence:
    """One late load over two cores under twelve NMIs; the siblings of a broken one take them in the open."""
    scenario = make_scenario(mechanism)
    plan = draw_plan(scenario, seed)
    source = random.Random(seed)
    ring = _Ring()
    ring.add(0, EventKind.LOAD_BEGIN, 0, "microcode_reload_late+0x0")
    opens_us = [1_700 + source.random() * 300 for _ in range(2)]
    closes_us = [opens_us[core] + plan.stretch_us[core] for core in range(2)]
    end_us = max(closes_us) + 900
    for vcpu in range(4):
        ring.add(700 + source.random() * 700, EventKind.CALL_IN, vcpu, "__wait_for_cpus+0x0")
        release_us = closes_us[vcpu // 2] + 120 + source.random() * 300
        ring.add(release_us, EventKind.RELEASE, vcpu, "mclab_record_release+0x0")
    for core in range(2):
        primary = core * 2
        ring.add(opens_us[core], EventKind.WINDOW_OPEN, primary, "apply_microcode_intel+0xd4")
        ring.add(opens_us[core] + 1, EventKind.IN_FLIGHT, primary + 1, "delay_tsc+0x2a")
        ring.add(closes_us[core], EventKind.WINDOW_CLOSE, primary, "apply_microcode_intel+0xd6")
    sent = []
    seen: set[tuple[int, str]] = set()
    for index, injection in enumerate(plan.injections):
        at_us = injection.at_ppm * end_us / 1_000_000
        sent.append(
            Sent(index=index, vcpu=-1, send_ns=T0_NS + int(at_us * US), reply_ns=T0_NS + int((at_us + 640) * US))
        )
        for vcpu in range(4):
            core = vcpu // 2
            entry_us = at_us + 180 + source.random() * 250
            inside = opens_us[core] < entry_us < closes_us[core]
            if inside and vcpu % 2 == 0:
                entry_us = closes_us[core] + 3
            elif inside and not broken:
                continue
            ring.add(entry_us, EventKind.NMI_ENTRY, vcpu, "asm_exc_nmi+0x0")
            if not inside or vcpu % 2 == 0:
                continue
            for symbol, hazard, step_us in NMI_PATH:
                entry_us += step_us * (0.7 + 0.6 * source.random())
                if (vcpu, symbol) not in seen:
                    seen.add((vcpu, symbol))
                    kind = EventKind.OUTSIDE if hazard is Hazard.NONE else EventKind.HAZARD
                    ring.add(entry_us, kind, vcpu, symbol, hazard)
    ring.add(end_us, EventKind.LOAD_END, 0, "mclab_load_end+0x0")
    events = ring.finish()
    return Evidence(
        schema_version=SCHEMA_VERSION,
        lab_version="0.1.0",
        scenario=scenario,
        plan=plan,
        images=IMAGES,
        ending=Ending.COMPLETE,
        reason="",
        observer=ObserverEvidence(
            events=events,
            windows=tuple(_window(core, events, plan.stretch_us[core], broken=broken) for core in range(2)),
            records_lost=0,
            windows_lost=0,
            gaps_ns=(900_000, 1_100_000, 800_000, 2_000_000),
        ),
        injections=InjectionLog(begin_ns=T0_NS + 400 * US, span_ns=int(end_us * US), sent=tuple(sent), problem=""),
        guest=_guest(mechanism),
        timings=Timings(
            command_ns=T0_NS - 900_000,
            returned_ns=T0_NS + int(end_us * US) + 700_000,
            deadline_ns=T0_NS + 30_000_000_000,
            vcpus=tuple(VcpuRunning(vcpu=vcpu, ran_ns=30_000_000, waited_ns=400_000) for vcpu in range(4)),
            steal_ppm=12,
        ),
        console_tail=("[   12.345678] microcode: updated to revision 0x2007006", "~ # "),
    )


def _window(core: int, events: tuple[ObserverEvent, ...], asked_us: int, *, broken: bool) -> WindowSeen:
    opened = next(e for e in events if e.kind is EventKind.WINDOW_OPEN and e.vcpu == core * 2)
    closed = next(e for e in events if e.kind is EventKind.WINDOW_CLOSE and e.vcpu == core * 2)
    return WindowSeen(
        core=core,
        primary=core * 2,
        load=1,
        pc=opened.pc,
        open_seq=opened.seq,
        open_ns=opened.mono_ns,
        open_tsc=opened.tsc,
        close_seq=closed.seq,
        close_ns=closed.mono_ns,
        close_tsc=closed.tsc,
        asked_ns=asked_us * US,
        extended_ns=0,
        siblings=(
            SiblingView(
                vcpu=core * 2 + 1,
                in_flight_pc=0xFFFFFFFF81234000,
                in_flight_symbol="delay_tsc+0x2a",
                in_flight_region=True,
                region_blocks=41_000,
                outside_blocks=310 if broken else 0,
                first_ns=opened.mono_ns + 2 * US,
                last_ns=closed.mono_ns - 2 * US,
                halted_at_close=False,
                blocks_lost=0,
                blocks=(),
            ),
        ),
    )


def _guest(mechanism: str) -> GuestEvidence:
    ledger = tuple(CpuLedger(cpu=cpu, ordinary=12, consumed=0, self_sent=0) for cpu in range(4))
    return GuestEvidence(
        target_revision=0x2007006,
        load_errno=0,
        repeat_errno=0,
        online=(0, 1, 2, 3),
        state=RendezvousState(
            load=1,
            mechanism=mechanism,
            tsc_khz=2_000_000,
            callers_left=0,
            cpus=tuple(
                CpuState(
                    cpu=cpu,
                    role="primary" if cpu % 2 == 0 else "sibling",
                    arrival_tsc=1,
                    wait_begin_tsc=2,
                    wait_end_tsc=3,
                    update_begin_tsc=4,
                    update_end_tsc=5,
                    result=0,
                    revision=0x2007006,
                )
                for cpu in range(4)
            ),
        ),
        ledger_before=ledger,
        ledger_after=ledger,
        revisions_before=(0x2007005,) * 4,
        revisions_after=(0x2007006,) * 4,
        nmis_before=(0,) * 4,
        nmis_after=(12,) * 4,
        dmesg=("microcode: Reload completed, microcode revision: 0x2007006",),
    )


def make_verdict(evidence: Evidence) -> Verdict:
    """A verdict as the judge would give it: the first breaches of core 0 prove it."""
    assert evidence.observer is not None
    window = evidence.observer.windows[0]
    breaches = [
        event
        for event in evidence.observer.events
        if event.kind in (EventKind.OUTSIDE, EventKind.HAZARD) and event.vcpu == 1
    ]
    proofs = tuple(
        Proof(
            text=f"vCPU {event.vcpu} executed {event.hazard.value} at {event.symbol} while core 0 was being updated"
            if event.kind is EventKind.HAZARD
            else f"vCPU {event.vcpu} ran {event.symbol}, outside the wait region, while core 0 was being updated",
            seq=event.seq,
            vcpu=event.vcpu,
            at_us=(event.mono_ns - window.open_ns) / US,
            core=0,
            symbol=event.symbol,
        )
        for event in breaches
    )
    finding = Finding.BROKEN if proofs else Finding.HELD
    reason = f"broken by {len(proofs)} blocks of vCPU 1" if proofs else "held in 2 windows of 2"
    return Verdict(
        outcome=Outcome.FAIL if proofs else Outcome.PASS,
        reason=f"quiet: {reason}",
        invariants=(
            Invariant(name="all-waiting-before-update", finding=Finding.HELD, required=True, reason="all 4 waited"),
            Invariant(name="quiet", finding=finding, required=True, reason=reason, proofs=proofs),
            Invariant(name="harmless", finding=finding, required=True, reason=reason, proofs=proofs[1:2]),
        ),
        windows_judged=2,
    )


def make_record(
    trial: int,
    mechanism: str,
    outcome: Outcome,
    *,
    reason: str = "",
    quiet: Finding | None = None,
    evidence: str = "",
) -> TrialRecord:
    source = random.Random(f"{trial}/{mechanism}")
    found = quiet or {Outcome.PASS: Finding.HELD, Outcome.FAIL: Finding.BROKEN}.get(outcome, Finding.UNSEEN)
    windows_us = [10_000 + source.random() * 40_000 for _ in range(2)]
    waits = tuple(Span(who=cpu, us=18_000 + source.random() * 9_000) for cpu in range(4))
    return TrialRecord(
        trial=trial,
        mechanism=mechanism,
        topology="1x2x2",
        seed=source.getrandbits(53),
        outcome=outcome,
        reason=reason or ("every required invariant held" if outcome is Outcome.PASS else "quiet: broken by vCPU 1"),
        invariants={
            "quiet": found,
            "harmless": found,
            "still": Finding.BROKEN if found is Finding.HELD and trial % 2 else found,
            "no-nmi-entry-in-window": found,
            "released-after-update": Finding.HELD,
            "within-deadline": Finding.HELD,
        },
        nmis=NmiCount(sent=12, handled=48, entries=52, proven_in_window=9, on_siblings=1 + int(source.random() * 8)),
        durations=Durations(
            host_load_us=21_000 + source.random() * 20_000,
            host_rendezvous_us=900 + source.random() * 900,
            host_windows_us=tuple(Span(who=core, us=windows_us[core]) for core in range(2)),
            host_holds_us=tuple(Span(who=v, us=windows_us[v // 2] + 400 + source.random() * 900) for v in (1, 3)),
            host_nmi_delay_us=tuple(Span(who=0, us=150 + source.random() * 500) for _ in range(12)),
            guest_waits_us=waits,
            guest_updates_us=waits[:2],
            tsc_offset_cycles=123_456,
            tsc_error_us=0.4 + source.random(),
        ),
        windows_judged=2 if outcome in (Outcome.PASS, Outcome.FAIL) else 0,
        windows_unseen=0 if outcome in (Outcome.PASS, Outcome.FAIL) else 2,
        kernel_sha256="3f" * 32,
        evidence=evidence,
    )


def make_info(**changes: object) -> RunInfo:
    info = RunInfo(
        lab_version="0.1.0",
        started="2026-03-01T22:14:05+01:00",
        command=("lab", "campaign", "--trials", "20", "--out", "reports/night"),
        mechanisms=tuple(
            MechanismAsked(name=each.name, summary=each.summary, expectation=each.expectation)
            for each in map(find_mechanism, FIRST_CAMPAIGN)
        ),
        trials_asked=60,
        scenario=make_scenario("stop-machine"),
        images=(IMAGES,),
        host={"cores": "2", "qemu": "QEMU emulator version 7.2.17 (Debian 1:7.2+dfsg-7)", "cpu": "x86_64, AVX2"},
        finished=True,
        exit_status=0,
    )
    return msgspec.structs.replace(info, **changes)


def write_sample_run(folder: Path, trials: int = 20) -> Path:
    """A run in which both controls are caught and ``nmi-self`` is clean, with some evidence folders."""
    info = make_info(finished=False, exit_status=None)
    with OldRun(folder, info) as store:
        number = 0
        for mechanism in info.mechanisms:
            control = mechanism.expectation.value == "caught"
            for turn in range(trials):
                number += 1
                if turn == 4:
                    outcome, reason = Outcome.INVALID, f"window of core 1 unseen: its sibling ran {number} blocks"
                elif control and turn % 5 != 3:
                    outcome, reason = Outcome.FAIL, ""
                else:
                    outcome, reason = Outcome.PASS, ""
                name = f"trials/{number:05d}" if turn < 3 else ""
                if name:
                    evidence = make_evidence(mechanism.name, seed=number, broken=control)
                    write_evidence(folder / name, evidence, {"console.log": b"booted\r\n"})
                    write_verdict(folder / name, make_verdict(evidence))
                store.append(make_record(number, mechanism.name, outcome, reason=reason, evidence=name))
        store.finish(0)
    return folder
