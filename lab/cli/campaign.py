# SPDX-License-Identifier: GPL-2.0-or-later
"""``lab campaign``: start, watch, stop, go on with, list and join campaigns, and run one of their trials alone."""

import contextlib
import functools
import re
import secrets
import shlex
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Final

import msgspec
import typer

from lab.build.images import ImageSet
from lab.build.mutants import build_mutant
from lab.build.qemu import find_qemu, find_same_qemu
from lab.campaign.database import NAME
from lab.campaign.definition import CampaignSpec, Front, Order, Part, check_kernels, choose_trial
from lab.campaign.file import change_limits, read_campaign
from lab.campaign.hunt import build_hunt
from lab.campaign.loop import Result
from lab.campaign.merge import merge_campaigns
from lab.campaign.reader import Summary, read_campaign_qemu, read_campaign_spec, summarise
from lab.campaign.runs import find_front
from lab.campaign.shared_evidence import check_evidence_dir
from lab.campaign.sitting import (
    Join,
    Watch,
    Where,
    claim_campaign_output,
    resume_campaign,
    start_campaign,
    stop_campaign,
)
from lab.cli.app import (
    DumpLimitOption,
    Interrupted,
    JsonOption,
    KernelOption,
    OutOption,
    QemuOption,
    VmlinuxOption,
    out,
    print_json,
    tell_trial,
)
from lab.cli.campaign_view import View, make_list_table, make_summary_view, open_view
from lab.cli.choice import build_bases, find_mechanism_of, take_own
from lab.cli.ending import run_sitting, tell_hunt, tell_run, tell_soundness
from lab.cli.progress import open_progress
from lab.errors import EvidenceError, LabError, UsageError
from lab.evidence.folder import claim_trial_output
from lab.kernelimage.vmlinux import Kernel, read_kernel
from lab.model.duration import read_seconds
from lab.model.qemu import Qemu
from lab.report.page import PAGE
from lab.trial.given import GivenKernel
from lab.trial.pool import WarmGuest
from lab.trial.record import keep_trial
from lab.trial.tampering import find_preparation

#: Seeds that nobody chose are short enough to be typed.
_DRAWN_SEEDS: Final = 2**32
_ADDRESS: Final = re.compile(r"[a-z]{2,8}://[^\s/]+", re.ASCII)
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
    where = _choose_where(workers, scheduler, evidence_dir)
    on = find_qemu(qemu)
    with open_view() as view, _stoppable() as asked:
        folder = claim_campaign_output(out)

        def build(spec: CampaignSpec) -> Mapping[str, ImageSet]:
            return _build(spec, view.say, own, on)

        result = run_sitting(folder, lambda: start_campaign(folder, spec, build, where, _watch(view, asked)))
    _tell_end(folder, result, as_json)


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
    where = _choose_where(workers, scheduler, evidence_dir)
    with open_view() as view, _stoppable() as asked:

        def build(spec: CampaignSpec) -> Mapping[str, ImageSet]:
            return _build(spec, view.say, own, find_same_qemu(read_campaign_qemu(folder), qemu))

        result = run_sitting(
            folder,
            lambda: resume_campaign(
                folder,
                lambda spec: _limit(spec, time, trials, until_failure, dump_memory),
                build,
                where,
                _watch(view, asked),
                other_qemu=qemu is not None,
            ),
        )
    _tell_end(folder, result, as_json)


@campaign.command()
def status(folder: FolderArgument, as_json: JsonOption = False) -> None:
    """Say how far a campaign is, also while it runs."""
    _show(folder, as_json)


@campaign.command()
def stop(folder: FolderArgument) -> None:
    """Have a campaign end once its running trials have; 'resume' goes on with it."""
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
    own = take_own(kernel, vmlinux)
    _, spec = read_campaign_spec(folder)
    chosen = choose_trial(spec, number)
    on = find_same_qemu(read_campaign_qemu(folder), qemu)
    evidence = claim_trial_output(out)
    scenario = chosen.part.scenario
    try:
        with open_progress() as progress:
            images, landmarks = _build_part(spec, chosen.part, progress.tell, own, on)
            prepare = find_preparation(chosen.part.tampering)
            with WarmGuest(images, landmarks, scenario.boot, progress.tell, prepare) as guest:
                guest.dump_mib = spec.limits.dump_memory_mib
                kept = guest.run_trial(scenario, chosen.plan, True)
    except KeyboardInterrupt:
        raise Interrupted("no guest is left, and nothing of this trial is kept") from None
    tell_trial(*keep_trial(evidence, kept, number, str(evidence)), as_json)


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


def _build(spec: CampaignSpec, say: Callable[[str], None], own: GivenKernel | None, on: Qemu) -> Mapping[str, ImageSet]:
    if spec.front is Front.MUTANTS:
        return build_hunt(spec, say, on)
    needed = [part.scenario for part in spec.parts if part.trials or spec.order is Order.DRAWN]
    images, _ = build_bases(needed, say, own, on)
    check_kernels(spec, {base: image.kernel_sha256 for base, image in images.items()})
    return images


def _build_part(
    spec: CampaignSpec, part: Part, say: Callable[[str], None], own: GivenKernel | None, on: Qemu
) -> tuple[ImageSet, Kernel]:
    """Return what the guests of one scenario boot from."""
    if part.images:
        images = build_mutant(spec.mutants[part.mutant], say, on)
        return images, read_kernel(images.vmlinux)
    built, kernels = build_bases((part.scenario,), say, own, on)
    return built[part.image_key], kernels[part.image_key]


def _choose_where(workers: int | None, scheduler: str, evidence_dir: Path | None) -> Where:
    if workers is not None and scheduler:
        raise UsageError("--workers and --scheduler exclude each other: the scheduler has workers of its own")
    if scheduler and _ADDRESS.fullmatch(scheduler) is None:
        raise UsageError(f"--scheduler '{scheduler}' is no address: allowed is one such as tls://HOST:PORT")
    shared = "" if evidence_dir is None else check_evidence_dir(evidence_dir)
    join = _find_join(scheduler) if scheduler else None
    return Where(workers=workers, scheduler=scheduler, join=join, evidence_dir=shared)


def _find_join(address: str) -> Join:
    """Return what joins a scheduler: the one place where Dask is needed, and imported.

    :raise UsageError: it is not installed
    """
    try:
        from lab.cluster.dask_pool import join_scheduler
    except ModuleNotFoundError as error:
        raise UsageError(
            f"--scheduler needs the extra 'cluster', and the module {error.name} is not installed: install"
            " 'microcode-nmi-lab[cluster]'"
        ) from error
    return functools.partial(join_scheduler, address)


def _watch(view: View, asked: Callable[[], bool]) -> Watch:
    return Watch(asked_to_stop=asked, tell=view.show, say=view.say)


@contextlib.contextmanager
def _stoppable() -> Iterator[Callable[[], bool]]:
    """Take the first Ctrl-C as a wish to end after the running trials; the second one ends all at once."""
    asked = False

    def ask(number: int, frame: object) -> None:  # noqa: ARG001
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True
        sys.stderr.write("lab: the running trials are finished first; Ctrl-C again ends them now\n")

    before = signal.signal(signal.SIGINT, ask)
    try:
        yield lambda: asked
    finally:
        signal.signal(signal.SIGINT, before)


def _tell_end(folder: Path, result: Result, as_json: bool) -> None:
    front = find_front(folder)
    if front is Front.RUN:
        status = tell_run(folder, folder / PAGE, as_json)
    elif front is Front.SOUND:
        status = tell_soundness(folder, as_json)
    elif front is Front.MUTANTS:
        status = tell_hunt(folder, as_json)
    else:
        status = 0 if all(each.met for each in _show(folder, as_json)) else 1
        if not as_json and (folder / PAGE).is_file():
            out().print(f"report: {folder / PAGE}")
    if not result.finished:
        again = f"lab campaign resume {shlex.quote(str(folder))}"
        sys.stderr.write(f"lab: the campaign ended since {result.why}; go on with it by: {again}\n")
    raise typer.Exit(status)


def _show(folder: Path, as_json: bool) -> tuple[Summary, ...]:
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


def _print(text: str) -> None:
    out().print(text)
