# SPDX-License-Identifier: GPL-2.0-or-later
"""The command about docs/sound.md: whether the lab's own trials bear the list out."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from lab.build.qemu import find_qemu
from lab.cli.app import JsonOption, OutOption, QemuOption, check_seed
from lab.cli.choice import build_bases
from lab.cli.progress import open_progress
from lab.errors import UsageError, tell_nearest
from lab.expected.cells import Cell, CellKind, parse_cells
from lab.host.files import read_text
from lab.host.paths import ROOT, SOUND

if TYPE_CHECKING:
    from lab.build.images import ImageSet
    from lab.campaign.definition import CampaignSpec

#: What the list is held to by.
DEFAULT_TRIALS: Final = 2_000
#: Mainline's defect shows in half of the loads with drawn windows: fewer than one in 200 runs would miss it.
DEFAULT_TRIES: Final = 8
#: Of one reviewed list.
MAX_LIST_BYTES: Final = 256 * 1024


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
    cells = _choose_cells(CellKind.FAILING if failing else CellKind.SOUND, only)
    if not failing and trials is not None and trials < len(cells):
        raise UsageError(f"trials is {trials}: allowed is {len(cells)} or more, one for each cell")
    run_seed = check_seed(seed)
    # What runs trials is loaded once there is something to run: wrong usage needs none of it.
    from lab.campaign.sitting import INLINE, Watch, Where, start_campaign
    from lab.campaign.soundness import make_sound_spec, share_out
    from lab.cli.ending import run_sitting, tell_soundness
    from lab.evidence.folder import claim_output

    asked = dict.fromkeys(cells, trials or DEFAULT_TRIES) if failing else share_out(trials or DEFAULT_TRIALS, cells)
    spec = make_sound_spec(("lab", *sys.argv[1:]), asked, run_seed)
    on = find_qemu(qemu)
    folder = claim_output(out, _refuse)
    with open_progress() as progress:

        def build(spec: "CampaignSpec") -> "Mapping[str, ImageSet]":
            needed = [part.scenario for part in spec.parts if part.trials]
            images, _ = build_bases(needed, progress.tell, None, on)
            progress.begin(spec.limits.trials or 0)
            return images

        watch = Watch(say=progress.tell, ended=progress.advance)
        run_sitting(folder, lambda: start_campaign(folder, spec, build, Where(workers=INLINE), watch))
    raise typer.Exit(tell_soundness(folder, as_json))


def _choose_cells(kind: CellKind, only: str | None) -> tuple[Cell, ...]:
    name = str(SOUND.relative_to(ROOT))
    cells = [cell for cell in parse_cells(read_text(SOUND, MAX_LIST_BYTES, "list of cells"), name) if cell.kind is kind]
    chosen = tuple(cell for cell in cells if only in (None, cell.mechanism))
    if not chosen:
        known = dict.fromkeys(cell.mechanism for cell in cells)
        near = tell_nearest(only, known)
        raise UsageError(f"only is '{only}': '{kind.value}' in {name} has cells of {', '.join(known)}{near}")
    return chosen


def _refuse(folder: Path) -> None:
    raise UsageError(f"output folder '{folder}' is not empty: name an empty or new one")
