# SPDX-License-Identifier: GPL-2.0-or-later
"""Computes two panels with the actions of one core's threads in one late load. Pure: evidence in, geometry out.

Both panels use the host's clock. The first panel shows the whole load, in milliseconds from its begin. The second panel
shows the first breach of the window, in microseconds from the window's opening. Guest times are left out: durations of
two clocks never share an axis.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lab.model.evidence import (
    NASTY,
    EventKind,
    Evidence,
    Hazard,
    InjectionLog,
    ObserverEvent,
    ObserverEvidence,
    WindowSeen,
)
from lab.report.panel import WIDTH_PX, Axis, Lane, Moment, Panel, Stretch, draw_panel

US_PER_MS = 1_000.0
NS_PER_US = 1_000
#: A breach is over if its vCPU shows nothing new for this time. The events of an NMI's way through the kernel are
#: closer.
BURST_GAP_US = 100.0
MAX_BURST_EVENTS = 40
#: Margin on both sides of a breach, as a share of its length.
BURST_MARGIN = 0.06
#: No load lasts longer. Foreign clocks may claim any time.
MAX_AXIS_NS = 3_600_000_000_000
#: A hostile evidence folder may contain a million events. A load has some hundreds.
MAX_MOMENTS = 20_000

#: The lane of the NMIs that the lab sends. No vCPU has this number.
SENDS = -1

_SHAPES = {
    EventKind.NMI_ENTRY: "entry",
    EventKind.SELF_NMI: "self",
    EventKind.IPI_NMI: "self",
    EventKind.BACKTRACE: "self",
    EventKind.OUTSIDE: "outside",
    EventKind.HAZARD: "hazard",
    EventKind.IN_FLIGHT: "flight",
    EventKind.RETRY: "retry",
}
_BREACHES = ("outside", "hazard", "apart")


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeline:
    """The drawing of one core in one late load.

    :param breach: None if no thread left its wait in the window
    """

    core: int
    load: int
    width: int
    overview: Panel
    breach: Panel | None


def draw_timeline(evidence: Evidence, core: int) -> Timeline | None:
    """Lay out the threads of a core. If this core has no window, lay out the first core with a breach.

    :return: None if the observer saw no window
    """
    observer = evidence.observer
    if observer is None or not observer.windows:
        return None
    window = _choose_window(observer, core)
    topology = evidence.scenario.topology
    core = max(0, min(window.core, topology.total_cores - 1))
    vcpus = topology.threads_of(core)
    events = [event for event in observer.events if event.load == window.load]
    begin_ns = _find_begin(window, events)

    def at_us(mono_ns: int) -> float:
        return max(-MAX_AXIS_NS, min(MAX_AXIS_NS, mono_ns - begin_ns)) / NS_PER_US

    mine = [event for event in events if event.vcpu in vcpus]
    open_us = at_us(window.open_ns)
    end_us = max(1.0, open_us, *(at_us(event.mono_ns) for event in events), *_close_us(window, at_us))
    close_us = max(open_us, *_close_us(window, at_us)) if window.close_seq else end_us
    moments = [
        Moment(lane=event.vcpu, at_us=at_us(event.mono_ns), shape=_shape(event), text=_tell(event))
        for event in mine
        if event.kind in _SHAPES
    ][:MAX_MOMENTS]
    stretches = [
        *_find_waits(mine, vcpus, at_us, end_us),
        *_find_stalls(window, vcpus, at_us, close_us),
        Stretch(
            lane=window.primary,
            begin_us=open_us,
            end_us=close_us,
            shape="window",
            text="window: WRMSR 0x79" if window.close_seq else "window: WRMSR 0x79, never closed",
            band=True,
        ),
        *_find_sends(evidence.injections, vcpus, at_us),
    ]
    sends = [
        Moment(lane=SENDS, at_us=stretch.begin_us, shape="sent", text=stretch.text)
        for stretch in stretches
        if stretch.lane == SENDS
    ]
    lanes = (
        Lane(number=SENDS, label="the lab", role="NMIs sent"),
        *(
            Lane(number=vcpu, label=f"vCPU {vcpu}", role="primary" if vcpu == window.primary else "sibling")
            for vcpu in vcpus
        ),
    )
    whole = Axis(begin_us=0, end_us=end_us, zero_us=0, unit_us=US_PER_MS, label="ms from load begin, host clock")
    zoom = _find_breach(moments, window.primary, open_us, close_us)
    breach = None
    if zoom is not None:
        near = Axis(
            begin_us=zoom[0], end_us=zoom[1], zero_us=open_us, unit_us=1, label="µs into the window, host clock"
        )
        breach = draw_panel(near, lanes, stretches, [*moments, *sends], numbered=True)
        stretches.append(
            Stretch(lane=SENDS, begin_us=zoom[0], end_us=zoom[1], shape="zoom", text="enlarged below", band=True)
        )
    overview = draw_panel(whole, lanes, stretches, [*moments, *sends], numbered=False)
    return Timeline(core=core, load=window.load, width=WIDTH_PX, overview=overview, breach=breach)


def _choose_window(observer: ObserverEvidence, core: int) -> WindowSeen:
    for window in observer.windows:
        if window.core == core:
            return window
    for window in observer.windows:
        if any(sibling.outside_blocks for sibling in window.siblings):
            return window
    return observer.windows[0]


def _find_begin(window: WindowSeen, events: Sequence[ObserverEvent]) -> int:
    for event in events:
        if event.kind is EventKind.LOAD_BEGIN:
            return min(event.mono_ns, window.open_ns)
    return min((window.open_ns, *(event.mono_ns for event in events)))


def _close_us(window: WindowSeen, at_us: Callable[[int], float]) -> tuple[float, ...]:
    return (at_us(window.close_ns),) if window.close_seq else ()


def _find_waits(
    events: Sequence[ObserverEvent], vcpus: Sequence[int], at_us: Callable[[int], float], end_us: float
) -> list[Stretch]:
    """Return each thread's wait, from its first call-in to the first release after the call-in, or to the end."""
    waits = []
    for vcpu in vcpus:
        called_us = next((at_us(e.mono_ns) for e in events if e.vcpu == vcpu and e.kind is EventKind.CALL_IN), None)
        if called_us is None:
            continue
        released = (at_us(e.mono_ns) for e in events if e.vcpu == vcpu and e.kind is EventKind.RELEASE)
        released_us = next((moment_us for moment_us in released if moment_us >= called_us), None)
        waits.append(
            Stretch(
                lane=vcpu,
                begin_us=called_us,
                end_us=end_us if released_us is None else released_us,
                shape="wait",
                text="waits, never released" if released_us is None else "waits, from call-in to release",
            )
        )
    return waits


def _find_stalls(
    window: WindowSeen, vcpus: Sequence[int], at_us: Callable[[int], float], close_us: float
) -> list[Stretch]:
    """Return each sibling's stall, from its begin to the window's close.

    If the stall's bound ended before the window closed, the stall lasts to the sibling's first block.
    """
    stalls = []
    for sibling in window.siblings:
        if not sibling.stalled_ns or sibling.vcpu not in vcpus:
            continue
        begin_us = at_us(sibling.stalled_ns)
        overran = sibling.stall_overrun and sibling.first_ns
        stalls.append(
            Stretch(
                lane=sibling.vcpu,
                begin_us=begin_us,
                end_us=max(begin_us, at_us(sibling.first_ns) if overran else close_us),
                shape="wait",
                text="held by the update itself" + (", until its bound let it go" if sibling.stall_overrun else ""),
            )
        )
    return stalls


def _find_sends(injections: InjectionLog | None, vcpus: Sequence[int], at_us: Callable[[int], float]) -> list[Stretch]:
    """Return each NMI that reaches this core, from its send to its reply."""
    if injections is None:
        return []
    return [
        Stretch(
            lane=SENDS,
            begin_us=at_us(sent.send_ns),
            end_us=at_us(sent.reply_ns) if sent.reply_ns else at_us(sent.send_ns),
            shape="send",
            text=f"NMI {sent.index} sent to {'all vCPUs' if sent.vcpu < 0 else f'vCPU {sent.vcpu}'}"
            + ("" if sent.reply_ns else ", no reply"),
        )
        for sent in injections.sent[:MAX_MOMENTS]
        if sent.vcpu < 0 or sent.vcpu in vcpus
    ]


def _find_breach(
    moments: Sequence[Moment], primary: int, open_us: float, close_us: float
) -> tuple[float, float] | None:
    """Return the span of the first breach in the window, from the NMI entry that led to the breach."""
    siblings = sorted(
        (m for m in moments if m.lane != primary and open_us <= m.at_us <= close_us), key=lambda moment: moment.at_us
    )
    breaches = [moment for moment in siblings if moment.shape in _BREACHES][:MAX_BURST_EVENTS]
    if not breaches:
        return None
    first_us = last_us = breaches[0].at_us
    for moment in breaches:
        if moment.at_us - last_us > BURST_GAP_US:
            break
        last_us = moment.at_us
    entries_us = [m.at_us for m in siblings if m.shape == "entry" and m.at_us <= first_us <= m.at_us + BURST_GAP_US]
    first_us = entries_us[-1] if entries_us else first_us
    margin_us = max(1.0, BURST_MARGIN * (last_us - first_us))
    return first_us - margin_us, last_us + margin_us


def _shape(event: ObserverEvent) -> str:
    """Return the shape of an event.

    Classes that do not break ``harmless`` have a shape of their own: with FSGSBASE every NMI entry has such classes.
    """
    apart = event.kind is EventKind.HAZARD and event.hazard not in NASTY
    return "apart" if apart else _SHAPES[event.kind]


def _tell(event: ObserverEvent) -> str:
    where = event.symbol or (f"{event.pc:#x}" if event.pc else "halted")
    what = {
        EventKind.NMI_ENTRY: "NMI entry",
        EventKind.SELF_NMI: "sends itself an NMI",
        EventKind.IPI_NMI: "sends NMIs to others",
        EventKind.BACKTRACE: "sends NMIs for a backtrace",
        EventKind.OUTSIDE: "outside its wait",
        EventKind.HAZARD: "hazard" if event.hazard is Hazard.NONE else event.hazard.value,
        EventKind.IN_FLIGHT: "in flight when the window opened",
        EventKind.RETRY: "a further WRMSR 0x79",
    }[event.kind]
    return f"{what}: {where}"
