# SPDX-License-Identifier: GPL-2.0-or-later
"""The command that tries whether the lab notices what is broken on purpose."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lab.build.mutant_list import choose_mutants
from lab.build.qemu import find_qemu
from lab.cli.app import JsonOption, QemuOption, check_seed, out, print_json
from lab.errors import UsageError
from lab.expected.mutant import DEFAULT_TRIALS, Mutant

if TYPE_CHECKING:
    from lab.build.images import ImageSet
    from lab.campaign.definition import CampaignSpec


def mutants(
    names: Annotated[list[str] | None, typer.Argument(metavar="NAME", help="of mutants (default: all)")] = None,
    trials: Annotated[int, typer.Option(help="of each mutant, at most", min=1)] = DEFAULT_TRIALS,
    seed: Annotated[int | None, typer.Option(help="of the whole hunt (default: drawn)")] = None,
    folder: Annotated[
        Path | None, typer.Option("--out", help="folder for the table, the trials and their page, new or empty")
    ] = None,
    listed: Annotated[bool, typer.Option("--list", help="only say which there are")] = False,
    qemu: QemuOption = None,
    as_json: JsonOption = False,
) -> None:
    """Try each mutant until it is caught: exit 0 when all were, 1 when one was not, 4 when the lab failed."""
    chosen = choose_mutants(names or [])
    if listed:
        _list(chosen, as_json)
        return
    if folder is None:
        raise UsageError("--out is missing: a folder for the table, the trials and their page")
    hunt_seed = check_seed(seed)
    on = find_qemu(qemu)
    # What runs trials is loaded once the words are right.
    from lab.campaign.hunt import build_hunt, make_hunt_spec
    from lab.campaign.sitting import INLINE, Watch, Where, claim_campaign_output, start_campaign
    from lab.cli.ending import run_sitting, tell_hunt
    from lab.cli.hunt_progress import HuntProgress
    from lab.cli.progress import open_progress

    spec = make_hunt_spec(("lab", *sys.argv[1:]), chosen, on.level, trials, hunt_seed)
    target = claim_campaign_output(folder)
    with open_progress() as progress:

        def build(spec: "CampaignSpec") -> "Mapping[str, ImageSet]":
            return build_hunt(spec, progress.tell, on)

        watch = Watch(say=progress.tell, ended=HuntProgress(spec, progress.tell).take)
        run_sitting(target, lambda: start_campaign(target, spec, build, Where(workers=INLINE), watch))
    raise typer.Exit(tell_hunt(target, as_json))


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
