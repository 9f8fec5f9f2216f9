# SPDX-License-Identifier: GPL-2.0-or-later
"""The command about docs/sound.md: whether the lab's own trials bear the list out."""

import sys
from pathlib import Path
from typing import Annotated, Final

import msgspec
import typer

from lab.build.qemu import find_qemu
from lab.campaign.soundness import CELLS, Soundness, run_cells, share_out
from lab.cli import present
from lab.cli.app import Interrupted, JsonOption, OutOption, QemuOption, check_seed, complain, out, print_json
from lab.cli.choice import build_bases
from lab.cli.progress import open_progress
from lab.errors import UsageError, tell_nearest
from lab.evidence.folder import claim_output
from lab.expected.cells import Cell, Held, parse_cells
from lab.host.files import read_text, write_whole
from lab.host.paths import ROOT, SOUND
from lab.report.page import write_report
from lab.trial.pool import WarmGuests

#: What the list is held to by.
DEFAULT_TRIALS: Final = 2_000
#: Mainline's defect shows in half of the loads with drawn windows: fewer than one in 200 runs would miss it.
DEFAULT_TRIES: Final = 8
#: Of one reviewed list.
MAX_LIST_BYTES: Final = 256 * 1024
#: What is left of all, beside the runs of the cells.
SUMMARY: Final = "sound.json"


def sound(
    out: OutOption,
    trials: Annotated[
        int | None,
        typer.Option(
            help=f"how many over all sound cells (default: {DEFAULT_TRIALS}); with --failing, at most how many of"
            f" each (default: {DEFAULT_TRIES})",
            min=1,
        ),
    ] = None,
    only: Annotated[str | None, typer.Option(metavar="MECHANISM", help="the cells of this mechanism alone")] = None,
    failing: Annotated[
        bool, typer.Option("--failing", help="try the cells known to fail instead, each until it is caught")
    ] = False,
    seed: Annotated[int | None, typer.Option(help="of the whole run (default: drawn)")] = None,
    qemu: QemuOption = None,
    as_json: JsonOption = False,
) -> None:
    """Run trials of all cells that docs/sound.md holds to be sound: exit 0 when the list bears up, 1 when not."""
    cells = _choose_cells(Held.FAILING if failing else Held.SOUND, only)
    if not failing and trials is not None and trials < len(cells):
        raise UsageError(f"trials is {trials}: allowed is {len(cells)} or more, one for each cell")
    asked = dict.fromkeys(cells, trials or DEFAULT_TRIES) if failing else share_out(trials or DEFAULT_TRIALS, cells)
    run_seed = check_seed(seed)
    on = find_qemu(qemu)
    folder = claim_output(out, _refuse)
    try:
        with open_progress() as progress:
            needed = [cell.scenario for cell in cells if asked[cell]]
            images, kernels = build_bases(needed, progress.tell, None, on)
            progress.begin(sum(asked.values()))
            booted = {base: each.describe() for base, each in images.items()}
            with WarmGuests(images, kernels, progress.tell) as guests:
                command = ("lab", *sys.argv[1:])
                ran = run_cells(guests, folder, asked, run_seed, booted, command, progress.advance)
            for result in ran.results:
                if result.folder:
                    write_report(folder / result.folder)
    except KeyboardInterrupt:
        kept = folder / CELLS
        raise Interrupted(f"no guest is left; the records of each cell are kept below '{kept}'") from None
    summary = present.describe_soundness(ran)
    write_whole(folder / SUMMARY, msgspec.json.format(msgspec.json.encode(summary)))
    _tell(ran, summary, folder, as_json)
    raise typer.Exit(ran.exit_status)


def _choose_cells(held: Held, only: str | None) -> tuple[Cell, ...]:
    name = str(SOUND.relative_to(ROOT))
    cells = [cell for cell in parse_cells(read_text(SOUND, MAX_LIST_BYTES, "list of cells"), name) if cell.held is held]
    chosen = tuple(cell for cell in cells if only in (None, cell.mechanism))
    if not chosen:
        known = dict.fromkeys(cell.mechanism for cell in cells)
        near = tell_nearest(only, known)
        raise UsageError(f"only is '{only}': '{held.value}' in {name} has cells of {', '.join(known)}{near}")
    return chosen


def _refuse(folder: Path) -> None:
    raise UsageError(f"output folder '{folder}' is not empty: name an empty or new one")


def _tell(ran: Soundness, summary: dict[str, object], folder: Path, as_json: bool) -> None:
    if as_json:
        print_json(summary)
    else:
        out().print(present.make_soundness_table(ran))
        out().print(f"records: {folder / CELLS}")
    for problem in ran.problems:
        complain(problem, ran.exit_status)
