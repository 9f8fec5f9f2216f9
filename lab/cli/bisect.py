# SPDX-License-Identifier: GPL-2.0-or-later
"""The command that finds the commit from which on a scenario fails."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import msgspec
import typer

from lab.cli.app import Interrupted, JsonOption, QemuOption, check_seed, out, print_json, print_text
from lab.cli.progress import open_progress
from lab.errors import UsageError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from lab.bisect.bisection import Bisected, Commit

#: Exit status when the first bad commit cannot be told.
UNKNOWN: Final = 3
#: In the folder of a bisection: what came of it, as ``--json`` prints it.
RESULT: Final = "result.json"
MAX_TRIALS: Final = 1_000
_DIGITS: Final = 12


def bisect(
    tree: Annotated[
        Path, typer.Option("--tree", metavar="DIR", help="a clean git tree of Linux; commits are checked out in it")
    ],
    good: Annotated[str, typer.Option(metavar="REVISION", help="a commit on which the scenario PASSes")],
    bad: Annotated[str, typer.Option(metavar="REVISION", help="a later commit on which it FAILs")],
    scenario: Annotated[Path, typer.Option(metavar="FILE", help="a scenario file, or a name of lab scenarios")],
    target: Annotated[
        Path, typer.Option("--out", help="folder for evidence, new or empty, or that of the same bisection, to go on")
    ],
    trials: Annotated[int, typer.Option(help="of each commit: it is good when all PASS", min=1, max=MAX_TRIALS)] = 5,
    retries: Annotated[
        int,
        typer.Option(help="further trials of a commit, in place of INVALID ones; then skip it", min=0, max=MAX_TRIALS),
    ] = 3,
    config: Annotated[
        Path | None, typer.Option(metavar="FRAGMENT", help="settings that win over the lab's own, as lab build has it")
    ] = None,
    qemu: QemuOption = None,
    seed: Annotated[int, typer.Option(help="from which the seeds of trials follow, the same for each commit")] = 1,
    as_json: JsonOption = False,
) -> None:
    """Find the commit that broke a scenario by git bisect: exit 0 found, 3 when it cannot be told, 4 aborted."""
    from lab.cli.axes import read_scenario

    asked_for = read_scenario(scenario).scenario
    asked_for.check()
    if config is not None and not config.is_file():
        raise UsageError(f"configuration '{config}' is not there")
    from lab.bisect import bisection
    from lab.bisect.history import find_range
    from lab.bisect.step import Asked
    from lab.build.qemu import find_qemu
    from lab.evidence.folder import claim_output
    from lab.host.files import write_whole

    find_qemu(qemu)
    root = tree.resolve()
    if target.is_dir():
        bisection.recover(target.resolve(), root)
    between = find_range(tree, good, bad)
    asked = Asked(
        tree=str(between.root),
        good=between.good,
        bad=between.bad,
        scenario=asked_for,
        trials=trials,
        retries=retries,
        seed=check_seed(seed),
        config=str(config.resolve()) if config is not None else "",
        qemu=str(qemu.resolve()) if qemu is not None else "",
    )
    if target.resolve().is_relative_to(between.root):
        raise UsageError(f"output folder '{target}' is inside the tree: name one outside")
    folder = claim_output(target, lambda _: None)
    bisection.claim(folder, asked)
    try:
        with open_progress() as progress:
            found = bisection.bisect(folder, between, progress.tell)
    except KeyboardInterrupt:
        raise Interrupted(
            f"no guest is left, and the tree is as it was; the same command goes on from what is in '{folder}'"
        ) from None
    described = describe(found, folder)
    write_whole(folder / RESULT, msgspec.json.format(msgspec.json.encode(described)))
    if as_json:
        print_json(described)
    else:
        out().print(make_table(found))
        for line in tell(found, folder):
            print_text(line)
    raise typer.Exit(0 if found.first_bad is not None else UNKNOWN)


def describe(found: "Bisected", folder: Path) -> dict[str, object]:
    """Return what came of a bisection as ``--json`` prints it."""

    def commit(each: "Commit | None") -> dict[str, object] | None:
        if each is None:
            return None
        return {
            "commit": each.commit,
            "subject": each.subject,
            "standing": each.step.standing,
            "reason": each.step.reason,
            "evidence": str(folder / each.step.proof) if each.step.proof else "",
            "kernel": each.step.kernel,
            "trials": each.step.trials,
        }

    return {
        "first_bad": commit(found.first_bad),
        "before": commit(found.before),
        "suspects": found.suspects,
        "reason": found.reason,
        "tried": [commit(each) for each in found.tried],
    }


def make_table(found: "Bisected") -> "RenderableType":
    """Return the commits that were tried, for a terminal."""
    from rich.text import Text

    from lab.bisect.step import Standing
    from lab.cli import present

    style = {Standing.GOOD: "green", Standing.BAD: "bold red", Standing.SKIPPED: "yellow"}
    table = present.make_table("commit", "is", "trials", "subject", "why")
    for each in found.tried:
        standing = each.step.standing
        table.add_row(
            each.commit[:_DIGITS],
            Text(standing.value, style.get(standing, "")),
            str(len(each.step.trials)),
            Text(present.clean(each.subject)),
            Text(present.clean(each.step.reason)),
        )
    return table


def tell(found: "Bisected", folder: Path) -> tuple[str, ...]:
    """Return what came of a bisection in a few lines."""
    if found.first_bad is None:
        return (f"cannot tell: {found.reason}", *(f"  {commit}" for commit in found.suspects))
    lines = [f"first bad commit: {found.first_bad.commit} {found.first_bad.subject}"]
    if found.before is not None and found.before.step.proof:
        lines.append(f"before: {folder / found.before.step.proof} ({found.before.commit[:_DIGITS]})")
    if found.first_bad.step.proof:
        lines.append(f"after:  {folder / found.first_bad.step.proof} (lab explain tells its story)")
    return tuple(lines)
