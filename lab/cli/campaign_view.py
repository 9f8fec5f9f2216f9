# SPDX-License-Identifier: GPL-2.0-or-later
"""How far a campaign is, and what came of it: drawn on a terminal, plain lines elsewhere."""

import contextlib
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from lab.campaign.reader import NO_TRIAL, PartStanding, Summary, summarise
from lab.campaign.sums import CELLS, BucketStanding
from lab.cli.app import out, print_json
from lab.errors import EvidenceError, UsageError
from lab.model.phase import Phase, Role
from lab.model.verdict import NO_NMIS_ASKED, Outcome
from lab.report.text import clean, format_mib, tell_time

if TYPE_CHECKING:
    from lab.campaign.loop import Standing

#: In a log: a line a minute, and one when something fails.
LOG_S: Final = 60.0
_BAR: Final = 40


class View(Protocol):
    """Shows how far a campaign is."""

    def say(self, step: str) -> None:
        """Say what is being waited for."""

    def show(self, standing: "Standing") -> None:
        """Show how far the campaign is."""


class LogView:
    """One plain line a minute, on standard error."""

    def __init__(self) -> None:
        self._told_at = time.monotonic() - LOG_S
        self._said = ""

    def say(self, step: str) -> None:
        """Write a step, unless it is the one before."""
        if step != self._said:
            self._said = step
            sys.stderr.write(f"{clean(step)}\n")
            sys.stderr.flush()

    def show(self, standing: "Standing") -> None:
        """Write a line when it is time for one."""
        if time.monotonic() - self._told_at >= LOG_S:
            self._told_at = time.monotonic()
            sys.stderr.write(f"{tell_standing(standing)}\n")
            sys.stderr.flush()


class LiveView:
    """A table that is drawn again and again."""

    def __init__(self, live: Live) -> None:
        self._live = live

    def say(self, step: str) -> None:
        """Show a step in place of the table."""
        self._live.update(Text(clean(step)))

    def show(self, standing: "Standing") -> None:
        """Draw the table."""
        self._live.update(draw_standing(standing))


@contextlib.contextmanager
def open_view() -> Iterator[View]:
    """Show a campaign on standard error until the block is left."""
    console = Console(stderr=True, markup=False, highlight=False)
    if not console.is_terminal:
        yield LogView()
        return
    with Live(console=console, transient=True, refresh_per_second=4) as live:
        yield LiveView(live)


def tell_standing(standing: "Standing") -> str:
    """Return a campaign's standing as one line."""
    parts = [
        _tell_trials(standing),
        " ".join(f"{name} {count}" for name, count in _add_up(standing.outcomes.values()).items()) or "none yet",
        f"{standing.rate_per_h:.0f} an hour",
        f"{standing.running} running on {standing.workers} workers, {standing.guests} guests",
        f"coverage {_tell_coverage(standing.coverage)}",
        f"ran {tell_time(standing.ran_s)}",
    ]
    if standing.left_s is not None:
        parts.append(f"left {tell_time(standing.left_s)}")
    if standing.buckets:
        parts.append("failures: " + ", ".join(f"{count} x {_name(title)}" for title, count in standing.buckets.items()))
    if standing.newest_failure:
        parts.append(f"newest failure: {clean(standing.newest_failure)}")
    return "; ".join(parts)


def draw_standing(standing: "Standing") -> Group:
    """Return a campaign's standing as a table with what stands above and below it."""
    table = Table("scenario", *(outcome.value for outcome in Outcome), box=None, pad_edge=False)
    for name, counts in sorted(standing.outcomes.items()):
        table.add_row(name, *(str(counts.get(outcome.value, 0)) for outcome in Outcome))
    head = Text(f"{_tell_trials(standing)}, {standing.rate_per_h:.0f} an hour, ran {tell_time(standing.ran_s)}")
    if standing.left_s is not None:
        head.append(f", left {tell_time(standing.left_s)}")
    below = Text(
        f"{standing.running} running on {standing.workers} workers, {standing.guests} guests;"
        f" evidence {format_mib(standing.evidence_bytes)}"
    )
    lines: list[Text | Table | ProgressBar] = [head]
    if standing.planned is not None:
        lines.append(ProgressBar(total=standing.planned, completed=standing.done, width=_BAR))
    lines += [table, below, *_draw_coverage(standing.coverage)]
    lines += [Text(f"{count} x {_name(title)}") for title, count in standing.buckets.items()]
    if standing.newest_failure:
        lines.append(Text(f"newest failure: {clean(standing.newest_failure)}"))
    return Group(*lines)


def make_summary_view(summary: Summary) -> Group:
    """Return what came of a campaign."""
    planned = "" if summary.planned is None else f" of {summary.planned}"
    head = Text(
        f"{summary.state}{f' ({clean(summary.why)})' if summary.why else ''}: {clean(summary.summary)}\n"
        f"{summary.done}{planned} trials, {summary.trials_per_h:.0f} an hour, ran {tell_time(summary.ran_s)} in"
        f" {summary.sittings} sittings, seed {summary.seed}"
    )
    table = Table(
        "scenario", "topology", *(outcome.value for outcome in Outcome), "NMIs sent", "in a window", "expected"
    )
    for part in summary.parts:
        counts = (_tell_count(part, outcome) for outcome in Outcome)
        met = NO_TRIAL if part.met is None else f"{part.expected}: {part.standing}"
        table.add_row(part.name, part.topology, *counts, str(part.nmis_sent), str(part.nmis_proven), met)
    evidence = ", ".join(f"{state} {count}" for state, count in sorted(summary.evidence.items())) or "none"
    place = f" in {clean(summary.evidence_dir)}" if summary.evidence_dir != summary.folder else ""
    below: list[Text | Table] = [
        Text(
            f"vCPU budget of the host: {summary.vcpu_budget}; load up to {summary.load_most:.1f},"
            f" steal up to {summary.starved_most_ppm / 10_000:.1f} %; hosts: {clean(', '.join(summary.hosts)) or '-'}"
        ),
        Text(f"evidence: {evidence}; {format_mib(summary.evidence_bytes)}{place}"),
        *(Text(f"{part.name}: {clean(part.reason)}") for part in summary.parts if part.outcomes),
        *_draw_coverage(summary.places),
    ]
    if summary.buckets:
        below += [Text("failures by title:"), _make_bucket_table(summary.buckets)]
    if summary.buckets_more:
        below.append(Text(f"and {summary.buckets_more} more titles"))
    for each in summary.newest:
        kind = "a plan of holds alone" if each.reproduces else "a plan that is timed"
        tries = f"{each.failed}/{each.attempts} tries, {kind}"
        below.append(Text(f"FAIL trial {each.number} {each.part}, {tries}: {clean(each.reason)}"))
    return Group(head, table, *below)


def _tell_count(part: PartStanding, outcome: Outcome) -> str:
    count, without = part.outcomes.get(outcome.value, 0), part.passed_without_nmis
    if outcome is not Outcome.PASS or not without:
        return str(count)
    return f"{count} ({NO_NMIS_ASKED}{f' in {without}' if without < count else ''})"


def make_list_table(summaries: Iterable[Summary]) -> Table:
    """Return one line for each campaign."""
    table = Table("folder", "state", "trials", "PASS", "FAIL", "INVALID", "ERROR", "started", "summary")
    for each in summaries:
        counts = _add_up(part.outcomes for part in each.parts)
        planned = "" if each.planned is None else f"/{each.planned}"
        table.add_row(
            clean(each.folder),
            each.state,
            f"{each.done}{planned}",
            *(str(counts.get(name, 0)) for name in ("PASS", "FAIL", "INVALID", "ERROR")),
            clean(each.started),
            clean(each.summary),
        )
    return table


def _tell_trials(standing: "Standing") -> str:
    return f"{standing.done} trials" if standing.planned is None else f"{standing.done} of {standing.planned} trials"


def _tell_coverage(places: Mapping[str, int]) -> str:
    """Say in which pairs of phase and role an NMI was set pending, and how many were."""
    seen = [f"{cell} {places[cell]}" for cell in CELLS if places.get(cell)]
    told = f"{len(seen)} of {len(CELLS)} phases and roles"
    return f"{told} ({', '.join(seen)})" if seen else told


def _draw_coverage(places: Mapping[str, int]) -> list[Text | Table]:
    """Return how many NMIs were set pending in each phase at each role; what is no phase comes last."""
    seen = sum(places.get(cell, 0) > 0 for cell in CELLS)
    found: dict[str, dict[str, int]] = {}
    for place, nmis in places.items():
        phase, _, role = place.partition(" ")
        found.setdefault(phase, {})[role] = nmis
    known = [phase.value for phase in Phase]
    columns = (*known, *sorted(set(found) - set(known)))
    table = Table("NMIs pending on", *(clean(column) for column in columns), box=None, pad_edge=False)
    for row in (role.value for role in Role):
        table.add_row(row, *(str(found.get(column, {}).get(row, 0)) for column in columns))
    return [Text(f"coverage: {seen} of {len(CELLS)} phases and roles"), table]


def _make_bucket_table(buckets: Iterable[BucketStanding]) -> Table:
    table = Table("trials", "tries that FAIL", "title", "scenarios", "newest", box=None, pad_edge=False)
    for each in buckets:
        tries = f"{each.failed} of {each.attempts}"
        names = clean(", ".join(each.parts))
        table.add_row(str(each.trials), tries, _name(each.title), names, str(each.newest))
    return table


def _name(title: str) -> str:
    return clean(title) or "no title"


def _add_up(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    total: dict[str, int] = {}
    for each in counts:
        for name, count in each.items():
            total[name] = total.get(name, 0) + count
    return total


def show_campaigns(folder: Path, as_json: bool) -> tuple[Summary, ...]:
    """Print how far the campaigns of a folder are, and return it.

    :raise UsageError: it holds none, or a damaged store
    """
    try:
        summaries = summarise(folder)
    except EvidenceError as error:
        raise UsageError(str(error)) from error
    if as_json:
        print_json(summaries[0] if len(summaries) == 1 else {"campaigns": summaries})
    else:
        for each in summaries:
            out().print(make_summary_view(each))
    return summaries
