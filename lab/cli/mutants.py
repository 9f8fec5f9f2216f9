# SPDX-License-Identifier: GPL-2.0-or-later
"""The command that tries whether the lab notices what is broken on purpose."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from lab.build.qemu import find_qemu
from lab.cli.app import LAB_FAULT, Interrupted, JsonOption, QemuOption, check_seed, out, print_json
from lab.cli.progress import open_progress
from lab.errors import UsageError
from lab.expected.mutant import DEFAULT_TRIALS, Mutant
from lab.host.files import write_whole

if TYPE_CHECKING:
    from rich.console import RenderableType

    from lab.campaign.mutants import Kill

#: Exit status when a mutant survived, or fooled the lab.
SURVIVOR = 1
#: In the folder of a hunt: the kill table.
KILLS = "kills.json"


def mutants(
    names: Annotated[list[str] | None, typer.Argument(metavar="NAME", help="of mutants (default: all)")] = None,
    trials: Annotated[int, typer.Option(help="of each mutant, at most", min=1)] = DEFAULT_TRIALS,
    seed: Annotated[int | None, typer.Option(help="of the whole hunt (default: drawn)")] = None,
    folder: Annotated[
        Path | None, typer.Option("--out", help="folder for the table and each mutant's last trial, new or empty")
    ] = None,
    listed: Annotated[bool, typer.Option("--list", help="only say which there are")] = False,
    qemu: QemuOption = None,
    as_json: JsonOption = False,
) -> None:
    """Try each mutant until it is caught: exit 0 when all were, 1 when one was not, 4 when the lab failed."""
    # What runs trials is loaded once the words are right.
    from lab.campaign.mutants import Fate, choose_mutants, hunt
    from lab.evidence.folder import claim_output

    chosen = choose_mutants(names or [])
    if listed:
        _list(chosen, as_json)
        return
    if folder is None:
        raise UsageError("--out is missing: a folder for the table and each mutant's last trial")
    hunt_seed = check_seed(seed)
    on = find_qemu(qemu)
    target = claim_output(folder, _refuse)
    kills: list[Kill] = []
    with open_progress() as progress, _say_what_is_kept(target):
        for mutant in chosen:
            progress.tell(f"mutant {len(kills) + 1} of {len(chosen)}: {mutant.name}")
            kills.append(hunt(mutant, on, target, trials, hunt_seed, progress.tell, lambda _: None))
            write_whole(target / KILLS, msgspec.json.format(msgspec.json.encode(kills)))
            progress.tell(f"mutant {mutant.name}: {_tell(kills[-1])}")
    if as_json:
        print_json({"seed": hunt_seed, "kills": kills})
    else:
        out().print(make_kill_table(kills))
        out().print(f"seed {hunt_seed}; {KILLS} and each mutant's last trial are in {target}")
    fates = {kill.fate for kill in kills}
    raise typer.Exit(LAB_FAULT if Fate.ERROR in fates else 0 if fates <= {Fate.CAUGHT, Fate.BEYOND} else SURVIVOR)


def make_kill_table(kills: "list[Kill]") -> "RenderableType":
    """Return the kill table for a terminal."""
    from lab.cli.present import clean, make_table

    table = make_table("mutant", "of", "fate", "caught by", "also broken", "trials", "build s", "hunt s")
    for kill in kills:
        table.add_row(
            kill.mutant,
            kill.subject.value,
            kill.fate.value,
            ", ".join(kill.by) or clean(kill.reason),
            ", ".join(kill.also),
            str(kill.trials),
            f"{kill.build_s:.0f}",
            f"{kill.hunt_s:.0f}",
        )
    return table


def _list(chosen: tuple[Mutant, ...], as_json: bool) -> None:
    if as_json:
        print_json({"mutants": chosen})
        return
    from lab.cli.present import make_table

    table = make_table("mutant", "of", "on", "must break", "what it does")
    for mutant in chosen:
        where = f"{mutant.scenario.mechanism} {mutant.scenario.topology}"
        table.add_row(mutant.name, mutant.subject.value, where, ", ".join(mutant.caught_by), mutant.breaks)
    out().print(table)


def _tell(kill: "Kill") -> str:
    by = f" by {', '.join(kill.by)}" if kill.by else f", {kill.reason}"
    return f"{kill.fate.value}{by} after {kill.trials} trials"


@contextlib.contextmanager
def _say_what_is_kept(folder: Path) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        raise Interrupted(f"no guest is left; mutants that were through are in '{folder / KILLS}'") from None


def _refuse(folder: Path) -> None:
    from lab.evidence.folder import refuse_output

    raise refuse_output(folder)
