# SPDX-License-Identifier: GPL-2.0-or-later
"""What is new on a page against an earlier run or campaign."""

from dataclasses import dataclass
from pathlib import Path

from lab.campaign.about import read_about
from lab.campaign.runs import read_scenarios
from lab.report.comparison import Change, Comparison, PartComparison, compare, format_rate
from lab.report.text import format_us

#: A page has room for this number of titles of each kind.
MAX_TITLES = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangedFigure:
    """One figure that changed.

    :param p: of the test, corrected for all tests of the comparison
    """

    scenario: str
    name: str
    before: str
    after: str
    p: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Since:
    """What is new.

    :param earlier: when the earlier one was begun
    :param unknown: scenarios with too few trials to tell
    :param appeared: scenario and title of what goes wrong now and did not; ``gone`` the other way round
    :param more: number of titles that are left out
    """

    earlier: str
    change: Change
    figures: tuple[ChangedFigure, ...]
    unknown: tuple[str, ...]
    appeared: tuple[tuple[str, str], ...]
    gone: tuple[tuple[str, str], ...]
    more: int
    only_before: tuple[str, ...]
    only_after: tuple[str, ...]

    @property
    def headline(self) -> str:
        """The answer in one line."""
        if self.change is Change.CHANGED or self.appeared:
            names = dict.fromkeys([*(each.scenario for each in self.figures), *(name for name, _ in self.appeared)])
            return f"changed: {', '.join(names)}"
        return "nothing changed" if self.change is Change.UNCHANGED else "too few trials to tell what changed"


def find_since(folder: Path, earlier: Path) -> Since:
    """Hold a run or campaign against an earlier one.

    :raise UsageError: a folder holds several campaigns
    :raise EvidenceError: a folder holds no run and no campaign, or a damaged one
    """
    return tell_since(read_about(earlier).started, compare_folders(earlier, folder))


def compare_folders(before: Path, after: Path) -> Comparison:
    """Compare the trials of two runs or campaigns; raises as :func:`find_since`."""
    old, new = ({name: found for name, (_, found) in read_scenarios(each).items()} for each in (before, after))
    return compare(old, new)


def tell_since(earlier: str, found: Comparison) -> Since:
    """Return what a page says of a comparison. Pure."""
    appeared = [(part.name, title) for part in found.parts for title in part.new_buckets]
    gone = [(part.name, title) for part in found.parts for title in part.gone_buckets]
    return Since(
        earlier=earlier,
        change=found.change,
        figures=tuple(figure for part in found.parts for figure in _list_changed(part)),
        unknown=tuple(part.name for part in found.parts if part.change is Change.UNKNOWN),
        appeared=tuple(appeared[:MAX_TITLES]),
        gone=tuple(gone[:MAX_TITLES]),
        more=len(appeared[MAX_TITLES:]) + len(gone[MAX_TITLES:]),
        only_before=found.only_before,
        only_after=found.only_after,
    )


def _list_changed(part: PartComparison) -> list[ChangedFigure]:
    figures = [
        ChangedFigure(
            scenario=part.name,
            name=rate.outcome.value,
            before=format_rate(rate.before),
            after=format_rate(rate.after),
            p=f"{rate.p:.2g}",
        )
        for rate in part.rates
        if rate.change is Change.CHANGED
    ]
    for time in part.times:
        if time.change is Change.CHANGED and time.p is not None and time.shift_us is not None:
            shift = f"{'+' if time.shift_us >= 0 else '-'}{format_us(abs(time.shift_us))}"
            figures.append(
                ChangedFigure(
                    scenario=part.name,
                    name=f"{time.name}, median",
                    before=format_us(time.before_median_us),
                    after=f"{format_us(time.after_median_us)} ({shift})",
                    p=f"{time.p:.2g}",
                )
            )
    return figures
