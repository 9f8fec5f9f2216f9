# SPDX-License-Identifier: GPL-2.0-or-later
"""How a campaign of any kind is told once it has ended: its page, its table, its exit status."""

from pathlib import Path

from lab.campaign.runs import is_run, read_run
from lab.cli import present
from lab.cli.app import out, print_json
from lab.expected.tally import weigh_run
from lab.report.answer import answer
from lab.report.campaign_page import write_campaign_report
from lab.report.page import write_report


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
