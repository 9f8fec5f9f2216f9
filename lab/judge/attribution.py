# SPDX-License-Identifier: GPL-2.0-or-later
"""Which NMI entry took which causes: the one attribution for all that is reported. No invariant depends on it."""

from dataclasses import dataclass

from lab.model.evidence import EventKind, ObserverEvent, Sent


@dataclass(frozen=True, slots=True, kw_only=True)
class Cause:
    """What set a pending bit, and the range of entries, by index, of which one took it.

    :param sent: the lab's NMI, None for one of the guest's own
    :param event: the guest's, None for one of the lab's
    :param likely: that of them which took it unless the vCPU lost the host's CPU at a bad moment
    :param optional: it may never have set the bit: it met a masked LINT1, or was for a backtrace of other CPUs
    """

    first: int
    last: int
    likely: int
    sent: Sent | None
    event: ObserverEvent | None
    optional: bool = False

    @property
    def is_backtrace(self) -> bool:
        """Whether the kernel sent it for a backtrace."""
        return self.event is not None and self.event.kind is EventKind.BACKTRACE


def attribute(
    entries: tuple[ObserverEvent, ...], causes: list[Cause], matched: dict[int, int]
) -> tuple[tuple[tuple[ObserverEvent, Cause], ...], tuple[tuple[Cause, ObserverEvent], ...]]:
    """Say which entry took which causes, as it most likely was.

    A matching says how many entries have a cause, and of many that are as good it is any. There is one pending bit, so
    what was set later is never taken by an earlier entry: of all ways in that order which leave as few entries without
    a cause, the one that is nearest to what is likely of each by itself. Where that order leaves more of them than the
    matching, the matching stands.

    :param matched: number of the entry by index of the cause
    """
    coming = sorted(
        (index for index, cause in enumerate(causes) if cause.first < len(entries)),
        key=lambda index: (causes[index].likely, causes[index].first, causes[index].last, index),
    )
    put = _put_in_order([causes[index] for index in coming])
    taking = dict(zip(coming, put, strict=True))
    if not put or len(set(put)) < len(set(matched.values())):
        taking = {index: matched.get(index, causes[index].likely) for index in coming}
    owners: dict[int, tuple[ObserverEvent, Cause]] = {}
    shared = []
    for index in coming:
        entry = entries[taking[index]]
        if entry.seq in owners:
            shared.append((causes[index], entry))
        else:
            owners[entry.seq] = entry, causes[index]
    return tuple(owners.values()), tuple(shared)


def _put_in_order(causes: list[Cause]) -> list[int]:
    """Return an entry for each cause, none before that of the cause before; empty where there is no such way.

    By dynamic programming over causes and entries: the most entries taken, and of those the least distance from what is
    likely.
    """
    # Of the causes so far, by where the last is put: entries taken, the distance, and where the one before is put.
    rows: list[dict[int, tuple[int, int, int]]] = []
    before: dict[int, tuple[int, int, int]] = {-1: (0, 0, -1)}
    for cause in causes:
        row: dict[int, tuple[int, int, int]] = {}
        best: tuple[int, int, int] | None = None
        passed = iter(sorted(before))
        at = next(passed, None)
        for number in range(cause.first, cause.last + 1):
            while at is not None and at < number:
                taken, far, _ = before[at]
                best = max(best or (-1, 0, -1), (taken, far, at))
                at = next(passed, None)
            far = -abs(number - cause.likely)
            found = [] if best is None else [(best[0] + 1, best[1] + far, best[2])]
            if number in before:
                found.append((before[number][0], before[number][1] + far, number))
            if found:
                row[number] = max(found)
        rows.append(row)
        before = row
    if not before or not rows:
        return []
    at_end = max(before, key=lambda number: before[number][:2])
    put = []
    for row in reversed(rows):
        put.append(at_end)
        at_end = row[at_end][2]
    return put[::-1]
