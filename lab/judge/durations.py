# SPDX-License-Identifier: GPL-2.0-or-later
"""How long things took. Host times: the oracle and the injection log. Guest times: the rendezvous state."""

from collections.abc import Sequence

from lab.judge.clocks import find_cycles_per_us, find_offset
from lab.judge.facts import Facts, to_us
from lab.judge.nmis import explain
from lab.spec.evidence import CpuState, OracleEvent
from lab.spec.verdict import Durations, Span


def find_durations(facts: Facts) -> Durations:
    """Fill in what the evidence gives; what it does not stays empty."""
    offset = find_offset(facts)
    cycles_per_us = find_cycles_per_us(facts)
    known = offset if offset is not None and offset.possible else None
    return Durations(
        host_load_us=_between(facts.begin, facts.end),
        host_rendezvous_us=_find_rendezvous(facts),
        host_windows_us=tuple(
            Span(who=window.seen.core, us=to_us(window.seen.close_ns - window.seen.open_ns))
            for window in facts.windows
            if window.seen.close_seq
        ),
        host_holds_us=_find_holds(facts),
        host_nmi_delay_us=tuple(
            Span(who=vcpu, us=to_us(entry.mono_ns - sent.send_ns))
            for vcpu in facts.vcpus
            for entry, sent in explain(facts, vcpu).taken
        ),
        guest_waits_us=_find_guest_spans(
            facts, [(state.cpu, state.wait_begin_tsc, state.wait_end_tsc) for state in _states(facts)]
        ),
        guest_updates_us=_find_guest_spans(
            facts, [(state.cpu, state.update_begin_tsc, state.update_end_tsc) for state in _states(facts)]
        ),
        tsc_offset_cycles=known.middle if known else None,
        tsc_error_us=(known.high - known.low) / 2 / cycles_per_us if known and cycles_per_us else None,
    )


def _between(first: OracleEvent | None, last: OracleEvent | None) -> float | None:
    return to_us(last.mono_ns - first.mono_ns) if first is not None and last is not None else None


def _find_rendezvous(facts: Facts) -> float | None:
    call_ins = [call_in for vcpu in facts.online if (call_in := facts.call_in(vcpu)) is not None]
    if len(call_ins) != len(facts.online):
        return None
    return _between(facts.begin, max(call_ins, key=lambda event: event.seq))


def _find_holds(facts: Facts) -> tuple[Span, ...]:
    holds = []
    for core in facts.cores:
        for vcpu in facts.topology.siblings_of(core):
            held_us = _between(facts.call_in(vcpu), next(iter(facts.releases(vcpu)), None))
            if held_us is not None:
                holds.append(Span(who=vcpu, us=held_us))
    for window in facts.windows if facts.mechanism.stalled else ():
        close_ns = window.seen.close_ns
        stalled = [view for view in window.seen.siblings if not view.stall_overrun and 0 < view.stalled_ns <= close_ns]
        holds += [Span(who=view.vcpu, us=to_us(close_ns - view.stalled_ns)) for view in stalled]
    return tuple(holds)


def _states(facts: Facts) -> Sequence[CpuState]:
    guest = facts.evidence.guest
    if guest is None or guest.state is None or facts.repeat is not None:
        return ()
    return guest.state.cpus


def _find_guest_spans(facts: Facts, stamps: Sequence[tuple[int, int, int]]) -> tuple[Span, ...]:
    guest = facts.evidence.guest
    khz = guest.state.tsc_khz if guest is not None and guest.state is not None else 0
    if khz <= 0:
        return ()
    # A CPU that did no update leaves zeros.
    return tuple(Span(who=cpu, us=(end - begin) * 1_000 / khz) for cpu, begin, end in stamps if begin and end)
