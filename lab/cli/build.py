# SPDX-License-Identifier: GPL-2.0-or-later
"""Commands about the host and what guests are made of."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from lab.build.archive import read_table
from lab.build.kernel import DEFAULT_BASE, build_kernel
from lab.build.observer import build_observer
from lab.build.qemu import find_qemu
from lab.build.qemu_release import build_qemu
from lab.cli.app import LAB_FAULT, JsonOption, QemuOption, out, print_json, print_text
from lab.cli.progress import open_progress
from lab.errors import UsageError, tell_nearest
from lab.mechanisms.base import BASES, find_base

if TYPE_CHECKING:
    from lab.build.images import ImageSet

#: What is built for the QEMU that it is to be used with.
FOR_QEMU = ("observer", "all")
#: What older scripts call it.
OLD_NAMES = {"oracle": "observer"}


class _Beside(NamedTuple):
    """What a user gives beside a tree."""

    patches: Path | None
    config: Path | None
    config_base: Path | None


def doctor(qemu: QemuOption = None, as_json: JsonOption = False) -> None:
    """Say what this host can do, and how to mend what it lacks."""
    # Loaded by those commands alone that need it, and not to refuse a mistyped name: here and below.
    from lab.build.doctor import examine_host, examine_qemus
    from lab.cli import present
    from lab.trial.kvm import try_kvm

    qemus = examine_qemus(qemu)
    checks = (*examine_host(qemu), try_kvm(find_qemu(qemu) if qemus and qemus[0].usable else None))
    if as_json:
        print_json({"checks": checks, "qemus": qemus})
    else:
        out().print(present.make_check_table(checks))
        out().print(present.make_qemu_table(qemus))
    raise typer.Exit(0 if all(check.ok for check in checks) else LAB_FAULT)


def build(
    what: Annotated[str, typer.Argument(help="kernel, initramfs, observer, all, or qemu with --release")] = "all",
    base: Annotated[str, typer.Option(help=f"which kernel: {', '.join(each.name for each in BASES)}")] = DEFAULT_BASE,
    tree: Annotated[
        Path | None,
        typer.Option(
            metavar="TREE",
            help="build this source of Linux, and leave it as it is: git tree, folder, tarball or Debian's .dsc",
        ),
    ] = None,
    patches: Annotated[
        Path | None, typer.Option(metavar="DIR", help="with --tree: apply these on top, by series or in order of name")
    ] = None,
    config: Annotated[
        Path | None, typer.Option(metavar="FRAGMENT", help="with --tree: settings that win over the lab's own")
    ] = None,
    config_base: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="with --tree: begin with this whole configuration, such as a distribution's; its modules are left out",
        ),
    ] = None,
    release: Annotated[
        str | None,
        typer.Option(help="of qemu: a release of Debian, whose QEMU is fetched and unpacked, and not installed"),
    ] = None,
    qemu: QemuOption = None,
    as_json: JsonOption = False,
) -> None:
    """Build what guests are made of, or find it in the cache."""
    what = OLD_NAMES.get(what, what)
    if qemu is not None and what not in FOR_QEMU:
        raise UsageError(f"--qemu goes with {' and '.join(FOR_QEMU)} only: '{what}' is the same for each QEMU")
    own = any(given is not None for given in (tree, patches, config, config_base))
    if release is not None or (what == "qemu" and not own):
        if own:
            raise UsageError("--release is a QEMU's: --tree, --patches, --config and --config-base are a kernel's")
        _build_qemu(what, release, as_json)
        return
    if own:
        _build_own(what, base, tree, _Beside(patches, config, config_base), as_json)
        return
    recipes: dict[str, Callable[[Callable[[str], None]], dict[str, str]]] = {
        "kernel": lambda tell: {what: str(build_kernel(tell, base).folder)},
        "initramfs": lambda tell: {what: str(_build_initramfs(tell))},
        "observer": lambda tell: {what: str(build_observer(tell, find_qemu(qemu, tell).level))},
        "all": lambda tell: _build_all(base, qemu, tell),
    }
    if what not in recipes:
        known = (*recipes, "qemu")
        raise UsageError(f"'{what}' cannot be built: there are {', '.join(known)}{tell_nearest(what, known)}")
    find_base(base)
    with open_progress() as progress:
        parts = recipes[what](progress.tell)
    if as_json:
        print_json(parts)
        return
    for name, path in parts.items():
        out().print(f"{name:10} {path}")


def _build_initramfs(tell: Callable[[str], None]) -> Path:
    from lab.build.initramfs import build_initramfs

    return build_initramfs(tell)


def _build_all(base: str, qemu: Path | None, tell: Callable[[str], None]) -> dict[str, str]:
    from lab.build.images import build_images

    return _list_parts(build_images(tell, find_qemu(qemu, tell), base))


def _list_parts(built: "ImageSet") -> dict[str, str]:
    files = {name: str(getattr(built, name)) for name in ("kernel", "vmlinux", "initramfs", "observer")}
    return {**files, "qemu": str(built.qemu.path)}


def _build_qemu(what: str, release: str | None, as_json: bool) -> None:
    known = ", ".join(read_table().release)
    if what != "qemu":
        raise UsageError(f"--release is a QEMU's: 'lab build qemu --release {release}', and not '{what}'")
    if release is None:
        raise UsageError(f"qemu needs --release: there are {known}")
    with open_progress() as progress:
        program = build_qemu(release, progress.tell)
    if as_json:
        print_json({"qemu": str(program)})
    else:
        print_text(str(program))


def _build_own(what: str, base: str, tree: Path | None, beside: _Beside, as_json: bool) -> None:
    if tree is None:
        options = {"--patches": beside.patches, "--config": beside.config, "--config-base": beside.config_base}
        given = next(name for name, path in options.items() if path is not None)
        raise UsageError(f"{given} goes with --tree only")
    if base != DEFAULT_BASE:
        raise UsageError(f"--base is for the lab's own kernels: '{base}' cannot be given with --tree")
    if what != "kernel":
        raise UsageError(f"--tree is a kernel's: 'lab build kernel --tree {tree}', and not '{what}'")
    from lab.build.own_kernel import build_own_kernel
    from lab.cli import present

    with open_progress() as progress:
        built = build_own_kernel(tree, beside.patches, beside.config, progress.tell, beside.config_base)
    if as_json:
        print_json(present.describe_own_kernel(built))
    else:
        for name, value in present.describe_own_kernel(built).items():
            out().print(f"{name:13} {', '.join(value) or 'nothing' if isinstance(value, list) else value}")
