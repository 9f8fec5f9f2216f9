# SPDX-License-Identifier: GPL-2.0-or-later
"""What ``lab campaign start``, ``resume`` and ``trial`` do once their words are right: build, run, and tell the end."""

import contextlib
import functools
import re
import shlex
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final

import typer

from lab.build.images import ImageSet
from lab.build.mutants import build_mutant
from lab.build.qemu import find_same_qemu
from lab.campaign.definition import CampaignSpec, Chosen, Front, Order, Part, check_kernels
from lab.campaign.hunt import build_hunt
from lab.campaign.loop import Result
from lab.campaign.reader import read_campaign_qemu
from lab.campaign.runs import find_front
from lab.campaign.shared_evidence import check_evidence_dir
from lab.campaign.sitting import Join, Watch, Where, claim_campaign_output, resume_campaign, start_campaign
from lab.cli.app import Interrupted, out, tell_trial
from lab.cli.campaign_view import View, open_view, show_campaigns
from lab.cli.choice import build_bases
from lab.cli.ending import run_sitting, tell_hunt, tell_run, tell_soundness
from lab.cli.progress import open_progress
from lab.errors import UsageError
from lab.evidence.folder import claim_trial_output
from lab.kernelimage.vmlinux import Kernel, read_kernel
from lab.model.qemu import Qemu
from lab.report.page import PAGE
from lab.trial.given import GivenKernel
from lab.trial.pool import WarmGuest
from lab.trial.record import keep_trial
from lab.trial.tampering import find_preparation

_ADDRESS: Final = re.compile(r"[a-z]{2,8}://[^\s/]+", re.ASCII)


def run_new(out: Path, spec: CampaignSpec, where: Where, own: GivenKernel | None, on: Qemu, as_json: bool) -> None:
    """Begin a campaign, run it, and exit with its status.

    :param out: the folder that its user wants it in
    :raise LabError: it cannot be begun, or the host failed
    """
    with open_view() as view, _stoppable() as asked:
        folder = claim_campaign_output(out)

        def build(spec: CampaignSpec) -> Mapping[str, ImageSet]:
            return _build(spec, view.say, own, on)

        result = run_sitting(folder, lambda: start_campaign(folder, spec, build, where, _watch(view, asked)))
    _tell_end(folder, result, as_json)


def run_left(
    folder: Path,
    limit: Callable[[CampaignSpec], CampaignSpec],
    where: Where,
    own: GivenKernel | None,
    qemu: Path | None,
    as_json: bool,
) -> None:
    """Go on with a campaign, and exit with its status.

    :param limit: replaces its limits
    :param qemu: that its user asks for, None for the one it ran on
    :raise LabError: there is none, or the host failed
    """
    with open_view() as view, _stoppable() as asked:

        def build(spec: CampaignSpec) -> Mapping[str, ImageSet]:
            return _build(spec, view.say, own, find_same_qemu(read_campaign_qemu(folder), qemu))

        result = run_sitting(
            folder,
            lambda: resume_campaign(folder, limit, build, where, _watch(view, asked), other_qemu=qemu is not None),
        )
    _tell_end(folder, result, as_json)


def run_one(
    folder: Path,
    spec: CampaignSpec,
    chosen: Chosen,
    out: Path,
    own: GivenKernel | None,
    qemu: Path | None,
    as_json: bool,
) -> None:
    """Run one trial of a campaign alone, and exit as `lab trial` does.

    :raise LabError: its evidence cannot be kept there, or the host failed
    """
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
    tell_trial(*keep_trial(evidence, kept, chosen.number, str(evidence)), as_json)


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


def choose_where(workers: int | None, scheduler: str, evidence_dir: Path | None) -> Where:
    """Return where trials run.

    :raise UsageError: options exclude each other, or one is no value
    """
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
        status = 0 if all(each.met for each in show_campaigns(folder, as_json)) else 1
        if not as_json and (folder / PAGE).is_file():
            out().print(f"report: {folder / PAGE}")
    if not result.finished:
        again = f"lab campaign resume {shlex.quote(str(folder))}"
        sys.stderr.write(f"lab: the campaign ended since {result.why}; go on with it by: {again}\n")
    raise typer.Exit(status)
