# SPDX-License-Identifier: GPL-2.0-or-later
"""The command that tells a run or campaign as a mail for a kernel list."""

import contextlib
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from lab.cli.app import JsonOption, print_json
from lab.errors import EvidenceError, UsageError
from lab.host.files import write_whole

if TYPE_CHECKING:
    from lab.campaign.about import About
    from lab.expected.expect import Expected
    from lab.model.evidence import Evidence, Images
    from lab.model.verdict import TrialRecord
    from lab.report.mail import FailureSeen, Mail

Trials = Mapping[str, "tuple[Expected, Sequence[TrialRecord]]"]

#: A trial that is tried more than once has a folder for each attempt.
_ATTEMPT: Final = "attempt-1"
#: Kept folders of one kind of failure that are tried until the evidence of one can be read.
_MAX_TRIED: Final = 5
#: Rows of a whole story, of which the mail takes a few.
_ALL_ROWS: Final = 10_000


def mail(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="the folder of a run or campaign")],
    target: Annotated[Path | None, typer.Option("--out", metavar="FILE", help="default: standard output")] = None,
    as_json: JsonOption = False,
) -> None:
    """Tell a run or campaign as plain text of 72 columns for a kernel list: tested, seen, reproducers, limits."""
    if not folder.is_dir():
        raise UsageError(f"'{folder}' is not a folder: that of a run or of a campaign is needed")
    if target is not None and target.is_dir():
        raise UsageError(f"--out '{target}' is a folder: name a file")
    from lab.campaign.about import read_about
    from lab.campaign.definition import Front
    from lab.campaign.runs import find_front, read_scenarios
    from lab.report.mail import format_mail

    try:
        if find_front(folder) is Front.MUTANTS:
            raise UsageError(f"'{folder}' is a hunt for mutants, which are the lab's own: nothing for a kernel list")
        told = make_mail(folder, read_about(folder), read_scenarios(folder))
    except EvidenceError as error:
        raise UsageError(str(error)) from error
    text = format_mail(told)
    if target is not None:
        write_whole(target, text.encode())
    if as_json:
        print_json({"text": text, "failures": [each.title for each in told.failures], "out": str(target or "")})
    elif target is None:
        sys.stdout.write(text)


def make_mail(folder: Path, about: "About", trials: Trials) -> "Mail":
    """Return what a mail tells of a folder.

    :param folder: where its evidence is
    """
    from lab.expected.tally import weigh_mechanism
    from lab.report.mail import Mail, ScenarioSeen

    seeds = sorted(record.seed for _, records in trials.values() for record in records)
    return Mail(
        lab_version=about.lab_version,
        started=about.started,
        seed=about.seed,
        command=shlex.join(about.command),
        seeds=tuple(dict.fromkeys((seeds[0], seeds[-1]))) if seeds else (),
        images=tuple(_identify(folder, each, trials) for each in about.images),
        host=about.host,
        scenarios=tuple(
            ScenarioSeen(
                name=name,
                asked=about.asked.get(name, ""),
                result=weigh_mechanism(records[0].mechanism if records else name, expected, records),
            )
            for name, (expected, records) in trials.items()
        ),
        failures=tuple(_list_failures(folder, trials)),
    )


def _identify(folder: Path, images: "Images", trials: Trials) -> "Images":
    """Add the build id that a trial's evidence has. A sitting begins before the kernel says its own."""
    import msgspec

    if images.build_id:
        return images
    booted = (record for _, records in trials.values() for record in records if record.evidence)
    for record in [each for each in booted if each.kernel_sha256 == images.kernel_sha256][:_MAX_TRIED]:
        with contextlib.suppress(EvidenceError):
            found = _read_kept(folder, record).images
            if found is not None and found.kernel_sha256 == images.kernel_sha256:
                build_id = found.build_id or found.guest_build_id
                return msgspec.structs.replace(images, build_id=build_id)
    return images


def _read_kept(folder: Path, record: "TrialRecord") -> "Evidence":
    """Read the evidence of a trial.

    :raise EvidenceError: none is kept, or it is damaged
    """
    from lab.evidence.folder import read_evidence
    from lab.report.example import find_evidence

    kept = find_evidence(folder, record.evidence)
    return read_evidence(kept / _ATTEMPT if (kept / _ATTEMPT).is_dir() else kept)


def _list_failures(folder: Path, trials: Trials) -> "list[FailureSeen]":
    """Return the failures by kind: those that must not be first, then the most frequent."""
    from lab.model.verdict import Outcome

    alike: dict[str, list[tuple[str, TrialRecord]]] = {}
    for name, (_, records) in trials.items():
        for record in records:
            if record.outcome in (Outcome.FAIL, Outcome.ERROR):
                alike.setdefault(record.bucket or record.reason, []).append((name, record))
    found = [_tell(folder, title, failed, trials) for title, failed in alike.items()]
    found.sort(key=lambda each: (each.expected, -each.count, each.title))
    from lab.report.mail import name_file

    return [name_file(each, number) for number, each in enumerate(found, 1)]


def _tell(folder: Path, title: str, failed: "Sequence[tuple[str, TrialRecord]]", trials: Trials) -> "FailureSeen":
    from lab.expected.tally import is_caught
    from lab.mechanisms.mechanism import CONTROLS
    from lab.report.mail import FailureSeen

    names = tuple(dict.fromkeys(name for name, _ in failed))
    must = all(trials[name][0].kind in CONTROLS and is_caught(trials[name][0], record) for name, record in failed)
    seen = FailureSeen(
        title=title,
        count=len(failed),
        of=sum(len(trials[name][1]) for name in names),
        scenarios=names,
        expected=must,
        trial=failed[0][1].trial,
        seed=failed[0][1].seed,
        reason=failed[0][1].reason,
        story=None,
        problem="no evidence of it is kept",
        scenario="",
    )
    for _, record in [pair for pair in failed if pair[1].evidence][:_MAX_TRIED]:
        try:
            return _add_story(seen, folder, record)
        except EvidenceError as error:
            seen = _replace(seen, problem=str(error).replace(str(folder), folder.name))
    return seen


def _add_story(seen: "FailureSeen", folder: Path, record: "TrialRecord") -> "FailureSeen":
    """Add the story of one trial, and what repeats it.

    :raise EvidenceError: its evidence cannot be read
    """
    from lab.judge import judge
    from lab.mechanisms.base import BASES
    from lab.mechanisms.table import find_mechanism
    from lab.model.scenario_text import format_scenario
    from lab.report.mail import shorten_story
    from lab.report.reproducer import name_places
    from lab.report.story import tell_story

    evidence = _read_kept(folder, record)
    verdict = judge(evidence)
    scenario, unnamed = name_places(evidence)
    own = find_mechanism(scenario.mechanism).base not in [base.name for base in BASES]
    caution = "" if own else "The lab builds this kernel itself. "
    if unnamed:
        caution += "A place in it is an address of this build alone: build the same kernel. "
    if evidence.plan.first_load:
        caution += "It was the first load of its guest, before the plan. "
    return _replace(
        seen,
        trial=record.trial,
        seed=evidence.plan.seed,
        reason=verdict.reason,
        story=shorten_story(tell_story(evidence, verdict, None, _ALL_ROWS)),
        problem="",
        scenario=format_scenario(scenario, "reproducer"),
        own=own,
        caution=caution.strip(),
    )


def _replace(seen: "FailureSeen", **changes: object) -> "FailureSeen":
    import msgspec

    return msgspec.structs.replace(seen, **changes)
