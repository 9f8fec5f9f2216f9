# SPDX-License-Identifier: GPL-2.0-or-later
"""Commands about many trials: a run, its page, and what the lab costs."""

import contextlib
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from lab.build.images import build_images
from lab.build.qemu import find_qemu
from lab.campaign.bench import measure
from lab.campaign.database import NAME
from lab.campaign.reader import summarise
from lab.campaign.run_store import RunStore, claim_run_output, read_run
from lab.campaign.runner import describe_run, run_trials
from lab.cli import present
from lab.cli.app import (
    DumpOption,
    Interrupted,
    JsonOption,
    KernelOption,
    OutOption,
    QemuOption,
    VmlinuxOption,
    check_seed,
    complain,
    out,
    print_json,
)
from lab.cli.axes import Axes, takes_axes
from lab.cli.campaign_view import make_summary_view
from lab.cli.choice import build_bases, choose_scenarios, take_own
from lab.cli.progress import open_progress
from lab.errors import EvidenceError, LabError, UsageError
from lab.expected.tally import MechanismResult, weigh_run
from lab.mechanisms.table import FIRST_CAMPAIGN
from lab.report.answer import answer
from lab.report.campaign_page import write_campaign_report
from lab.report.hosts_page import RECORDS, write_hosts_report
from lab.report.page import write_report
from lab.trial.pool import WarmGuests

DEFAULT_TRIALS = 20


@takes_axes
def run(
    axes: Axes,
    out: OutOption,
    trials: Annotated[int, typer.Option(help="of each mechanism", min=1)] = DEFAULT_TRIALS,
    mechanism: Annotated[
        list[str] | None,
        typer.Option(
            help="one of the mechanisms, may be given again, or all that the other options allow"
            f" (default: that of the scenario, or {', '.join(FIRST_CAMPAIGN)})"
        ),
    ] = None,
    kernel: KernelOption = None,
    vmlinux: VmlinuxOption = None,
    qemu: QemuOption = None,
    seed: Annotated[int | None, typer.Option(help="of the whole run (default: drawn)")] = None,
    replace: Annotated[bool, typer.Option("--replace", help="remove the run that the folder holds")] = False,
    dump_memory: DumpOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Run a campaign: exit 0 when every mechanism did what is expected of it, 1 when not."""
    own = take_own(kernel, vmlinux)
    scenarios, left_out = choose_scenarios(axes, mechanism or [], own)
    for name, why in left_out:
        sys.stderr.write(f"lab: leaving out {name}: {why}\n")
    run_seed = check_seed(seed)
    on = find_qemu(qemu)
    folder = claim_run_output(out, replace)
    with open_progress() as progress:
        images, kernels = build_bases(scenarios, progress.tell, own, on)
        progress.begin(trials * len(scenarios))
        command = ("lab", *sys.argv[1:])
        booted = tuple(each.describe() for each in images.values())
        info = describe_run(command, scenarios, trials, run_seed, booted)
        with RunStore(folder, info, replace) as store, _page_of_what_ends(folder):
            with WarmGuests(images, kernels, progress.tell, dump_mib=dump_memory) as guests:
                ran = run_trials(guests, store, scenarios, trials, run_seed, progress.advance)
            store.finish(ran.exit_status)
            page = write_report(folder)
    _tell_run(folder, page, as_json)
    if ran.stopped:
        complain(ran.stopped, ran.exit_status)
    raise typer.Exit(ran.exit_status)


@contextlib.contextmanager
def _page_of_what_ends(folder: Path) -> Iterator[None]:
    """Write a run's page, as far as that goes, when it is interrupted or the host fails it."""
    try:
        yield
    except KeyboardInterrupt:
        kept = "its records are kept, but no page,"
        with contextlib.suppress(LabError, OSError):
            write_report(folder)
            kept = f"{len(read_run(folder).records)} trials and their page are kept"
        raise Interrupted(f"no guest is left; {kept} in '{folder}' (lab report {shlex.quote(str(folder))})") from None
    except LabError:
        with contextlib.suppress(LabError, OSError):
            write_report(folder)
        raise


def report(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="the folder of a run, a campaign or test-hosts")],
    as_json: JsonOption = False,
) -> None:
    """Write the page of a run, of a campaign or of a fresh host again."""
    if not folder.is_dir():
        raise UsageError(f"'{folder}' is not a folder: that of a run or of a campaign is needed")
    if (folder / NAME).exists():
        _report_campaign(folder, as_json)
        return
    try:
        if (folder / RECORDS).exists():
            _report_hosts(folder, as_json)
            return
        page = write_report(folder)
    except EvidenceError as error:
        raise UsageError(str(error)) from error
    _tell_run(folder, page, as_json)


def _report_hosts(folder: Path, as_json: bool) -> None:
    page = write_hosts_report(folder)
    if as_json:
        print_json({"report": str(page)})
    else:
        out().print(f"report: {page}", soft_wrap=True)


def _report_campaign(folder: Path, as_json: bool) -> None:
    try:
        page = write_campaign_report(folder)
        summaries = summarise(folder)
    except EvidenceError as error:
        raise UsageError(str(error)) from error
    if as_json:
        print_json({"campaigns": summaries, "report": str(page)})
        return
    for each in summaries:
        out().print(make_summary_view(each))
    out().print(f"report: {page}")


def _tell_run(folder: Path, page: Path, as_json: bool) -> None:
    stored = read_run(folder)
    results: tuple[MechanismResult, ...] = weigh_run(
        {each.name: each.expected for each in stored.info.mechanisms}, stored.records
    )
    if as_json:
        print_json(present.describe_run(stored, results, page))
        return
    out().print(present.make_run_table(stored, results))
    out().print(present.make_coverage_view(stored))
    for result in results:
        headline, sentence = answer(result)
        out().print(f"{result.name}: {result.reason}\n  {headline}: {sentence}")
    buckets = present.make_bucket_table(stored)
    if buckets is not None:
        out().print(buckets)
    out().print(f"report: {page}")


def bench(
    runs: Annotated[int, typer.Option(help="of each figure", min=3, max=100)] = 5,
    qemu: QemuOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure boot, trials, the observer's price and sizes on this host; fails nothing."""
    on = find_qemu(qemu)
    with open_progress() as progress:
        figures = measure(build_images(progress.tell, on), runs, progress.tell)
    if as_json:
        print_json({"figures": figures})
    else:
        out().print(present.make_bench_table(figures))
