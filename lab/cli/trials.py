# SPDX-License-Identifier: GPL-2.0-or-later
"""Commands about one trial."""

from pathlib import Path
from typing import Annotated

import typer

from lab.build.qemu import find_qemu
from lab.cli.app import (
    DumpOption,
    Interrupted,
    JsonOption,
    KernelOption,
    MechanismOption,
    OutOption,
    QemuOption,
    VmlinuxOption,
    check_seed,
    print_json,
    print_text,
    tell_trial,
)
from lab.cli.axes import Axes, takes_axes
from lab.cli.choice import build_bases, choose_scenario, take_own
from lab.cli.progress import open_progress
from lab.errors import EvidenceError, UsageError
from lab.model.plan import draw_plan
from lab.model.verdict import EXIT_STATUS, Verdict


@takes_axes
def trial(
    axes: Axes,
    out: OutOption,
    mechanism: MechanismOption = None,
    kernel: KernelOption = None,
    vmlinux: VmlinuxOption = None,
    qemu: QemuOption = None,
    seed: Annotated[int | None, typer.Option(help="of the plan (default: drawn)")] = None,
    keep: Annotated[
        bool, typer.Option("--keep", help="keep the guest's own logs and the observer's ring, too")
    ] = False,
    dump_memory: DumpOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Run one trial: exit 0 PASS, 1 FAIL, 3 INVALID, 4 ERROR."""
    own = take_own(kernel, vmlinux)
    scenario = choose_scenario(axes, mechanism, own)
    plan = draw_plan(scenario, check_seed(seed))
    # What runs a trial is loaded once there is one to run: wrong usage needs none of it.
    from lab.evidence.folder import claim_trial_output
    from lab.trial.pool import WarmGuests
    from lab.trial.record import keep_trial

    on = find_qemu(qemu)
    folder = claim_trial_output(out)
    try:
        with open_progress() as progress:
            images, kernels = build_bases((scenario,), progress.tell, own, on)
            with WarmGuests(images, kernels, progress.tell, dump_mib=dump_memory) as guests:
                kept = guests.run_trial(scenario, plan, keep)
    except KeyboardInterrupt:
        raise Interrupted("no guest is left, and nothing of this trial is kept") from None
    verdict, record = keep_trial(folder, kept, 1, str(folder))
    tell_trial(verdict, record, as_json)


def judge(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="an evidence folder")], as_json: JsonOption = False
) -> None:
    """Judge a kept trial again, without QEMU; exit as `lab trial` does."""
    if not folder.is_dir():
        raise UsageError(f"'{folder}' is not a folder: an evidence folder is needed")
    from lab.evidence.folder import read_evidence
    from lab.judge import judge as judge_evidence
    from lab.trial.record import make_record

    try:
        evidence = read_evidence(folder)
    except EvidenceError as error:
        verdict = Verdict(reason=str(error))
        if as_json:
            print_json({"outcome": verdict.outcome, "reason": verdict.reason, "evidence": str(folder)})
        else:
            print_text(f"{verdict.outcome.value}: {verdict.reason}")
        raise typer.Exit(EXIT_STATUS[verdict.outcome]) from None
    verdict = judge_evidence(evidence)
    tell_trial(verdict, make_record(0, evidence, verdict, str(folder)), as_json)
