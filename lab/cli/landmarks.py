# SPDX-License-Identifier: GPL-2.0-or-later
"""The command that says what the observer would look at in a kernel: its landmarks, and its wait regions."""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from lab.build.kernel import DEFAULT_BASE, build_kernel
from lab.cli.app import USAGE, JsonOption, KernelOption, VmlinuxOption, print_json, print_text
from lab.cli.choice import check_pair
from lab.cli.progress import open_progress
from lab.mechanisms.base import BASES, find_base
from lab.mechanisms.table import mechanisms_of

if TYPE_CHECKING:
    from lab.kernelimage.closure import WaitRegion
    from lab.kernelimage.landmarks import Search, Sought
    from lab.kernelimage.vmlinux import Kernel

#: An address in each of many copies of a handler says no more than one.
_MAX_SHOWN = 4


def landmarks(
    kernel: KernelOption = None,
    vmlinux: VmlinuxOption = None,
    base: Annotated[
        str, typer.Option(help=f"without --kernel: which of {', '.join(each.name for each in BASES)}")
    ] = DEFAULT_BASE,
    as_json: JsonOption = False,
) -> None:
    """Say which landmarks a kernel has, and what each wait region holds and why; nothing is booted.

    Exit status 2 means that a landmark is missing or a wait region cannot be closed: the kernel cannot be tried.
    """
    name, read = _choose(kernel, vmlinux, base)
    from lab.kernelimage.landmarks import make_symboliser, search_landmarks

    search = search_landmarks(read, mechanisms_of(name))
    symbolise = make_symboliser(read, mechanisms_of(name))
    if as_json:
        print_json(describe(name, search, symbolise))
    else:
        for line in list_lines(name, search, symbolise):
            print_text(line)
    raise typer.Exit(USAGE if search.problems else 0)


def _choose(kernel: KernelOption, vmlinux: VmlinuxOption, base: str) -> "tuple[str, Kernel]":
    """Return what kind of kernel it is, and its code."""
    if check_pair(kernel, vmlinux):
        assert kernel is not None
        assert vmlinux is not None
        from lab.trial.given import look_at_kernel

        given = look_at_kernel(kernel, vmlinux)
        return given.base.name, given.kernel
    find_base(base)
    from lab.kernelimage.vmlinux import read_kernel

    with open_progress() as progress:
        return base, read_kernel(build_kernel(progress.tell, base).vmlinux)


def describe(base: str, search: "Search", symbolise: Callable[[int], str]) -> dict[str, object]:
    """Return what ``--json`` prints."""
    return {
        "base": base,
        "landmarks": [
            {
                "kind": each.kind,
                "mechanism": each.mechanism,
                "addresses": [f"{address:#x}" for address in each.addresses],
                "symbols": [symbolise(address) for address in each.addresses],
                "problem": each.problem,
            }
            for each in search.sought
        ],
        "wait_regions": [
            {
                "mechanism": wait.mechanism,
                "functions": wait.region.functions,
                "held": wait.region.held,
                "left_out": wait.region.left_out,
            }
            for wait in search.waits
        ],
        "problems": search.problems,
    }


def list_lines(base: str, search: "Search", symbolise: Callable[[int], str]) -> Iterator[str]:
    """Yield the lines for a person."""
    yield f"kernel of kind {base}"
    for each in search.sought:
        yield f"  {each.kind:12} {each.mechanism or 'any':20} {_tell_places(each, symbolise)}"
    for wait in search.waits:
        yield from _list_region(wait.mechanism, wait.region)
    for problem in search.problems:
        yield f"missing: {problem}"


def _tell_places(sought: "Sought", symbolise: Callable[[int], str]) -> str:
    if sought.problem:
        return f"not found: {sought.problem}"
    shown = [symbolise(address) or f"{address:#x}" for address in sought.addresses[:_MAX_SHOWN]]
    more = len(sought.addresses) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")


def _list_region(mechanism: str, region: "WaitRegion") -> Iterator[str]:
    yield f"wait region of {mechanism}: {len(region.functions)} functions"
    for held in region.held:
        yield f"  holds     {held.name:34} {held.end - held.start:5} bytes at {held.start:#x}: {held.why}"
    for left in region.left_out:
        yield f"  left out  {left.name:34} at {left.by}: {left.why}"
