# SPDX-License-Identifier: GPL-2.0-or-later
"""``lab campaign``: start, watch, stop, go on with, list and join campaigns, and run one of their trials alone."""

import secrets
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import msgspec
import typer

from lab.build.qemu import find_qemu
from lab.campaign.definition import CampaignSpec, Order, choose_trial
from lab.campaign.file import change_limits, read_campaign
from lab.cli.app import (
    DumpLimitOption,
    JsonOption,
    KernelOption,
    OutOption,
    QemuOption,
    VmlinuxOption,
    out,
    print_json,
)
from lab.cli.choice import find_mechanism_of, take_own
from lab.errors import EvidenceError, LabError, UsageError
from lab.model.duration import read_seconds

if TYPE_CHECKING:
    from lab.campaign.reader import Summary

# What reads stores and runs trials is loaded by the commands that need it, and not to refuse a mistyped word.

#: Seeds that nobody chose are short enough to be typed.
_DRAWN_SEEDS: Final = 2**32
MAX_WORKERS: Final = 256
_S_PER_HOUR: Final = 3_600

campaign = typer.Typer(rich_markup_mode=None, no_args_is_help=True, add_completion=False)

FolderArgument = Annotated[Path, typer.Argument(metavar="DIR", help="a campaign's folder")]
ForOption = Annotated[str | None, typer.Option("--for", metavar="TIME", help="run so long in all: 90s, 30m, 8h, 2d")]
TrialsOption = Annotated[int | None, typer.Option(help="how many trials there are to be in all")]
UntilOption = Annotated[
    int | None, typer.Option("--until-failure", metavar="K", help="end once K trials have ended in FAIL")
]
WorkersOption = Annotated[
    int | None,
    typer.Option(
        min=0,
        max=MAX_WORKERS,
        help="processes on this host, 0 for this one alone (default: as many as its CPUs have guests for)",
    ),
]
SchedulerOption = Annotated[
    str, typer.Option(metavar="ADDRESS", help="use the workers of this Dask scheduler instead, as tcp://host:8786")
]
EvidenceOption = Annotated[
    Path | None,
    typer.Option(
        "--evidence-dir",
        metavar="DIR",
        help="have workers write evidence below this path, which all hosts share (default: it comes back to --out)",
    ),
]


@campaign.command()
def start(
    file: Annotated[Path, typer.Argument(metavar="FILE.toml", help="what the campaign is about")],
    out: OutOption,
    time: ForOption = None,
    trials: TrialsOption = None,
    until_failure: UntilOption = None,
    workers: WorkersOption = None,
    scheduler: SchedulerOption = "",
    dump_memory: DumpLimitOption = None,
    evidence_dir: EvidenceOption = None,
    kernel: KernelOption = None,
    vmlinux: VmlinuxOption = None,
    qemu: QemuOption = None,
    as_json: JsonOption = False,
) -> None:
    """Begin a campaign and run it: exit 0 when every scenario did what is expected of it, 1 when not."""
    own = take_own(kernel, vmlinux)
    read = read_campaign(file, secrets.randbelow(_DRAWN_SEEDS), find_mechanism_of(own))
    spec = _limit(read, time, trials, until_failure, dump_memory)
    if spec.limits.trials is None and spec.limits.hours is None and spec.limits.until_failure is None:
        raise UsageError("the campaign would never end: give --for, --trials or --until-failure, or one in its limits")
    from lab.cli.campaign_run import choose_where, run_new

    run_new(out, spec, choose_where(workers, scheduler, evidence_dir), own, find_qemu(qemu), as_json)


@campaign.command()
def resume(
    folder: FolderArgument,
    time: ForOption = None,
    trials: TrialsOption = None,
    until_failure: UntilOption = None,
    workers: WorkersOption = None,
    scheduler: SchedulerOption = "",
    dump_memory: DumpLimitOption = None,
    evidence_dir: EvidenceOption = None,
    kernel: KernelOption = None,
    vmlinux: VmlinuxOption = None,
    qemu: QemuOption = None,
    as_json: JsonOption = False,
) -> None:
    """Run those trials of a campaign that have no record, however it ended; limits given here replace its own."""
    own = take_own(kernel, vmlinux)
    from lab.cli.campaign_run import choose_where, run_left

    where = choose_where(workers, scheduler, evidence_dir)
    run_left(folder, lambda spec: _limit(spec, time, trials, until_failure, dump_memory), where, own, qemu, as_json)


@campaign.command()
def status(folder: FolderArgument, as_json: JsonOption = False) -> None:
    """Say how far a campaign is, also while it runs."""
    from lab.cli.campaign_view import show_campaigns

    show_campaigns(folder, as_json)


@campaign.command()
def stop(folder: FolderArgument) -> None:
    """Have a campaign end once its running trials have; 'resume' goes on with it."""
    from lab.campaign.database import stop_campaign

    stop_campaign(folder)
    out().print(f"the campaign in '{folder}' ends after its running trials")


@campaign.command("list")
def list_campaigns(
    folder: Annotated[Path, typer.Argument(metavar="[FOLDER]", help="where campaigns' folders are")] = Path("reports"),
    as_json: JsonOption = False,
) -> None:
    """List the campaigns of a folder."""
    if not folder.is_dir():
        raise UsageError(f"'{folder}' is not a folder: one that holds campaigns' folders is needed")
    from lab.campaign.database import NAME
    from lab.campaign.reader import summarise
    from lab.cli.campaign_view import make_list_table

    found: list[Summary] = []
    for each in sorted(path.parent for path in (*folder.glob(NAME), *folder.glob(f"*/{NAME}"))):
        try:
            found += summarise(each)
        except LabError as error:
            sys.stderr.write(f"lab: leaving out '{each}': {error}\n")
    if as_json:
        print_json({"campaigns": found})
    else:
        out().print(make_list_table(found))


@campaign.command()
def merge(
    folders: Annotated[list[Path], typer.Argument(metavar="DIR...", help="campaigns' folders, which stay as they are")],
    out: OutOption,
    as_json: JsonOption = False,
) -> None:
    """Join campaigns into a folder: trials of one campaign by number, each once, and other campaigns side by side."""
    from lab.campaign.merge import merge_campaigns
    from lab.campaign.sitting import claim_campaign_output
    from lab.cli.progress import open_progress

    target = claim_campaign_output(out)
    if target in [each.resolve() for each in folders]:
        raise UsageError(f"--out '{target}' is one of the folders to join: name a new one")
    with open_progress() as progress:
        try:
            merged = merge_campaigns(folders, target, progress.tell)
        except EvidenceError as error:
            raise UsageError(str(error)) from error
    if as_json:
        print_json(merged)
        return
    twice = f"; {merged.twice} were in more than one, and the first was taken" if merged.twice else ""
    _print(f"{merged.trials} trials of {merged.campaigns} campaigns are in '{target}'{twice}")


@campaign.command()
def trial(
    folder: FolderArgument,
    number: Annotated[int, typer.Argument(metavar="N", help="which trial, from 1")],
    out: OutOption,
    kernel: KernelOption = None,
    vmlinux: VmlinuxOption = None,
    qemu: QemuOption = None,
    as_json: JsonOption = False,
) -> None:
    """Run one trial of a campaign alone, on a fresh guest, whether it has been run or not; exit as `lab trial` does."""
    from lab.campaign.reader import read_campaign_spec

    own = take_own(kernel, vmlinux)
    _, spec = read_campaign_spec(folder)
    chosen = choose_trial(spec, number)
    from lab.cli.campaign_run import run_one

    run_one(folder, spec, chosen, out, own, qemu, as_json)


def _limit(
    spec: CampaignSpec, time: str | None, trials: int | None, until_failure: int | None, dump_memory: int | None
) -> CampaignSpec:
    if spec.order is Order.TURNS and trials not in (None, spec.limits.trials):
        raise UsageError(
            f"trials is {trials}: 'lab {spec.front.value}' was asked for {spec.limits.trials}; leave it out"
        )
    hours = None if time is None else read_seconds("--for", time) / _S_PER_HOUR
    limits = change_limits(
        spec.limits, hours=hours, trials=trials, until_failure=until_failure, dump_memory_mib=dump_memory
    )
    return msgspec.structs.replace(spec, limits=limits)


def _print(text: str) -> None:
    out().print(text)
