# SPDX-License-Identifier: GPL-2.0-or-later
"""The books of NMIs, kept per vCPU: what was sent, by whom, and what took it (design, section 7)."""

from collections.abc import Mapping

from lab.judge.facts import Facts
from lab.judge.nmis import explain, name_cause, name_shared
from lab.judge.phases import find_phases
from lab.mechanisms.base import Witness
from lab.model.evidence import EventKind
from lab.model.verdict import Handler, NmiAccount, NmiEntry


def find_accounts(facts: Facts) -> tuple[NmiAccount, ...]:
    """Return one account for each vCPU."""
    return () if facts.lost else tuple(_find_account(facts, vcpu) for vcpu in facts.vcpus)


def find_entries(facts: Facts) -> tuple[NmiEntry, ...]:
    """Return every entry that the observer saw, and what it took."""
    if facts.lost:
        return ()
    phases = {core: find_phases(facts, core) for core in facts.cores}
    entries = []
    for vcpu in facts.vcpus:
        nmis, handlers = explain(facts, vcpu), find_handlers(facts, vcpu)
        took: dict[int, list[str]] = {}
        for entry, cause in nmis.owners:
            took.setdefault(entry.seq, []).append(name_cause(cause))
        for cause, entry in nmis.shared:
            took.setdefault(entry.seq, []).append(name_shared(cause))
        entries += [
            NmiEntry(
                seq=entry.seq,
                vcpu=vcpu,
                phase=phases[facts.topology.core_of(vcpu)].at_seq(entry.seq),
                took=tuple(took.get(entry.seq, ())),
                by=handlers.get(entry.seq),
            )
            for entry in facts.every_of_kind(EventKind.NMI_ENTRY, vcpu)
        ]
    return tuple(sorted(entries, key=lambda entry: entry.seq))


def find_handlers(facts: Facts, vcpu: int) -> Mapping[int, Handler]:
    """Return who took each of a vCPU's entries, by the number of its record; empty where the ledger does not tell."""
    delta = facts.ledger_delta(vcpu) if facts.has(Witness.LEDGER) else None
    entries = facts.every_of_kind(EventKind.NMI_ENTRY, vcpu)
    if delta is None or delta.total != len(entries):
        return {}
    if delta.dropped:
        return {entry.seq: Handler.DROPPED for entry in entries} if delta.dropped == len(entries) else {}
    consumed = {entry.seq for entry in facts.consumed(vcpu)} if delta.consumed else set()
    if len(consumed) != delta.consumed:
        return {}
    return {entry.seq: Handler.MECHANISM if entry.seq in consumed else Handler.ORDINARY for entry in entries}


def _find_account(facts: Facts, vcpu: int) -> NmiAccount:
    nmis = explain(facts, vcpu)
    self_nmis = len(facts.every_of_kind(EventKind.SELF_NMI, vcpu))
    causes = nmis.sent + nmis.sentinels + nmis.self_sent + nmis.backtraces
    delta = facts.ledger_delta(vcpu) if facts.has(Witness.LEDGER) else None
    counted = facts.counted_nmis(vcpu) if delta is None else delta.total
    return NmiAccount(
        vcpu=vcpu,
        sent=nmis.sent,
        unreachable=sum(facts.surely_masked(sent, vcpu) for sent in facts.planned_to(vcpu)),
        sentinels=nmis.sentinels,
        self_nmis=self_nmis,
        ipis=nmis.self_sent - self_nmis,
        backtraces=nmis.backtraces,
        merged=nmis.merged,
        never=causes - nmis.merged - (nmis.entries - len(nmis.spurious)),
        entries=nmis.entries,
        unexplained=len(nmis.spurious),
        counted=counted,
        closes=not nmis.spurious and not nmis.lost and not nmis.passed and counted == nmis.entries,
    )
