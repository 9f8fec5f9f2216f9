# SPDX-License-Identifier: GPL-2.0-or-later
"""Whether inside and outside tell the same story, which witnesses are missing, and which landmarks were not hit."""

from lab.judge.clocks import (
    MAX_OFF,
    GuestSpan,
    Rate,
    find_cycles_per_us,
    find_offset,
    find_rate,
    find_updates,
    find_waits,
)
from lab.judge.facts import Facts
from lab.judge.finding import broken, held, unseen
from lab.mechanisms.base import Witness
from lab.mechanisms.mechanism import Threads
from lab.model.evidence import CpuState, EventKind, GuestEvidence, Sees
from lab.model.verdict import Invariant, Proof

#: What the patched kernel calls a CPU that took no part in the last load (``mclab_role_names`` in its lab.c).
_ABSENT = "absent"
_KHZ_PER_MHZ = 1_000


def judge_agreement(facts: Facts) -> Invariant:
    """Hold when the guest's counters, revisions and clocks, as far as its kernel shows them, fit what the observer saw.

    A disagreement proves that one of them is wrong and not which: the outcome is INVALID, never FAIL and never PASS.
    """
    name = "witnesses-agree"
    guest = facts.evidence.guest
    if guest is None:
        return unseen(name, "the guest's evidence is missing")
    doubts: list[str] = []
    has_state = facts.has(Witness.STATE)
    proofs = _compare_revisions(facts, guest, doubts) + _compare_clocks(facts, doubts) if has_state else []
    if facts.lost:
        doubts.append(facts.lost)
    else:
        proofs += _compare_entries(facts)
        proofs += _compare_counts(facts, doubts)
        proofs += [] if has_state else _compare_updates(facts, guest, doubts)
    if proofs:
        return broken(name, proofs)
    if doubts:
        return unseen(name, doubts[0])
    ours = ["ledger"] if facts.has(Witness.LEDGER) else []
    seen = facts.evidence.observer
    taken = ["QEMU's own account of NMIs"] if seen is not None and Sees.INTERRUPTS in seen.sees else []
    told = [*ours, "/proc/interrupts", "revisions", *(["clocks"] if has_state else []), *taken]
    rate = find_rate(facts) if has_state else None
    rates = f"; {_tell_rate(rate)}" if rate is not None else ""
    return held(name, f"{', '.join(told[:-1])} and {told[-1]} fit what the observer saw{rates}")


def find_missing_witnesses(facts: Facts) -> list[str]:
    """Name the witnesses that a PASS needs and that said nothing."""
    evidence = facts.evidence
    guest = evidence.guest
    parts: dict[str, object] = {
        "the observer": evidence.observer,
        "the injection log": evidence.injections,
        "the guest's evidence": guest,
        "the lab's timings": evidence.timings,
    }
    if facts.has(Witness.STATE):
        parts[Witness.STATE.value] = guest and guest.state
    if facts.has(Witness.LEDGER):
        parts[Witness.LEDGER.value] = guest and guest.ledger_before and guest.ledger_after
    return [name for name, part in parts.items() if not part]


def find_missing_landmarks(facts: Facts) -> list[str]:
    """Name the required landmarks that were not hit: without them the observer may be looking at another kernel.

    The load's end, the releases and the self-NMIs are owed only by a trial that ran to its end, call-ins and releases
    only by a mechanism that has a rendezvous.
    """
    marks = facts.mechanism.landmarks
    missing = [] if facts.begin is not None else ["the load's begin"]
    if marks.call_in:
        # That an offline thread never called in is a finding: all-waiting-before-update.
        missing += [f"the call-in of vCPU {vcpu}" for vcpu in facts.online if facts.call_in(vcpu) is None]
    opened = {facts.topology.core_of(event.vcpu) for event in facts.of_kind(EventKind.WINDOW_OPEN)}
    missing += [f"WRMSR 0x79 on core {core}" for core in facts.cores if core not in opened]
    if facts.complete:
        called_in = [vcpu for vcpu in facts.vcpus if vcpu in facts.online or facts.call_in(vcpu) is not None]
        if marks.release:
            missing += [f"the release of vCPU {vcpu}" for vcpu in called_in if not facts.releases(vcpu)]
        silent = [vcpu for vcpu in facts.self_senders if not facts.of_kind(EventKind.SELF_NMI, vcpu)]
        missing += [f"the self-NMI of vCPU {vcpu}" for vcpu in silent]
        reaches_some = marks.ipi_nmi_to is not Threads.OFFLINE or facts.offline
        if marks.ipi_nmi and reaches_some and not facts.of_kind(EventKind.IPI_NMI):
            missing.append("the NMI IPI")
        missing += [] if facts.end is not None else ["the load's end"]
    return missing


def _compare_entries(facts: Facts) -> list[Proof]:
    """Hold each NMI that QEMU says a vCPU took against the entry that the observer saw it execute, one for one."""
    observer = facts.evidence.observer
    if observer is None or Sees.INTERRUPTS not in observer.sees:
        return []
    proofs = []
    for vcpu in facts.vcpus:
        taken = facts.every_of_kind(EventKind.NMI_TAKEN, vcpu)
        entries = facts.every_of_kind(EventKind.NMI_ENTRY, vcpu)
        both = sorted((*taken, *entries), key=lambda event: event.seq)
        kinds = [event.kind for event in both]
        if kinds != [EventKind.NMI_TAKEN, EventKind.NMI_ENTRY] * (len(kinds) // 2):
            text = f"QEMU had vCPU {vcpu} take {len(taken)} NMIs, and it was seen at {len(entries)} entries"
            proofs.append(Proof(text=f"{text}, not one for one", vcpu=vcpu))
    return proofs


def _compare_counts(facts: Facts, doubts: list[str]) -> list[Proof]:
    proofs = []
    for cpu in facts.online:
        entries = len(facts.every_of_kind(EventKind.NMI_ENTRY, cpu))
        self_sent = len(facts.every_of_kind(EventKind.SELF_NMI, cpu))
        delta = facts.ledger_delta(cpu)
        if delta is None and facts.has(Witness.LEDGER):
            doubts.append(f"the ledger of CPU {cpu} is missing")
        elif delta is not None:
            proofs += _differ(cpu, "NMIs in the ledger", delta.total, "entries", entries)
            proofs += _differ(cpu, "self-NMIs in the ledger", delta.self_sent, "self-NMIs", self_sent)
        counted = facts.counted_nmis(cpu)
        if counted is None:
            doubts.append(f"/proc/interrupts has no count of CPU {cpu}")
        else:
            dropped = delta.dropped if delta is not None else 0
            proofs += _differ(cpu, "NMIs in /proc/interrupts", counted, "entries", entries - dropped)
    return proofs


def _differ(cpu: int, inside: str, inside_count: int, outside: str, outside_count: int) -> list[Proof]:
    if inside_count == outside_count:
        return []
    text = f"the guest counts {inside_count} {inside} on CPU {cpu}, the observer {outside_count} {outside}"
    return [Proof(text=text, vcpu=cpu)]


def _compare_revisions(facts: Facts, guest: GuestEvidence, doubts: list[str]) -> list[Proof]:
    if guest.state is None:
        doubts.append("the rendezvous state is missing")
        return []
    proofs = []
    for state in guest.state.cpus:
        if state.cpu in facts.offline:
            continue
        if not 0 <= state.cpu < len(guest.revisions_after):
            doubts.append(f"sysfs gave no revision of CPU {state.cpu}")
        elif guest.revisions_after[state.cpu] != state.revision:
            after = guest.revisions_after[state.cpu]
            text = f"sysfs says {after:#x} of CPU {state.cpu}, the rendezvous state {state.revision:#x}"
            proofs.append(Proof(text=text, vcpu=state.cpu))
    return proofs


def _compare_updates(facts: Facts, guest: GuestEvidence, doubts: list[str]) -> list[Proof]:
    """Hold the revisions of sysfs against the cores that were seen to execute WRMSR 0x79: no other can have a new one.

    A core that was updated without effect is no disagreement but a defect, which ``new-revision-everywhere`` names.
    """
    if not len(guest.revisions_before) == len(guest.revisions_after) == len(facts.vcpus):
        doubts.append(f"sysfs gave the revisions of {len(guest.revisions_after)} of {len(facts.vcpus)} CPUs")
        return []
    opened = {facts.topology.core_of(event.vcpu) for event in facts.of_kind(EventKind.WINDOW_OPEN)}
    return [
        Proof(text=f"sysfs says that CPU {cpu} was updated, the observer saw no WRMSR 0x79 on its core", vcpu=cpu)
        for cpu in facts.vcpus
        if guest.revisions_before[cpu] != guest.revisions_after[cpu] and facts.topology.core_of(cpu) not in opened
    ]


def _compare_clocks(facts: Facts, doubts: list[str]) -> list[Proof]:
    if facts.repeat is not None:
        doubts.append("the rendezvous state tells of the second load")
        return []
    guest = facts.evidence.guest
    states = guest.state.cpus if guest is not None and guest.state is not None else ()
    named = sorted(state.cpu for state in states)
    if named != list(facts.vcpus):
        doubts.append(f"the rendezvous state names CPUs {named[:20]} instead of {len(facts.vcpus)}")
    doubts += filter(None, (_why_stamps_doubted(facts, state) for state in states if state.cpu not in facts.offline))
    offset = find_offset(facts)
    if offset is None or find_cycles_per_us(facts) is None:
        doubts.append("no pair of times ties the guest's clock to the host's")
        return []
    proofs = _compare_rates(facts, doubts)
    if not offset.possible:
        gap = offset.low - offset.high
        text = f"no TSC offset fits both {offset.low_from} and {offset.high_from}: {gap} cycles are missing"
        proofs.append(Proof(text=text))
    return proofs


def _compare_rates(facts: Facts, doubts: list[str]) -> list[Proof]:
    """Hold what the guest takes its TSC for, and what it so claims to have waited and updated, against the host's."""
    rate = find_rate(facts)
    if rate is None:
        doubts.append("the rendezvous state names no rate of the guest's TSC")
        return []
    proofs = []
    if rate.is_off:
        claimed, measured = rate.claimed_khz / _KHZ_PER_MHZ, rate.measured_khz / _KHZ_PER_MHZ
        text = f"the guest takes its TSC for one of {claimed:.3f} MHz, and {measured:.3f} MHz were measured"
        proofs.append(Proof(text=text))
    spans = (*find_updates(facts), *find_waits(facts))
    return proofs + [proof for span in spans for proof in _compare_span(span, rate)]


def _compare_span(span: GuestSpan, rate: Rate) -> list[Proof]:
    claimed_us = span.cycles * _KHZ_PER_MHZ / rate.claimed_khz
    too_short = span.least_us is not None and claimed_us < span.least_us * (1 - MAX_OFF)
    too_long = span.most_us is not None and claimed_us > span.most_us * (1 + MAX_OFF)
    if not too_short and not too_long:
        return []
    seen = f"at least {span.least_us:.1f}" if too_short else f"at most {span.most_us:.1f}"
    text = (
        f"the {span.what} of CPU {span.cpu} took {claimed_us:.1f} us by the guest, and the observer saw {seen} us of it"
    )
    return [Proof(text=text, vcpu=span.cpu)]


def _tell_rate(rate: Rate) -> str:
    claimed, measured = rate.claimed_khz / _KHZ_PER_MHZ, rate.measured_khz / _KHZ_PER_MHZ
    return f"TSC of {claimed:.3f} MHz by the guest, {measured:.3f} MHz measured"


def _why_stamps_doubted(facts: Facts, state: CpuState) -> str:
    """Say why a CPU's times in the rendezvous state are not those of the part it had in the load."""
    wait = (state.arrival_tsc, state.wait_begin_tsc, state.wait_end_tsc)
    update = (state.update_begin_tsc, state.update_end_tsc)
    if facts.mechanism.siblings_absent and facts.is_sibling(state.cpu):
        there = state.role != _ABSENT or any((*wait, *update))
        return f"the rendezvous state tells of CPU {state.cpu}, which was to be offline" if there else ""
    is_primary = state.cpu in {window.seen.primary for window in facts.windows}
    # The arrival bounds the clocks where there is one; what shows that the CPU took part is that it waited, or that it
    # came where the mechanism has nobody wait.
    came = all(wait[1:]) if facts.mechanism.landmarks.call_in else bool(state.arrival_tsc)
    if not came or (is_primary and not all(update)):
        return f"CPU {state.cpu} left no times in the rendezvous state"
    return ""
