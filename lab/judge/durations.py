# SPDX-License-Identifier: GPL-2.0-or-later
"""How long things took. Host times: the observer and the injection log. Guest times: the rendezvous state."""

from typing import Final

from lab.judge.clocks import GuestSpan, find_cycles_per_us, find_offset, find_rate, find_updates, find_waits
from lab.judge.facts import Facts, to_us
from lab.model.evidence import ObserverEvent
from lab.model.verdict import Durations, Landing, Span

#: Of a rate in kHz: a load of a tenth of a second tells no more.
KHZ_DIGITS: Final = 3


def find_durations(facts: Facts, landings: tuple[Landing, ...]) -> Durations:
    """Fill in what the evidence gives; what it does not stays empty.

    :param landings: of the same trial: they say which entry took which NMI
    """
    offset = find_offset(facts)
    cycles_per_us, rate = find_cycles_per_us(facts), find_rate(facts)
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
            Span(who=landing.vcpu, us=landing.delay_us) for landing in landings if landing.delay_us is not None
        ),
        guest_waits_us=_measure(find_waits(facts), cycles_per_us),
        guest_updates_us=_measure(find_updates(facts), cycles_per_us),
        tsc_offset_cycles=known.middle if known else None,
        tsc_claimed_khz=rate.claimed_khz if rate is not None else None,
        tsc_measured_khz=round(rate.measured_khz, KHZ_DIGITS) if rate is not None else None,
        tsc_error_us=(known.high - known.low) / 2 / cycles_per_us if known and cycles_per_us else None,
    )


def _between(first: ObserverEvent | None, last: ObserverEvent | None) -> float | None:
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


def _measure(spans: tuple[GuestSpan, ...], cycles_per_us: float | None) -> tuple[Span, ...]:
    """Return durations by the rate that was measured; none where it was not."""
    if cycles_per_us is None:
        return ()
    return tuple(Span(who=span.cpu, us=span.cycles / cycles_per_us) for span in spans)
