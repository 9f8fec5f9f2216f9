# SPDX-License-Identifier: GPL-2.0-or-later
"""Where each NMI of a plan landed: in which phase of a core's load it was set pending, and in which it was entered.

QEMU sets the pending bit between a command's sending and its reply (design, section 5). So an NMI is known to have been
set in a phase only if both lie in it; an entry is a record of the observer's own, and its phase always known.
"""

from collections.abc import Iterator, Mapping

from lab.judge.facts import Facts, to_us
from lab.judge.nmi_ledger import find_handlers
from lab.judge.nmis import VcpuNmis, explain, name_cause, name_shared
from lab.judge.phases import CorePhases, find_phases
from lab.model.evidence import EventKind, ObserverEvent, Sent
from lab.model.phase import Role
from lab.model.plan import Injection
from lab.model.verdict import Handler, Landing


def find_landings(facts: Facts) -> tuple[Landing, ...]:
    """Return one landing for each NMI and each vCPU that it reached, in order of the plan."""
    if facts.begin is None or facts.lost:
        return ()
    phases = {core: find_phases(facts, core) for core in facts.cores}
    log = facts.evidence.injections
    landings: list[Landing] = []
    for vcpu in facts.vcpus:
        nmis, handlers = explain(facts, vcpu), find_handlers(facts, vcpu)
        core = facts.topology.core_of(vcpu)
        landings += [
            _land(facts, phases[core], nmis, sent, handlers)
            for sent in (log.sent if log is not None else ())
            if sent.vcpu in (-1, vcpu) and not facts.surely_masked(sent, vcpu) and sent.reply_ns
        ]
    return tuple(sorted(landings, key=lambda each: (each.nmi, each.vcpu)))


def why_hold_missed(facts: Facts) -> str:
    """Say which hold of the plan did not come or end as it was meant to, and what was seen; empty when all did."""
    scenario, plan = facts.evidence.scenario, facts.evidence.plan
    if len(plan.holds) < len(scenario.all_placed):
        return f"the plan holds nobody at {len(scenario.all_placed) - len(plan.holds)} places of the scenario"
    return next(_find_holds_missed(facts), "")


def why_phase_missed(facts: Facts) -> str:
    """Say which NMI of the plan was not sent when it was meant to; empty when all were."""
    return next(_find_phases_missed(facts, facts.evidence.plan.injections), "")


def _land(facts: Facts, phases: CorePhases, nmis: VcpuNmis, sent: Sent, handlers: Mapping[int, Handler]) -> Landing:
    vcpu = nmis.vcpu
    entry = next((entry for entry, cause in nmis.owners if cause.sent == sent), None)
    shared = next((entry for cause, entry in nmis.shared if cause.sent == sent), None)
    took = entry or shared
    injections = facts.evidence.plan.injections
    hold = injections[sent.index].hold if 0 <= sent.index < len(injections) else -1
    pending = phases.at_ns(sent.send_ns)
    sure = pending is phases.at_ns(sent.reply_ns)
    span = phases.span_ns(pending)
    fraction = None
    if sure and span is not None and span[0] < span[1] and abs(span[0]) + abs(span[1]) < float("inf"):
        fraction = min(1.0, max(0.0, ((sent.send_ns + sent.reply_ns) / 2 - span[0]) / (span[1] - span[0])))
    return Landing(
        nmi=sent.index,
        vcpu=vcpu,
        role=_role_of(facts, vcpu),
        pending=pending if sure else None,
        fraction=fraction,
        entered=phases.at_seq(entry.seq) if entry is not None else None,
        entry_seq=entry.seq if entry is not None else 0,
        delay_us=to_us(entry.mono_ns - sent.send_ns) if entry is not None else None,
        hold=hold if hold >= 0 and _is_within_hold(facts, sent, hold) else -1,
        shared_seq=shared.seq if shared is not None else 0,
        shared_with=_list_others(nmis, sent, took) if took is not None else (),
        by=handlers.get(took.seq) if took is not None else None,
    )


def _list_others(nmis: VcpuNmis, sent: Sent, entry: ObserverEvent) -> tuple[str, ...]:
    """Name what else an entry took: what it is put down to, and what shared it."""
    owners = (name_cause(cause) for one, cause in nmis.owners if one == entry and cause.sent != sent)
    shared = (name_shared(cause) for cause, one in nmis.shared if one == entry and cause.sent != sent)
    return (*owners, *shared)


def _role_of(facts: Facts, vcpu: int) -> Role:
    if not facts.is_sibling(vcpu):
        return Role.PRIMARY
    return Role.OFFLINE if vcpu in facts.offline else Role.SIBLING


def _find_holds_missed(facts: Facts) -> Iterator[str]:
    arrivals = facts.evidence.observer.arrivals if facts.evidence.observer is not None else ()
    for index, hold in enumerate(facts.evidence.plan.holds):
        seen = arrivals[index] if index < len(arrivals) else 0
        where = f"hold {index}, of vCPU {hold.vcpu} at {hold.at}" + (f" in {hold.phase.value}" if hold.phase else "")
        held = [event for event in facts.every_of_kind(EventKind.HELD, hold.vcpu) if event.detail == index]
        if not held:
            yield f"{where}, was for arrival {hold.arrival}, and {seen} were seen"
        elif len(held) > 1:
            yield f"{where}, was reached {len(held)} times"
        elif any(event.detail == index for event in facts.every_of_kind(EventKind.HOLD_OVERRUN, hold.vcpu)):
            yield f"{where}, was ended by its bound"
        elif not any(event.detail == index for event in facts.every_of_kind(EventKind.LET_GO, hold.vcpu)):
            yield f"{where}, was never seen to end"
        elif hold.phase is not None:
            seen_in = find_phases(facts, facts.topology.core_of(hold.vcpu)).at_seq(held[0].seq)
            if seen_in is not hold.phase:
                yield f"{where}, held it in {seen_in.value}"


def _find_phases_missed(facts: Facts, injections: tuple[Injection, ...]) -> Iterator[str]:
    log = facts.evidence.injections
    for sent in log.sent if log is not None else ():
        injection = injections[sent.index] if 0 <= sent.index < len(injections) else None
        if injection is None:
            continue
        if injection.hold >= 0 and not _is_within_hold(facts, sent, injection.hold):
            yield f"NMI {sent.index} was not sent and acknowledged while hold {injection.hold} lasted"
        if injection.phase is not None and injection.core not in facts.cores:
            yield f"NMI {sent.index} was for core {injection.core}, which the guest does not have"
        elif injection.phase is not None:
            phases = find_phases(facts, injection.core)
            seen = (phases.at_ns(sent.send_ns), phases.at_ns(sent.reply_ns))
            if seen != (injection.phase, injection.phase):
                wanted = f"{injection.phase.value} of core {injection.core}"
                sent_in = " and ".join(dict.fromkeys(phase.value for phase in seen))
                yield f"NMI {sent.index} was for {wanted}, and sent in {sent_in}"


def _is_within_hold(facts: Facts, sent: Sent, hold: int) -> bool:
    edges = (EventKind.HELD, EventKind.LET_GO)
    times = [event.mono_ns for kind in edges for event in facts.every_of_kind(kind) if event.detail == hold]
    return len(times) == len(edges) and times[0] <= sent.send_ns and 0 < sent.reply_ns <= times[1]
