# SPDX-License-Identifier: GPL-2.0-or-later
"""Commands about a trial that is over: run it again, make it smaller, tell its story."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lab.build.qemu import find_same_qemu
from lab.cli.app import Interrupted, JsonOption, KernelOption, QemuOption, VmlinuxOption, complain, out, print_json
from lab.cli.choice import take_own
from lab.cli.progress import Progress, open_progress
from lab.errors import EvidenceError, UsageError
from lab.evidence.folder import claim_output, read_evidence, refuse_output
from lab.host.files import write_whole
from lab.model.evidence import Evidence
from lab.model.plan_check import check_plan
from lab.model.verdict import Outcome
from lab.report.text import clean

if TYPE_CHECKING:
    from lab.reduce.case import Case
    from lab.reduce.minimise import Minimised, Need
    from lab.reduce.replay import Again, Replayed
    from lab.trial.given import GivenKernel
    from lab.trial.pool import WarmGuests

#: In the folder of a minimised trial: the scenario that is left.
MINIMAL = "minimal.toml"
MAX_TIMES = 10_000
#: Of a minimisation.
DEFAULT_TRIALS = 300
#: Of a story: more than a person reads.
MAX_ROWS = 200

FolderArgument = Annotated[Path, typer.Argument(metavar="DIR", help="an evidence folder")]


def replay(
    folder: FolderArgument,
    times: Annotated[int, typer.Option(help="how often", min=1, max=MAX_TIMES)] = 10,
    target: Annotated[
        Path | None, typer.Option("--out", help="folder for the new evidence, new or empty (default: DIR-replay)")
    ] = None,
    kernel: KernelOption = None,
    vmlinux: VmlinuxOption = None,
    qemu: QemuOption = None,
    as_json: JsonOption = False,
) -> None:
    """Run a kept trial again with the same images, plan and holds: exit 0 when each ended the same way, 1 when not.

    A trial that is INVALID or ERROR, the kept one or a repetition, shows nothing: the exit status is 3 or 4 then.
    """
    evidence = _read(folder)
    own = take_own(kernel, vmlinux)
    # What replays is loaded once there is a trial to replay: here and below.
    from lab.judge import judge
    from lab.reduce.replay import replay as replay_evidence

    target = target or folder.resolve().parent / f"{folder.resolve().name}-replay"
    try:
        with open_progress() as progress, _find_guests(evidence, folder, own, qemu, progress) as guests:
            results = claim_output(target, _refuse)
            progress.begin(times)
            replayed = replay_evidence(evidence, judge(evidence), guests.run_trial, times, results, progress.advance)
    except KeyboardInterrupt:
        raise Interrupted(f"no guest is left; trials that were through are in '{target}'") from None
    if as_json:
        print_json(
            {
                "same": replayed.same,
                "silent": len(replayed.silent),
                "of": times,
                "replayed": replayed,
                "evidence": str(results),
            }
        )
    else:
        _show_replayed(replayed, results)
    if replayed.outcome not in (Outcome.PASS, Outcome.FAIL):
        complain(f"the trial itself ended as {replayed.outcome.value}: that others end so shows nothing", 0)
    raise typer.Exit(replayed.exit_status)


def minimise(
    folder: FolderArgument,
    target: Annotated[Path, typer.Option("--out", help="folder for the results, new or empty")],
    need: Annotated[str, typer.Option(metavar="K/N", help="a change is kept when K of N trials still fail")] = "3/3",
    trials: Annotated[int, typer.Option(help="at most", min=1, max=MAX_TIMES)] = DEFAULT_TRIALS,
    kernel: KernelOption = None,
    vmlinux: VmlinuxOption = None,
    qemu: QemuOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a failing trial as small as it gets: exit 0 when a scenario that still fails is left, 1 when not."""
    from lab.judge.judging import list_accused
    from lab.model.scenario_text import format_scenario
    from lab.reduce.minimise import Need, check_fails
    from lab.reduce.minimise import minimise as minimise_evidence
    from lab.reduce.replay import NOT_AGAIN

    needed = Need.parse(need)
    evidence = _read(folder)
    own = take_own(kernel, vmlinux)
    first = check_fails(evidence)

    def keep(case: "Case") -> None:
        summary = f"{case.scenario.mechanism}: breaks {list_accused(first)[0]}, minimised"
        write_whole(target / MINIMAL, format_scenario(case.scenario, summary).encode())

    try:
        with open_progress() as progress, _find_guests(evidence, folder, own, qemu, progress) as guests:
            results = claim_output(target, _refuse)
            found = minimise_evidence(evidence, guests.run_trial, needed, results, progress.tell, trials, keep)
    except KeyboardInterrupt:
        raise Interrupted(f"no guest is left; '{target / MINIMAL}' is the smallest so far, if one failed") from None
    files = {"--kernel": kernel, "--vmlinux": vmlinux, "--qemu": qemu}
    given = [word for option, path in files.items() if path is not None for word in (option, str(path.resolve()))]
    _tell_minimised(found, needed, results, given, as_json)
    raise typer.Exit(0 if found.reproduced and found.after.whole else NOT_AGAIN)


def explain(
    folder: FolderArgument,
    core: Annotated[int | None, typer.Option(help="only its threads (default: all, of up to two cores)", min=0)] = None,
    rows: Annotated[int, typer.Option(help="at most", min=10, max=100_000)] = MAX_ROWS,
    as_json: JsonOption = False,
) -> None:
    """Tell the story of one trial, its threads side by side, and what became of each NMI."""
    evidence = _read(folder)
    total = evidence.scenario.topology.total_cores
    if core is not None and core >= total:
        raise UsageError(f"core is {core}: topology {evidence.scenario.topology} has 0 to {total - 1}")
    from lab.cli.story import describe_story, make_story_view
    from lab.judge import judge
    from lab.report.story import tell_story

    verdict = judge(evidence)
    story = tell_story(evidence, verdict, core, rows)
    if as_json:
        print_json(describe_story(story, verdict))
    else:
        out().print(make_story_view(story, evidence, verdict))


def _read(folder: Path) -> Evidence:
    """Read an evidence folder and hold its plan to what can be run.

    :raise UsageError: it is none of ours, of another schema, or its plan cannot be
    """
    if not folder.is_dir():
        raise UsageError(f"'{folder}' is not a folder: an evidence folder is needed")
    try:
        evidence = read_evidence(folder)
        check_plan(evidence.plan, evidence.scenario)
    except EvidenceError as error:
        raise UsageError(str(error)) from error
    except UsageError as error:
        raise UsageError(f"evidence folder '{folder}' cannot be used: {error}") from error
    return evidence


def _find_guests(
    evidence: Evidence, folder: Path, own: "GivenKernel | None", qemu: Path | None, progress: Progress
) -> "WarmGuests":
    from lab.trial.pool import WarmGuests
    from lab.trial.same_images import find_same

    base = evidence.scenario.boot.base
    on = find_same_qemu(evidence.images.qemu_sha256 if evidence.images is not None else "", qemu)
    try:
        images, kernel = find_same(evidence.images, base, own, on, folder.resolve().name, progress.tell)
    except UsageError as error:
        raise UsageError(f"evidence folder '{folder}' cannot be replayed: {error}") from error
    return WarmGuests({base: images}, {base: kernel}, progress.tell)


def _show_replayed(replayed: "Replayed", results: Path) -> None:
    from lab.cli.present import make_table

    by = f" by {', '.join(replayed.accused)}" if replayed.accused else ""
    table = make_table("trial", "outcome", "same", "why")
    for each in replayed.tries:
        table.add_row(each.evidence, each.outcome.value, _tell_same(replayed, each), clean(each.reason))
    out().print(table)
    silent = f", {len(replayed.silent)} showed nothing" if replayed.silent else ""
    out().print(f"{replayed.same}/{len(replayed.tries)} ended the same way: {replayed.outcome.value}{by}{silent}")
    out().print(f"evidence: {results}")


def _tell_same(replayed: "Replayed", each: "Again") -> str:
    if each in replayed.silent:
        return "shows nothing"
    return "yes" if each.same else "NO"


def _tell_minimised(found: "Minimised", need: "Need", results: Path, given: Sequence[str], as_json: bool) -> None:
    """Say what is left.

    :param given: words of this command that the next one needs as well
    """
    from lab.reduce.case import list_changes
    from lab.reduce.minimise import LAST

    changes = list_changes(found.before, found.after)
    if as_json:
        print_json(
            {
                "reproduced": found.reproduced,
                "complete": found.after.whole,
                "wanted": found.wanted,
                "trials": found.trials,
                "exhausted": found.exhausted,
                "changes": changes,
                "nmis_at_drawn_times": len(found.after.timed),
                "placed": found.after.scenario.placed,
                "scenario": str(results / MINIMAL) if found.reproduced else "",
                "evidence": str(results / LAST) if found.reproduced else "",
            }
        )
        return
    if not found.reproduced:
        out().print(
            f"not made smaller: {found.trials} trials, and it did not fail {need.fails} of {need.of} times again"
        )
        return
    for line in changes or ("nothing could be dropped",):
        out().print(clean(line))
    if found.after.timed:
        out().print(f"{len(found.after.timed)} NMIs still come at drawn times: the scenario alone needs luck")
    if found.exhausted:
        out().print("the bound on trials was reached: it may get smaller yet, see --trials")
    out().print(f"fails {need.fails}/{need.of} by one of {', '.join(found.wanted)}, after {found.trials} trials")
    out().print(
        f"run it: {shlex.join(('lab', 'trial', '--scenario', str(results / MINIMAL), *given, '--out', 'DIR'))};"
        f" its last failing evidence: {results / LAST}"
    )


def _refuse(folder: Path) -> None:
    raise refuse_output(folder)
