# SPDX-License-Identifier: GPL-2.0-or-later
"""The command that tries every place of a late load where an NMI can enter."""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec
import typer
from rich.console import Group, RenderableType
from rich.text import Text

from lab import __version__
from lab.build.qemu import find_qemu, find_same_qemu
from lab.cli.app import (
    Interrupted,
    JsonOption,
    KernelOption,
    MechanismOption,
    QemuOption,
    VmlinuxOption,
    out,
    print_json,
)
from lab.cli.choice import build_bases, take_own
from lab.cli.present import clean, make_table
from lab.cli.progress import open_progress
from lab.errors import UsageError, tell_nearest
from lab.evidence.folder import claim_output, refuse_output
from lab.kernelimage.source_lines import find_source_lines
from lab.mechanisms.table import find_mechanism
from lab.model.boot import Granularity
from lab.model.scenario import Siblings
from lab.model.sweep import SWEPT_PHASES, SWEPT_ROLES, SweepAsk
from lab.model.topology import Topology
from lab.sweep.journal import JOURNAL_VERSION, Begun, Journal, Tried, read_begun
from lab.sweep.result import Swept
from lab.sweep.run import run_sweep
from lab.trial.pool import WarmGuests

#: Of a point whose kernel has no debug information.
UNKNOWN_LINE = "unknown: no debug information"
#: How many points a person is shown; the journal has all.
SHOWN_POINTS = 40

T = TypeVar("T")

_PHASES = {each.value: each for each in SWEPT_PHASES}
_ROLES = {each.value: each for each in SWEPT_ROLES}

RoleOption = Annotated[
    list[str] | None,
    typer.Option(
        "--role",
        metavar="|".join(_ROLES),
        autocompletion=lambda: list(_ROLES),
        help="whom NMIs are sent to, may be given again (default: primary and sibling)",
    ),
]


def _make_phase_option(name: str, which: str) -> Any:
    return typer.Option(name, metavar="|".join(_PHASES), autocompletion=lambda: list(_PHASES), help=which)


def sweep(
    out_folder: Annotated[Path, typer.Option("--out", help="folder for journal and evidence, new or empty")],
    mechanism: MechanismOption = None,
    role: RoleOption = None,
    first: Annotated[str | None, _make_phase_option("--from", "the first phase (default: armed)")] = None,
    last: Annotated[str | None, _make_phase_option("--to", "the last phase (default: release)")] = None,
    topology: Annotated[str | None, typer.Option(help="SOCKETSxCORESxTHREADS (default: 1x1x2)")] = None,
    core: Annotated[int | None, typer.Option(help="whose threads (default: 0)")] = None,
    siblings: Annotated[Siblings | None, typer.Option(help="where siblings are at the load (default: online)")] = None,
    granularity: Annotated[
        Granularity | None, typer.Option(help="at the heads of blocks, or at every instruction (default: block)")
    ] = None,
    kernel: KernelOption = None,
    vmlinux: VmlinuxOption = None,
    qemu: QemuOption = None,
    until_broken: Annotated[int | None, typer.Option(help="stop at so many broken points", min=1)] = None,
    resume: Annotated[bool, typer.Option("--resume", help="go on with the sweep that the folder holds")] = False,
    as_json: JsonOption = False,
) -> None:
    """Send an NMI at every place of a load: exit 0 all tried and clean, 1 something broke, 3 not all could be tried."""
    given = {
        "mechanism": mechanism,
        "roles": tuple(dict.fromkeys(_find("role", each, _ROLES) for each in role)) if role else None,
        "first": None if first is None else _find("from", first, _PHASES),
        "last": None if last is None else _find("to", last, _PHASES),
        "topology": Topology.parse(topology) if topology is not None else None,
        "core": core,
        "siblings": siblings,
        "granularity": granularity,
    }
    asked: dict[str, object] = {name: value for name, value in given.items() if value is not None}
    own = take_own(kernel, vmlinux)
    ask = _find_resumed(out_folder, asked) if resume else _make_ask(asked)
    ask.check()
    if own is not None and find_mechanism(ask.mechanism).base != own.base.name:
        raise UsageError(f"mechanism '{ask.mechanism}' is not there: this kernel is {own.base.name}")
    on = find_same_qemu(read_begun(out_folder).qemu_sha256, qemu) if resume else find_qemu(qemu)
    folder = out_folder.resolve() if resume else claim_output(out_folder, _refuse)
    with open_progress() as progress, _say_what_is_kept(folder):
        images, kernels = build_bases((ask.scenario,), progress.tell, own, on)
        image = images[ask.scenario.boot.base]
        begun = Begun(
            version=JOURNAL_VERSION,
            lab_version=__version__,
            ask=ask,
            kernel_sha256=image.kernel_sha256,
            qemu_sha256=on.sha256,
        )
        with Journal(folder, begun, resume) as journal, WarmGuests(images, kernels, progress.tell) as guests:
            swept = run_sweep(ask, guests, journal, progress.show_points, until_broken)
    lines = find_source_lines(image.vmlinux, (tried.pc for tried in swept.broken))
    if as_json:
        print_json(describe_sweep(ask, swept, lines, folder))
    else:
        out().print(make_sweep_view(swept, lines, folder))
    raise typer.Exit(swept.exit_status)


def describe_sweep(ask: SweepAsk, swept: Swept, lines: dict[int, str], folder: Path) -> dict[str, object]:
    """Return a sweep as ``--json`` prints it."""
    return {
        "asked": ask,
        "points_known": swept.known,
        "points_tried": swept.tried,
        "points_earlier": swept.earlier,
        "points_entered": swept.entered,
        "untried": swept.untried,
        "broken": [
            {
                "role": tried.role,
                "phase": tried.phase,
                "arrival": tried.arrival,
                "rank": tried.rank,
                "address": f"{tried.pc:#x}",
                "symbol": swept.symbols.get(tried.pc, ""),
                "source": lines.get(tried.pc),
                "invariants": tried.broken,
                "reason": tried.reason,
                "evidence": str(folder / tried.evidence),
            }
            for tried in swept.broken
        ],
        "broken_without_nmi": swept.dry_broken,
        "broken_before": [
            {
                "role": each.role,
                "phase": each.phase,
                "address": f"{each.pc:#x}",
                "symbol": swept.symbols.get(each.pc, ""),
                "invariants": each.broken,
                "reason": each.reason,
                "evidence": str(folder / each.evidence),
            }
            for each in swept.broke
        ],
        "stopped": swept.stopped,
        "uncovered": swept.uncovered,
        "unseen": swept.unseen,
        "masked": swept.masked,
        "complete": swept.is_complete,
    }


def make_sweep_view(swept: Swept, lines: dict[int, str], folder: Path) -> RenderableType:
    """Return a sweep for a terminal: what broke, what could not be tried, and the coverage."""
    parts: list[RenderableType] = []
    if swept.broken:
        table = make_table("role", "phase", "arrival", "symbol", "source", "broke", "evidence")
        for tried in swept.broken[:SHOWN_POINTS]:
            table.add_row(*_make_row(tried, swept, lines))
        parts.append(table)
        if len(swept.broken) > SHOWN_POINTS:
            parts.append(Text(f"and {len(swept.broken) - SHOWN_POINTS} more"))
    parts += [Text(f"a load without an NMI broke {', '.join(dry.broken)}: {dry.evidence}") for dry in swept.dry_broken]
    for each in swept.broke[:SHOWN_POINTS]:
        where = clean(swept.symbols.get(each.pc, "") or f"{each.pc:#x}")
        parts.append(Text(f"on the way to {where}, a load broke {', '.join(each.broken)}: {each.evidence}"))
    if len(swept.broke) > SHOWN_POINTS:
        parts.append(Text(f"and {len(swept.broke) - SHOWN_POINTS} more loads broke something on the way"))
    parts += [Text(f"not tried: {count}: {clean(reason)}") for reason, count in swept.untried.items()]
    if swept.earlier:
        parts.append(Text(f"tried at an earlier arrival than meant, which did not come: {swept.earlier}"))
    if swept.masked:
        parts.append(Text(f"only in handlers of the sweep's own NMIs, where no other enters: {swept.masked} blocks"))
    if swept.uncovered:
        parts.append(Text(f"not listed by the observer, whose table was full: {swept.uncovered} blocks"))
    parts += [Text(f"no block of role {role.value} was seen, so none was tried") for role in swept.unseen]
    if swept.stopped:
        parts.append(Text(f"stopped: {clean(swept.stopped)}"))
    entered = f"{swept.entered} NMIs entered right there"
    parts.append(
        Text(f"points tried {swept.tried} / points known {swept.known}; {len(swept.broken)} broke; {entered}; {folder}")
    )
    return Group(*parts)


def _make_row(tried: Tried, swept: Swept, lines: dict[int, str]) -> tuple[str, ...]:
    return (
        tried.role.value,
        tried.phase.value,
        f"{tried.arrival} ({tried.rank.value})",
        clean(swept.symbols.get(tried.pc, "") or f"{tried.pc:#x}"),
        clean(lines.get(tried.pc, UNKNOWN_LINE)),
        ", ".join(tried.broken),
        tried.evidence,
    )


def _make_ask(asked: dict[str, object]) -> SweepAsk:
    if "mechanism" not in asked:
        raise UsageError("a mechanism is needed: give --mechanism NAME")
    return msgspec.structs.replace(SweepAsk(mechanism=str(asked["mechanism"])), **asked)


def _find(option: str, text: str, known: Mapping[str, T]) -> T:
    """Return what an option names of what can be swept.

    :raise UsageError: it is none of these
    """
    if text not in known:
        near = tell_nearest(text, known)
        raise UsageError(f"{option} is {text}: allowed is {', '.join(known)}{near}")
    return known[text]


def _find_resumed(folder: Path, asked: dict[str, object]) -> SweepAsk:
    """Return what the folder's sweep was asked, which what is given now must not contradict."""
    ask = read_begun(folder).ask
    for name, value in asked.items():
        was = getattr(ask, name)
        if was != value:
            raise UsageError(f"the sweep in '{folder}' has {name} {_show(was)}, and not {_show(value)}: leave it out")
    return ask


def _show(value: object) -> str:
    if isinstance(value, tuple):
        return ", ".join(_show(each) for each in value)
    return str(getattr(value, "value", value))


@contextlib.contextmanager
def _say_what_is_kept(folder: Path) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        raise Interrupted(f"no guest is left; go on with: lab sweep --resume --out '{folder}'") from None


def _refuse(folder: Path) -> None:
    raise refuse_output(folder)
