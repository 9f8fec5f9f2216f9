# SPDX-License-Identifier: GPL-2.0-or-later
"""Commands about many trials: a run, its page, and what the lab costs."""

import contextlib
import functools
import shlex
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lab.build.qemu import find_qemu
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
from lab.cli.choice import build_bases, choose_scenarios, take_own
from lab.cli.progress import open_progress
from lab.errors import EvidenceError, LabError, UsageError
from lab.mechanisms.table import FIRST_CAMPAIGN

if TYPE_CHECKING:
    from lab.build.images import ImageSet
    from lab.campaign.definition import CampaignSpec
    from lab.report.since import Since

# What runs trials and draws pages is loaded once there is something to run or draw: wrong usage needs none of it.

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
    from lab.campaign.run_folder import claim_run_output, clear_run
    from lab.campaign.runs import make_run_spec
    from lab.campaign.sitting import INLINE, Watch, Where, start_campaign
    from lab.cli.ending import tell_run
    from lab.report.page import write_report

    command = ("lab", *sys.argv[1:])
    spec = make_run_spec(command, scenarios, trials, run_seed, dump_memory)
    on = find_qemu(qemu)
    folder = claim_run_output(out, replace)
    with open_progress() as progress:

        def build(spec: "CampaignSpec") -> "Mapping[str, ImageSet]":
            images, _ = build_bases([part.scenario for part in spec.parts], progress.tell, own, on)
            progress.begin(spec.limits.trials or 0)
            return images

        watch = Watch(say=progress.tell, ended=progress.advance)
        with _page_of_what_ends(folder):
            clear = functools.partial(clear_run, replace=replace)
            result = start_campaign(folder, spec, build, Where(workers=INLINE), watch, clear=clear)
        page = write_report(folder)
    status = tell_run(folder, page, as_json)
    if not result.finished:
        complain(f"the run was stopped, since {result.why}", status)
    raise typer.Exit(status)


@contextlib.contextmanager
def _page_of_what_ends(folder: Path) -> Iterator[None]:
    """Write a run's page, as far as that goes, when it is interrupted or the host fails it."""
    from lab.campaign.database import NAME, is_running
    from lab.campaign.runs import read_run
    from lab.report.page import write_report

    try:
        yield
    except KeyboardInterrupt:
        kept = "its records are kept, but no page,"
        with contextlib.suppress(LabError, OSError):
            write_report(folder)
            kept = f"{len(read_run(folder).records)} trials and their page are kept"
        where = shlex.quote(str(folder))
        raise Interrupted(
            f"no guest is left; {kept} in '{folder}' (lab campaign resume {where}, or lab report {where})"
        ) from None
    except LabError:
        if (folder / NAME).is_file() and not is_running(folder):
            with contextlib.suppress(LabError, OSError):
                write_report(folder)
        raise


def report(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="the folder of a run, a campaign or test-hosts")],
    since: Annotated[
        Path | None, typer.Option(metavar="DIR", help="say what is new against this earlier run or campaign")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Write the page of a run, of a campaign or of a fresh host again."""
    for given in (folder, *([since] if since is not None else [])):
        if not given.is_dir():
            raise UsageError(f"'{given}' is not a folder: that of a run or of a campaign is needed")
    from lab.cli.ending import tell_run
    from lab.report.hosts_page import RECORDS
    from lab.report.page import write_report

    if since is not None and (folder / RECORDS).exists():
        raise UsageError("--since is for runs and campaigns: a fresh host has no trials to compare")
    if not _is_run(folder):
        _report_campaign(folder, since, as_json)
        return
    try:
        if (folder / RECORDS).exists():
            _report_hosts(folder, as_json)
            return
        page = write_report(folder, _find_since(folder, since))
    except EvidenceError as error:
        raise UsageError(str(error)) from error
    tell_run(folder, page, as_json)


def _is_run(folder: Path) -> bool:
    from lab.campaign.runs import is_run

    try:
        return is_run(folder)
    except EvidenceError as error:
        raise UsageError(str(error)) from error


def _report_hosts(folder: Path, as_json: bool) -> None:
    from lab.report.hosts_page import write_hosts_report

    page = write_hosts_report(folder)
    if as_json:
        print_json({"report": str(page)})
    else:
        out().print(f"report: {page}", soft_wrap=True)


def _find_since(folder: Path, earlier: Path | None) -> "Since | None":
    from lab.report.since import find_since

    return None if earlier is None else find_since(folder, earlier)


def _report_campaign(folder: Path, since: Path | None, as_json: bool) -> None:
    from lab.campaign.reader import summarise
    from lab.cli.campaign_view import make_summary_view
    from lab.report.campaign_page import write_campaign_report

    try:
        page = write_campaign_report(folder, _find_since(folder, since))
        summaries = summarise(folder)
    except EvidenceError as error:
        raise UsageError(str(error)) from error
    if as_json:
        print_json({"campaigns": summaries, "report": str(page)})
        return
    for each in summaries:
        out().print(make_summary_view(each))
    out().print(f"report: {page}")


def bench(
    runs: Annotated[int, typer.Option(help="of each figure", min=3, max=100)] = 5,
    qemu: QemuOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure boot, trials, the observer's price and sizes on this host; fails nothing."""
    from lab.build.images import build_images
    from lab.campaign.bench import measure
    from lab.cli.present import make_bench_table

    on = find_qemu(qemu)
    with open_progress() as progress:
        figures = measure(build_images(progress.tell, on), runs, progress.tell)
    if as_json:
        print_json({"figures": figures})
    else:
        out().print(make_bench_table(figures))
