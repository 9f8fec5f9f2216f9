# SPDX-License-Identifier: GPL-2.0-or-later
"""Writes the page of a campaign: the results of a night, for a reader in the morning. One file, like a run's page."""

import contextlib
import datetime
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Final

from lab import __version__
from lab.campaign.details import Details, SittingHeld, count_outcomes, open_details
from lab.campaign.reader import KILLED, Failure, PartStanding, Summary
from lab.campaign.sums import CELLS, BucketStanding, Landed
from lab.errors import EvidenceError
from lab.expected.hunt import Fate, Kill
from lab.expected.tally import MechanismResult, Struck, Tally
from lab.host.files import write_whole
from lab.mechanisms.mechanism import CONTROLS, Expectation
from lab.model.phase import PHASES, Role
from lab.model.scenario_file import to_words
from lab.report.answer import answer
from lab.report.campaign_figures import KINDS, Bin, Course, Figures, read_figures
from lab.report.environment import make_environment
from lab.report.example import find_evidence, link_evidence
from lab.report.landings import CoverageRow, Uniformity, correct, tally_places
from lab.report.page import PAGE
from lab.report.since import Since
from lab.report.stacks import Column, Stacks, draw_stacks
from lab.report.text import tell_time

#: The limit for a merged store. Nobody reads a page with more campaigns.
MAX_CAMPAIGNS: Final = 20
#: Number of failures on a page. The campaigns share this number, and the buckets of a campaign share its part. The
#: newest failures of each bucket are listed.
MAX_FAILURES: Final = 600
MAX_FAILURES_A_BUCKET: Final = 20
MAX_REASONS: Final = 40
MAX_SITTINGS: Final = 50
MAX_HOSTS: Final = 100
#: Stands in place of a mechanism's name.
ALL: Final = "all of them"
_S_PER_HOUR: Final = 3_600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One scenario on the page.

    :param headline: the answer to the mail's question in a few words; empty without a trial
    :param sentence: the same answer with numbers
    :param words: command-line words that ask for the same scenario; for a sweep, for its first point
    :param points: number of points of a sweep, 0 for any other scenario
    """

    part: PartStanding
    words: str
    points: int
    headline: str
    sentence: str
    quiet: Tally
    harmless: Tally
    struck: Struck


@dataclass(frozen=True, slots=True, kw_only=True)
class KillShown:
    """What became of one mutant.

    :param link: to the evidence of the trial that decided; empty where none is kept
    :param mark: ``yes`` if it was caught, ``no`` if it was not, ``none`` if nothing is known
    """

    kill: Kill
    breaks: str
    link: str
    mark: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Listed:
    """A failure. If its evidence cannot be opened, ``link`` is empty and ``problem`` says why."""

    failure: Failure
    link: str
    problem: str


@dataclass(frozen=True, slots=True, kw_only=True)
class BucketShown:
    """Failures with the same title.

    :param control: the failures are expected: all are failures of controls
    :param more: number of trials in the bucket that are not listed
    """

    bucket: BucketStanding
    control: bool
    listed: tuple[Listed, ...]
    more: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SittingShown:
    """One sitting.

    :param why: why the sitting ended, as far as the store knows
    """

    sitting: SittingHeld
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """One campaign on the page.

    :param cells: number of pairs of phase and role in which an NMI was set pending
    :param unseen: all other pairs
    :param kills: what became of each mutant, of a hunt for mutants
    :param uniformity: the tests of ``figures``, corrected for all tests on the page
    :param example: number of a trial for the commands on the page
    :param evidence: a kept folder for the commands on the page; empty if no folder is kept
    """

    summary: Summary
    details: Details
    rows: tuple[Row, ...]
    figures: Figures
    buckets: tuple[BucketShown, ...]
    rate: Stacks | None
    share: Stacks | None
    coverage: tuple[CoverageRow, ...]
    phases: tuple[str, ...]
    cells: int
    unseen: tuple[str, ...]
    sittings: tuple[SittingShown, ...]
    sittings_more: int
    example: int
    evidence: str
    kills: tuple[KillShown, ...] = ()
    uniformity: tuple[Uniformity, ...] = ()

    @property
    def not_met(self) -> tuple[PartStanding, ...]:
        """Scenarios that have trials and do not meet their expectation."""
        return tuple(part for part in self.summary.parts if part.met is False)

    @property
    def standing(self) -> bool | None:
        """Whether every scenario met its expectation. None if a scenario has no trial and all others met theirs."""
        if self.summary.met:
            return True
        return False if self.not_met else None

    @property
    def without_nmis(self) -> int:
        """Number of PASS trials that asked for no NMI."""
        return sum(part.passed_without_nmis for part in self.summary.parts)

    @property
    def waiting(self) -> int:
        """Number of scenarios without a trial."""
        return sum(part.met is None for part in self.summary.parts)


def write_campaign_report(folder: Path, since: Since | None = None) -> Path:
    """Write the page of a campaign, or of merged campaigns, into the folder. Return the path of the page.

    :param since: what is new against an earlier one, None to say nothing of that
    :raise UsageError: the folder has no campaign
    :raise EvidenceError: the store is damaged, or belongs to another lab
    :raise HostError: the page could not be written
    """
    with open_details(folder) as campaigns:
        shown = _correct([_show(folder, each, len(campaigns)) for each in campaigns[:MAX_CAMPAIGNS]])
        page = make_environment().get_template("campaign.html").render(
            campaigns=shown,
            since=since,
            campaigns_more=len(campaigns[MAX_CAMPAIGNS:]),
            title=_tell_standing(tuple(each.standing for each in shown)),
            killed=KILLED,
            kinds=KINDS,
            names=NAMES,
            all_cells=len(CELLS),
            max_hosts=MAX_HOSTS,
            report_version=__version__,
            written=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        )  # fmt: skip
    path = folder / PAGE
    write_whole(path, page.encode(errors="backslashreplace"))
    return path


def _correct(shown: Sequence[Shown]) -> tuple[Shown, ...]:
    """Correct the tests of all campaigns for the number of tests, because all tests are on one page."""
    tests = iter(correct([test for each in shown for test in each.figures.uniformity]))
    return tuple(replace(each, uniformity=tuple(islice(tests, len(each.figures.uniformity)))) for each in shown)


def _show(folder: Path, details: Details, campaigns: int) -> Shown:
    summary = details.summary
    expected = {part.name: details.spec.expect(part).kind in CONTROLS for part in details.spec.parts}
    figures = read_figures(details.read_trials(), details.sittings, expected, MAX_REASONS)
    landed = summary.coverage
    places = summary.places
    unseen = tuple(cell for cell in CELLS if not places.get(cell))
    buckets = tuple(_list_buckets(folder, details, expected, MAX_FAILURES // max(1, min(campaigns, MAX_CAMPAIGNS))))
    linked = next((each.failure for shown in buckets for each in shown.listed if each.link), None)
    return Shown(
        summary=summary,
        details=details,
        rows=() if summary.kills else tuple(_make_rows(details)),
        figures=figures,
        buckets=buckets,
        rate=_draw_rate(figures.course),
        share=_draw_share(figures.course),
        coverage=(*_add_all(landed), *tally_places((each.mechanism, each.place, each.nmis) for each in landed)),
        phases=_list_phases(landed),
        cells=len(CELLS) - len(unseen),
        unseen=unseen,
        sittings=tuple(_list_sittings(summary, details.sittings))[-MAX_SITTINGS:],
        sittings_more=max(0, len(details.sittings) - MAX_SITTINGS),
        example=linked.number if linked else 1,
        evidence=_name_evidence(folder, Path(summary.evidence_dir), linked.evidence) if linked else "",
        kills=tuple(_list_kills(folder, details)),
    )


def _list_kills(folder: Path, details: Details) -> Iterable[KillShown]:
    for kill in details.summary.kills:
        link = ""
        with contextlib.suppress(EvidenceError):
            find_evidence(folder, kill.evidence)
            link = link_evidence(kill.evidence)
        unknown = kill.fate in (Fate.OPEN, Fate.BEYOND)
        yield KillShown(
            kill=kill,
            breaks=details.spec.mutants[kill.mutant].breaks,
            link=link,
            mark="yes" if kill.fate is Fate.CAUGHT else "none" if unknown else "no",
        )


def _tell_standing(standings: Sequence[bool | None]) -> str:
    if False in standings:
        return "not as expected"
    return "as expected" if standings and None not in standings else "not all tried"


def _make_rows(details: Details) -> Iterable[Row]:
    tallies = details.tally()
    asked = {part.name: part for part in details.spec.parts}
    for part in details.summary.parts:
        quiet, harmless, struck = tallies.get(part.name, (Tally(), Tally(), Struck()))
        result = MechanismResult(
            name=part.name,
            expectation=Expectation(part.expected),
            met=bool(part.met),
            reason=part.reason,
            outcomes=count_outcomes(part),
            quiet=quiet,
            harmless=harmless,
            struck=struck,
        )
        headline, sentence = answer(result) if part.met is not None else ("", "")
        yield Row(
            part=part,
            words=shlex.join(to_words(asked[part.name].first)),
            points=len(asked[part.name].points),
            headline=headline,
            sentence=sentence,
            quiet=quiet,
            harmless=harmless,
            struck=struck,
        )


def _list_buckets(folder: Path, details: Details, expected: dict[str, bool], room: int) -> Iterable[BucketShown]:
    """Select the failures for the list: unexpected failures first, and the newest failures of each title."""
    controls = {
        bucket.title: all(expected.get(part, False) for part in bucket.parts) for bucket in details.summary.buckets
    }
    root = Path(details.summary.evidence_dir)
    for bucket in sorted(details.summary.buckets, key=lambda bucket: controls[bucket.title]):
        failures = details.list_failures(bucket.title, min(MAX_FAILURES_A_BUCKET, room))
        room -= len(failures)
        yield BucketShown(
            bucket=bucket,
            control=controls[bucket.title],
            listed=tuple(_list_failure(folder, root, failure) for failure in failures),
            more=bucket.trials - len(failures),
        )


def _list_failure(folder: Path, root: Path, failure: Failure) -> Listed:
    try:
        found = find_evidence(root, failure.evidence)
    except EvidenceError as error:
        dropped = failure.evidence_state == "dropped"
        return Listed(failure=failure, link="", problem="dropped for want of room" if dropped else str(error))
    # The evidence is not below the page, but on a path that hosts share.
    link = link_evidence(failure.evidence) if root == folder else found.as_uri()
    return Listed(failure=failure, link=link, problem="")


def _name_evidence(folder: Path, root: Path, evidence: str) -> str:
    return evidence if root == folder else str(root / evidence)


def _add_all(landed: Sequence[Landed]) -> tuple[CoverageRow, ...]:
    """Return a row for each role over all mechanisms. A role without NMIs also has a row."""
    found = {row.role: row for row in tally_places((ALL, each.place, each.nmis) for each in landed)}
    known = [role.value for role in Role]
    names = (*known, *sorted(set(found) - set(known)))
    return tuple(found.get(name, CoverageRow(mechanism=ALL, role=name, nmis={})) for name in names)


def _list_phases(landed: Sequence[Landed]) -> tuple[str, ...]:
    """Return all phases in order of time, then all other names."""
    known = [phase.value for phase in PHASES]
    return (*known, *sorted({each.place.partition(" ")[0] for each in landed} - set(known)))


def _list_sittings(summary: Summary, sittings: Sequence[SittingHeld]) -> Iterable[SittingShown]:
    """Yield each sitting and why it ended. The store has only the reason of the last sitting."""
    for number, sitting in enumerate(sittings, start=1):
        if number == len(sittings) and summary.state == "running":
            why = "it runs"
        elif not sitting.ended:
            why = "it was killed"
        else:
            why = summary.why if number == len(sittings) else "it was stopped, and the next one went on"
        yield SittingShown(sitting=sitting, why=why)


def _draw_rate(course: Course) -> Stacks | None:
    return draw_stacks(
        [
            Column(
                begin_s=each.begin_s,
                end_s=each.end_s,
                heights=tuple(count * _S_PER_HOUR / (each.end_s - each.begin_s) for count in each.counts),
                text=_tell(each),
            )
            for each in course.bins
        ],
        course.borders_s,
    )


def _draw_share(course: Course) -> Stacks | None:
    return draw_stacks(
        [
            Column(
                begin_s=each.begin_s,
                end_s=each.end_s,
                heights=tuple(100 * count / (sum(each.counts) or 1) for count in each.counts),
                text=_tell(each),
            )
            for each in course.bins
        ],
        course.borders_s,
        most=100.0,
    )


def _tell(each: Bin) -> str:
    told = ", ".join(f"{NAMES[kind]} {count}" for kind, count in zip(KINDS, each.counts, strict=True) if count)
    return f"{tell_time(each.begin_s)} to {tell_time(each.end_s)}: {told or 'no trial ended'}"


#: Names of the kinds of trials on the page.
NAMES: Final = {kind: "FAIL, as expected" if kind == "expected" else kind for kind in KINDS}
