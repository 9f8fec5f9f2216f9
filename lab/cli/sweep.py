# SPDX-License-Identifier: GPL-2.0-or-later
"""The command that tries every place of a late load where an NMI can enter."""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec
import typer

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
from lab.cli.progress import open_progress
from lab.errors import UsageError, tell_nearest
from lab.mechanisms.table import find_mechanism
from lab.model.boot import Granularity
from lab.model.scenario import Siblings
from lab.model.sweep import SWEPT_PHASES, SWEPT_ROLES, SweepAsk
from lab.model.topology import Topology

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
    # What runs trials is loaded once there is something to run: wrong usage needs none of it.
    from lab import __version__
    from lab.cli.sweep_view import describe_sweep, make_sweep_view
    from lab.evidence.folder import claim_output
    from lab.kernelimage.source_lines import find_source_lines
    from lab.sweep.journal import JOURNAL_VERSION, Begun, Journal, read_begun
    from lab.sweep.run import run_sweep
    from lab.trial.pool import WarmGuests

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
    from lab.sweep.journal import read_begun

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
    from lab.evidence.folder import refuse_output

    raise refuse_output(folder)
