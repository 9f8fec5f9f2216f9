# SPDX-License-Identifier: GPL-2.0-or-later
"""From the shared file to evidence. Whatever the file holds, reading it never raises: what is unfit counts as lost."""

from collections.abc import Callable

from lab.model.evidence import (
    BlockCount,
    Cover,
    Covered,
    EventKind,
    ObserverEvent,
    ObserverEvidence,
    SiblingView,
    UpdateSeen,
    WindowSeen,
)
from lab.observer.clock import TscClock
from lab.observer.file import ObserverFile
from lab.observer.layout import (
    COVER_MASKED,
    HAZARDS,
    HOLDS,
    KINDS,
    MAGIC,
    MODE_STALL,
    PHASE_OF,
    SEES_BITS,
    TAKEN,
    Header,
    Record,
    Sibling,
    Window,
    in_region,
    pc_of,
)

#: Whose detail is an index among a plan's holds.
_OF_HOLDS = (EventKind.HELD, EventKind.LET_GO, EventKind.HOLD_OVERRUN, EventKind.RESUMED)

#: Turns a guest address into ``symbol+0x..``, empty when it is none of the kernel's.
Symbolise = Callable[[int], str]


class TrialReader:
    """Reads what the observer left of one trial.

    :param first_seq: the number of the first record that can be this trial's
    :param lost_before: windows already lost when the trial was armed
    :param covers_lost_before: the same of blocks without a place in a cover table
    """

    def __init__(
        self,
        file: ObserverFile,
        *,
        trial: int,
        first_seq: int,
        lost_before: int,
        symbolise: Symbolise,
        covers_lost_before: int = 0,
    ) -> None:
        self._file = file
        self._trial = trial
        self._first_seq = first_seq
        self._lost_before = lost_before
        self._covers_lost_before = covers_lost_before
        self._symbolise = symbolise

    def read(self) -> ObserverEvidence:
        """Return all of it."""
        header = self._file.read_header()
        records, lost = self._file.read_records(self._first_seq, header.next_seq)
        if header.shape.magic != MAGIC or header.next_seq < self._first_seq:
            lost += 1  # the count itself is gone, so at least one is
        fit = [record for record in records if self._fits(record)]
        clock = TscClock(
            [
                (header.status.install_tsc, header.status.install_mono_ns),
                *((record.tsc, record.mono_ns) for record in fit),
            ]
        )
        windows, windows_lost = self._read_windows(clock)
        events = tuple(self._make_event(record) for record in fit if record.trial == self._trial)
        updates, updates_lost = self._read_updates(events)
        return ObserverEvidence(
            events=events,
            windows=windows,
            records_lost=lost + len(records) - len(fit) + updates_lost,
            windows_lost=max(0, header.status.windows_lost - self._lost_before) + windows_lost,
            gaps_ns=tuple(clock.duration_ns(gap) for gap in self._measure_gaps(header)),
            arrivals=tuple(hold.arrivals for hold in header.holds[: min(header.control.holds, HOLDS)]),
            cover=self._read_cover(header) if header.control.cover else None,
            points_wrong=header.status.points_wrong,
            interface=header.status.interface,
            sees=tuple(sees for sees, bit in SEES_BITS.items() if header.status.sees & bit),
            updates=updates,
            cpuid_missed=header.status.cpuid_missed,
        )

    def _read_updates(self, events: tuple[ObserverEvent, ...]) -> tuple[tuple[UpdateSeen, ...], int]:
        """Return what this trial's records of updates tell, and of how many of them that is lost."""
        recorded = [event for event in events if event.kind is EventKind.UPDATE]
        places = self._file.read_updates() if recorded else {}
        seen = []
        for event in recorded:
            place = places.get(event.detail)
            if place is None or place.taken not in TAKEN:
                continue
            seen.append(
                UpdateSeen(
                    seq=event.seq,
                    vcpu=event.vcpu,
                    operand=place.operand,
                    digest=place.digest,
                    revision=place.revision,
                    signature=place.signature,
                    platforms=place.platforms,
                    total_size=place.total_size,
                    taken=TAKEN[place.taken],
                    before=place.before,
                    after=place.after,
                )
            )
        return tuple(seen), len(recorded) - len(seen)

    def _read_cover(self, header: Header) -> Cover:
        blocks = tuple(
            Covered(
                vcpu=vcpu,
                phase=PHASE_OF[each.phase & ~COVER_MASKED],
                masked=bool(each.phase & COVER_MASKED),
                pc=each.pc,
                symbol=self._name(each.pc),
                count=each.count,
            )
            for vcpu in range(self._file.places.vcpus)
            for each in sorted(self._file.read_cover(vcpu), key=lambda each: (int(each.phase), int(each.pc)))
            if each.phase & ~COVER_MASKED in PHASE_OF
        )
        return Cover(blocks=blocks, lost=max(0, header.status.covers_lost - self._covers_lost_before))

    def _fits(self, record: Record) -> bool:
        return record.kind in KINDS and record.hazard in HAZARDS and record.vcpu < self._file.places.vcpus

    def _name(self, pc: int) -> str:
        return self._symbolise(pc) if pc else ""

    def _make_event(self, record: Record) -> ObserverEvent:
        return ObserverEvent(
            seq=record.stamp,
            mono_ns=record.mono_ns,
            tsc=record.tsc,
            kind=KINDS[record.kind],
            vcpu=record.vcpu,
            load=record.load,
            pc=record.pc,
            symbol=self._name(record.pc),
            hazard=HAZARDS[record.hazard],
            detail=min(record.detail, HOLDS) if KINDS[record.kind] in _OF_HOLDS else record.detail,
        )

    def _read_windows(self, clock: TscClock) -> tuple[tuple[WindowSeen, ...], int]:
        """Return this trial's windows in order of opening, and how many of them are unfit."""
        siblings = self._file.read_siblings()
        seen: list[WindowSeen] = []
        lost = 0
        for core, window in enumerate(self._file.read_windows()):
            if window.trial != self._trial:
                continue
            threads = range(core * self._file.places.threads, (core + 1) * self._file.places.threads)
            others = [vcpu for vcpu in threads if vcpu != window.primary]
            if window.primary not in threads or any(siblings[vcpu].trial != self._trial for vcpu in others):
                lost += 1
                continue
            views = tuple(self._make_view(vcpu, siblings[vcpu], window, clock) for vcpu in others)
            seen.append(_make_window(core, window, views))
        return tuple(sorted(seen, key=lambda each: each.open_seq)), lost

    def _make_view(self, vcpu: int, sibling: Sibling, window: Window, clock: TscClock) -> SiblingView:
        in_flight_pc = pc_of(sibling.in_flight)
        return SiblingView(
            vcpu=vcpu,
            in_flight_pc=in_flight_pc,
            in_flight_symbol=self._name(in_flight_pc),
            in_flight_region=in_region(sibling.in_flight, window.mechanism % 16),
            region_blocks=sibling.region_blocks,
            outside_blocks=sibling.outside_blocks,
            first_ns=clock.time_ns(sibling.first_tsc),
            last_ns=clock.time_ns(sibling.last_region_tsc),
            halted_at_close=bool(sibling.halted),
            stalled_ns=clock.time_ns(sibling.stalled_tsc),
            stall_overrun=bool(sibling.stall_overrun),
            # A hazard that found no place is as unseen as a block that found none.
            blocks_lost=sibling.blocks_lost + sibling.hazards_lost,
            blocks=tuple(
                BlockCount(
                    pc=block.pc,
                    symbol=self._name(block.pc),
                    count=block.count,
                    first_seq=block.first_seq,
                    last_seq=block.last_seq,
                    in_region=bool(block.in_region),
                )
                for block in sorted(self._file.read_table(vcpu), key=lambda block: int(block.first_seq))
            ),
        )

    def _measure_gaps(self, header: Header) -> list[int]:
        """Return each vCPU's longest gap in the trial's loads, in cycles.

        Where a load's end was never seen, the last sign of life of any vCPU is its end.
        """
        status = header.status
        vcpus = self._file.read_vcpus()
        if status.watched_trial != self._trial:
            return [0] * len(vcpus)
        last_tsc = max((vcpu.last_tsc for vcpu in vcpus), default=0)
        gaps: list[int] = []
        for vcpu in vcpus:
            gap = max(vcpu.gap_tsc if vcpu.gap_trial == self._trial else 0, vcpu.end_tsc)
            unended = status.load_active and status.load == status.watched_load
            if unended and not vcpu.held and vcpu.halts % 2 == 0:
                entered = vcpu.gap_load == status.watched_load
                gap = max(gap, last_tsc - (vcpu.last_tsc if entered else status.load_begin_tsc))
            gaps.append(gap)
        return gaps


def _make_window(core: int, window: Window, siblings: tuple[SiblingView, ...]) -> WindowSeen:
    return WindowSeen(
        core=core,
        primary=window.primary,
        load=window.load,
        pc=window.pc,
        open_seq=window.open_seq,
        open_ns=window.open_ns,
        open_tsc=window.open_tsc,
        close_seq=window.close_seq,
        close_ns=window.close_ns,
        close_tsc=window.close_tsc,
        asked_ns=window.asked_ns,
        extended_ns=window.extended_ns,
        stalled=window.mode == MODE_STALL,
        siblings=siblings,
    )
