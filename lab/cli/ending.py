# SPDX-License-Identifier: GPL-2.0-or-later
"""How a campaign of any kind is told once it has ended: its page, its table, its exit status."""

import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from lab.campaign.database import NAME, is_running
from lab.campaign.reader import summarise
from lab.campaign.runs import is_run, read_run
from lab.campaign.soundness import read_soundness
from lab.cli import present
from lab.cli.app import LAB_FAULT, Interrupted, complain, out, print_json
from lab.errors import LabError
from lab.expected.hunt import Fate
from lab.expected.tally import weigh_run
from lab.host.files import write_whole
from lab.report.answer import answer
from lab.report.campaign_page import write_campaign_report
from lab.report.page import PAGE, write_report

if TYPE_CHECKING:
    from lab.campaign.loop import Result

#: Of ``lab sound``, beside its store: what came of each cell.
SUMMARY: Final = "sound.json"
#: Of ``lab mutants``, beside its store: what became of each mutant.
KILLS: Final = "kills.json"
#: Exit status when a mutant was not caught.
SURVIVOR: Final = 1


def write_page(folder: Path) -> Path:
    """Write the page of a run or of a campaign into its folder, and return its path.

    :raise UsageError: the folder holds neither
    :raise EvidenceError: what it holds is damaged, or of another lab
    :raise HostError: the page could not be written
    """
    return write_report(folder) if is_run(folder) else write_campaign_report(folder)


def tell_run(folder: Path, page: Path, as_json: bool) -> int:
    """Print what came of a run, and return its exit status.

    :raise EvidenceError: the folder holds no run, or a damaged one
    """
    stored = read_run(folder)
    results = weigh_run({each.name: each.expected for each in stored.info.mechanisms}, stored.records)
    status = 0 if stored.info.exit_status == 0 else 1
    if as_json:
        print_json(present.describe_run(stored, results, page))
        return status
    out().print(present.make_run_table(stored, results))
    out().print(present.make_coverage_view(stored))
    for result in results:
        headline, sentence = answer(result)
        out().print(f"{result.name}: {result.reason}\n  {headline}: {sentence}")
    buckets = present.make_bucket_table(stored)
    if buckets is not None:
        out().print(buckets)
    out().print(f"report: {page}")
    return status


def tell_soundness(folder: Path, as_json: bool) -> int:
    """Print what came of the cells of docs/sound.md, keep it as SUMMARY, and return the exit status.

    :raise EvidenceError: the store is damaged, or of another lab
    :raise HostError: the summary could not be written
    """
    ran = read_soundness(folder)
    summary = present.describe_soundness(ran)
    write_whole(folder / SUMMARY, msgspec.json.format(msgspec.json.encode(summary)))
    if as_json:
        print_json(summary)
    else:
        out().print(present.make_soundness_table(ran))
        out().print(f"report: {folder / PAGE}")
    for problem in ran.problems:
        complain(problem, ran.exit_status)
    return ran.exit_status


def tell_hunt(folder: Path, as_json: bool) -> int:
    """Print what became of each mutant, keep it as KILLS, and return the exit status.

    :raise EvidenceError: the store is damaged, or of another lab
    :raise HostError: the table could not be written
    """
    (summary,) = summarise(folder)
    kills = summary.kills
    write_whole(folder / KILLS, msgspec.json.format(msgspec.json.encode(kills)))
    if as_json:
        print_json({"seed": summary.seed, "kills": kills})
    else:
        out().print(present.make_kill_table(kills))
        out().print(f"seed {summary.seed}; report: {folder / PAGE}")
    fates = {kill.fate for kill in kills}
    if Fate.ERROR in fates:
        return LAB_FAULT
    return 0 if Fate.CAUGHT in fates and fates <= {Fate.CAUGHT, Fate.BEYOND} else SURVIVOR


def run_sitting(folder: Path, sit: "Callable[[], Result]") -> "Result":
    """Hold a sitting, and write the campaign's page however it ends, as far as that goes.

    :raise Interrupted: it was ended at once
    """
    try:
        result = sit()
        _write_page(folder)
        return result
    except LabError:
        # Unless it is another lab's, which runs it.
        if (folder / NAME).is_file() and not is_running(folder):
            _write_page(folder)
        raise
    except KeyboardInterrupt:
        _write_page(folder)
        raise Interrupted(
            f"no guest is left; all trials that had ended are kept in '{folder}'"
            f" (lab campaign resume {shlex.quote(str(folder))})"
        ) from None


def _write_page(folder: Path) -> None:
    """Write a campaign's page; that it cannot be written takes nothing from the campaign."""
    try:
        write_page(folder)
    except (LabError, OSError) as error:
        sys.stderr.write(f"lab: the campaign's page was not written: {error}\n")
