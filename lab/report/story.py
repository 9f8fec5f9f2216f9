# SPDX-License-Identifier: GPL-2.0-or-later
"""The story of one trial in order: what each thread did, what the lab sent, what broke. Pure: evidence in, rows out.

All times are on the host's clock, in microseconds since the load's begin. This file cleans guest text for all readers.
"""

from collections.abc import Iterable, Mapping, Sequence

import msgspec

from lab.model.evidence import EventKind, Evidence, Hazard, ObserverEvent, Sent
from lab.model.verdict import Finding, Handler, Verdict
from lab.report.text import clean

NS_PER_US = 1_000
#: The number for the lab's own actions. No vCPU has this number.
LAB = -1
#: If the guest has more cores, the story shows one core, unless the caller selects a core.
MAX_CORES = 2
#: A hostile evidence folder may contain a million records. A load has some hundreds.
MAX_EVENTS = 100_000
#: The maximum number of NMIs in the text of one entry.
MAX_TOOK = 6

_PLAIN = {
    EventKind.LOAD_BEGIN: "late load begins",
    EventKind.LOAD_END: "late load ends",
    EventKind.CALL_IN: "calls in",
    EventKind.RELEASE: "is let go by the mechanism",
    EventKind.SELF_NMI: "sends itself an NMI",
    EventKind.IPI_NMI: "sends NMIs to others",
    EventKind.BACKTRACE: "sends NMIs for a backtrace",
    EventKind.NMI_HANDLER: "calls ordinary NMI handlers",
    EventKind.WAIT_LOOP: "waits",
    EventKind.WINDOW_OPEN: "WINDOW OPENS: updates, WRMSR 0x79",
    EventKind.WINDOW_CLOSE: "WINDOW CLOSES: has updated",
    EventKind.IN_FLIGHT: "in flight",
    EventKind.RETRY: "a further WRMSR 0x79",
    EventKind.EARLY: "WRMSR 0x79 outside any load",
    EventKind.RESUMED: "runs on",
    EventKind.NMI_TAKEN: "QEMU has it take an NMI",
    EventKind.UPDATE: "names the update in memory",
}
#: Rows of these kinds are dropped last if there are too many rows.
WEIGHTY_KINDS = (
    *(EventKind.LOAD_BEGIN, EventKind.LOAD_END, EventKind.WINDOW_OPEN, EventKind.WINDOW_CLOSE),
    *(EventKind.HELD, EventKind.LET_GO, EventKind.HOLD_OVERRUN, EventKind.RESUMED),
)
WEIGHTY = frozenset(kind.value for kind in WEIGHTY_KINDS)


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One event.

    :param who: the vCPU, or LAB
    :param seq: number of the observer's first record of the event; 0 for actions of the lab
    :param broke: names of the broken invariants that the event proves broken
    :param count: number of records of this row
    """

    at_us: float
    who: int
    seq: int
    kind: str
    text: str
    broke: tuple[str, ...] = ()
    count: int = 1


class Story(msgspec.Struct, frozen=True, kw_only=True):
    """The story of one trial.

    :param threads: the vCPUs of the story
    :param rows: in order of time
    :param gaps: number of dropped rows, by the row before the gap
    :param elsewhere: number of rows of other threads
    """

    threads: tuple[int, ...]
    rows: tuple[Row, ...]
    gaps: dict[int, int]
    elsewhere: int

    @property
    def left_out(self) -> int:
        """The number of dropped rows of these threads."""
        return sum(self.gaps.values())


def tell_story(evidence: Evidence, verdict: Verdict, core: int | None, limit: int) -> Story:
    """Return the story of a trial.

    :param verdict: the verdict on this evidence
    :param core: the core whose threads are shown; None for all of up to MAX_CORES cores, otherwise for the first core
        that broke an invariant
    :param limit: maximum number of rows; breaks, windows and holds are dropped last
    """
    topology = evidence.scenario.topology
    if core is None and topology.total_cores > MAX_CORES:
        core = _find_core(verdict)
    threads = tuple(range(topology.vcpus)) if core is None else topology.threads_of(core)
    every = sorted((*_tell_events(evidence, verdict), *_tell_lab(evidence)), key=lambda row: (row.at_us, row.seq))
    mine = [row for row in every if row.who in (*threads, LAB)]
    rows, gaps = _bound(_join(mine), limit)
    return Story(threads=threads, rows=rows, gaps=gaps, elsewhere=len(every) - len(mine))


def _find_core(verdict: Verdict) -> int:
    broken = [one for one in verdict.invariants if one.finding is Finding.BROKEN]
    return next((proof.core for one in broken for proof in one.proofs if proof.core >= 0), 0)


def find_begin(evidence: Evidence) -> int:
    """Return when the load began, according to the observer or else the lab; 0 if neither knows."""
    events = evidence.observer.events if evidence.observer is not None else ()
    begins = [event.mono_ns for event in events if event.kind is EventKind.LOAD_BEGIN]
    if begins:
        return min(begins)
    lab = [evidence.injections.begin_ns] if evidence.injections is not None else []
    lab += [evidence.timings.command_ns] if evidence.timings is not None else []
    return next((each for each in (*lab, *(event.mono_ns for event in events)) if each), 0)


def _tell_events(evidence: Evidence, verdict: Verdict) -> Iterable[Row]:
    begin_ns = find_begin(evidence)
    broke = _find_proofs(verdict)
    took = _find_takers(verdict)
    for event in (evidence.observer.events if evidence.observer is not None else ())[:MAX_EVENTS]:
        yield Row(
            at_us=(event.mono_ns - begin_ns) / NS_PER_US,
            who=event.vcpu,
            seq=event.seq,
            kind=event.kind.value,
            text=_tell(event, took.get(event.seq, "")),
            broke=tuple(broke.get(event.seq, ())),
        )


def _find_proofs(verdict: Verdict) -> Mapping[int, list[str]]:
    found: dict[int, list[str]] = {}
    for one in verdict.invariants:
        for proof in one.proofs if one.finding is Finding.BROKEN else ():
            names = found.setdefault(proof.seq, [])
            if proof.seq and one.name not in names:
                names.append(one.name)
    return found


def _find_takers(verdict: Verdict) -> Mapping[int, str]:
    """Return the NMIs that each entry handled, and their phase, by the number of the entry's record."""
    return {
        entry.seq: f"{_list(entry.took) or 'an NMI that nothing known sent'}, in {entry.phase.value}"
        + (f", taken by the {entry.by.value} handler" if entry.by is Handler.ORDINARY else "")
        + (", taken by the mechanism" if entry.by is Handler.MECHANISM else "")
        + (", dropped" if entry.by is Handler.DROPPED else "")
        for entry in verdict.entries
    }


def _list(took: Sequence[str]) -> str:
    more = len(took) - MAX_TOOK
    return " and ".join(took[:MAX_TOOK]) + (f" and {more} more" if more > 0 else "")


def _tell(event: ObserverEvent, took: str) -> str:
    where = clean(event.symbol) or (f"{event.pc:#x}" if event.pc else "halted")
    match event.kind:
        case EventKind.NMI_ENTRY:
            return f"enters {took}" if took else "enters an NMI"
        case EventKind.OUTSIDE:
            return f"leaves its wait: {where}"
        case EventKind.HAZARD:
            return f"{'hazard' if event.hazard is Hazard.NONE else event.hazard.value} at {where}"
        case EventKind.HELD:
            return f"is held at {where} (hold {event.detail})"
        case EventKind.LET_GO:
            return f"hold {event.detail} lets go"
        case EventKind.HOLD_OVERRUN:
            return f"hold {event.detail} ends by its bound"
    return f"{_PLAIN[event.kind]}: {where}" if event.kind is not EventKind.LOAD_BEGIN else _PLAIN[event.kind]


def _tell_lab(evidence: Evidence) -> Iterable[Row]:
    begin_ns = find_begin(evidence)

    def row(at_ns: int, kind: str, text: str) -> Row:
        return Row(at_us=(at_ns - begin_ns) / NS_PER_US, who=LAB, seq=0, kind=kind, text=text)

    if evidence.timings is not None:
        if evidence.timings.command_ns:
            yield row(evidence.timings.command_ns, "command", "writes to reload")
        if evidence.timings.returned_ns:
            yield row(evidence.timings.returned_ns, "returned", "the write has returned")
    log = evidence.injections
    for sent in (*log.sent, *log.sentinels)[:MAX_EVENTS] if log is not None else ():
        name, whom = _name(sent), "all" if sent.vcpu < 0 else f"vCPU {sent.vcpu}"
        yield row(sent.send_ns, "send", f"sends {name} to {whom}" + ("" if sent.reply_ns else ", no reply"))
        if sent.reply_ns:
            yield row(sent.reply_ns, "reply", f"{name} acknowledged")


def _name(sent: Sent) -> str:
    return f"NMI {sent.index}" if sent.index >= 0 else "a sentinel"


def _join(rows: Sequence[Row]) -> list[Row]:
    """Join neighbouring rows of one thread that show only code outside the thread's wait."""
    joined: list[Row] = []
    run: list[Row] = []

    def end() -> None:
        if run:
            joined.append(_sum_up(run))
            run.clear()

    for row in rows:
        outside = row.kind in (EventKind.OUTSIDE.value, EventKind.HAZARD.value)
        if run and not (outside and row.who == run[0].who):
            end()
        if outside:
            run.append(row)
        else:
            joined.append(row)
    end()
    return joined


def _sum_up(run: Sequence[Row]) -> Row:
    if len(run) == 1:
        return run[0]
    outside = [row.text.rpartition(" ")[2] for row in run if row.kind == EventKind.OUTSIDE.value]
    hazards = dict.fromkeys(row.text for row in run if row.kind == EventKind.HAZARD.value)
    parts = [f"leaves its wait: {len(outside)} places, {outside[0]} to {outside[-1]}"] if outside else []
    parts += ["executes " + ", ".join(hazards)] if hazards else []
    return Row(
        at_us=run[0].at_us,
        who=run[0].who,
        seq=run[0].seq,
        kind=run[0].kind,
        text="; ".join(parts),
        broke=tuple(dict.fromkeys(name for row in run for name in row.broke)),
        count=len(run),
    )


def _bound(rows: Sequence[Row], limit: int) -> tuple[tuple[Row, ...], dict[int, int]]:
    """Drop rows above the limit. Return the kept rows, and the size of each gap by the kept row before the gap."""
    order = sorted(range(len(rows)), key=lambda at: (not rows[at].broke, rows[at].kind not in WEIGHTY, at))
    kept = sorted(order[:limit])
    gaps = {}
    for number, at in enumerate(kept):
        after = kept[number + 1] if number + 1 < len(kept) else len(rows)
        if after - at > 1:
            gaps[number] = after - at - 1
    if kept and kept[0]:
        gaps[-1] = kept[0]
    return tuple(rows[at] for at in kept), gaps
