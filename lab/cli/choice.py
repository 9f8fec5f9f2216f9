# SPDX-License-Identifier: GPL-2.0-or-later
"""From what a command line asks for to scenarios, and to the images and kernels that these need."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from lab.cli.axes import Axes, make_scenario
from lab.errors import UsageError
from lab.mechanisms.base import BASES
from lab.mechanisms.table import FIRST_CAMPAIGN, MECHANISMS, find_mechanism, mechanisms_of
from lab.model.placed import to_hold
from lab.model.qemu import Qemu
from lab.model.scenario import Scenario

if TYPE_CHECKING:
    from lab.build.images import ImageSet
    from lab.kernelimage.vmlinux import Kernel
    from lab.trial.given import GivenKernel

#: In place of a mechanism's name.
ALL = "all"


def take_own(kernel: Path | None, vmlinux: Path | None) -> "GivenKernel | None":
    """Check the user's own kernel, when there is one.

    :raise UsageError: one of the two is missing, or they are no kernel fit for trials
    """
    if not check_pair(kernel, vmlinux):
        return None
    assert kernel is not None
    assert vmlinux is not None
    # What reads kernels is loaded when there is one to read, and not to refuse a mistyped name.
    from lab.trial.given import take_kernel

    return take_kernel(kernel, vmlinux)


def check_pair(kernel: Path | None, vmlinux: Path | None) -> bool:
    """Say whether the user brings a kernel.

    :raise UsageError: one of its two files is missing
    """
    if (kernel is None) != (vmlinux is None):
        raise UsageError("--kernel and --vmlinux go together: the one is booted, the other tells what is where in it")
    return kernel is not None


def choose_scenario(axes: Axes, mechanism: str | None, own: "GivenKernel | None") -> Scenario:
    """Return the scenario of one trial.

    :raise UsageError: it cannot be run, or more than one was asked for
    """
    if mechanism == ALL:
        raise UsageError(f"mechanism '{ALL}' is several, and a trial has one: 'lab run' takes it")
    return choose_scenarios(axes, [] if mechanism is None else [mechanism], own, default=())[0][0]


def choose_scenarios(
    axes: Axes, names: list[str], own: "GivenKernel | None", default: tuple[str, ...] = FIRST_CAMPAIGN
) -> tuple[tuple[Scenario, ...], tuple[tuple[str, UsageError], ...]]:
    """Return one scenario for each mechanism that was asked for; of all, those that can be run, and why not the others.

    :param names: of mechanisms, or ALL
    :param default: what is meant where neither names, a scenario file nor a kernel with one mechanism say it
    :raise UsageError: one that was named cannot be run, or none of all can
    """
    there = [each.name for each in (MECHANISMS if own is None else mechanisms_of(own.base.name))]
    if names == [ALL]:
        return _sift(make_scenario(axes, name) for name in there)
    if not names and axes.scenario is None:
        names = list(default) if own is None else [_find_only(there)]
    asked: list[str | None] = [*dict.fromkeys(names)]
    left_out = find_mechanism_of(own)
    scenarios = tuple(make_scenario(axes, name, left_out) for name in asked or [None])
    for scenario in scenarios:
        scenario.check()
        if scenario.mechanism not in there:
            whose = "the lab's own kernels have" if own is None else "this kernel has"
            raise UsageError(f"mechanism '{scenario.mechanism}' is not there: {whose} {', '.join(there)}")
    return scenarios, ()


def build_bases(
    scenarios: Iterable[Scenario], tell: Callable[[str], None], own: "GivenKernel | None", qemu: Qemu
) -> "tuple[dict[str, ImageSet], dict[str, Kernel]]":
    """Return images and kernels by base, of those that the scenarios' mechanisms need.

    :raise BuildError: a recipe failed
    :raise UsageError: a scenario holds somebody at a place that its kernel does not have
    :raise HostError: a package or space is missing
    """
    from lab.build.images import build_images
    from lab.kernelimage.hold_places import find_holds
    from lab.kernelimage.vmlinux import read_kernel
    from lab.trial.given import build_around

    scenarios = tuple(scenarios)
    _check_kernels(scenarios, own)
    if own is not None:
        images, kernels = {own.base.name: build_around(own, tell, qemu)}, {own.base.name: own.kernel}
    else:
        bases = dict.fromkeys(find_mechanism(each.mechanism).base for each in scenarios)
        images = {base: build_images(tell, qemu, base) for base in bases}
        kernels = {base: read_kernel(each.vmlinux) for base, each in images.items()}
    for scenario in scenarios:
        mechanism = find_mechanism(scenario.mechanism)
        holds = tuple(to_hold(each, scenario.topology) for each in scenario.all_placed)
        find_holds(kernels[mechanism.base], mechanism, holds)
    return images, kernels


def _check_kernels(scenarios: tuple[Scenario, ...], own: "GivenKernel | None") -> None:
    """Refuse scenarios, which a file may name, of other kernels than there are.

    :raise UsageError: the kernel that a scenario needs is not there
    """
    for scenario in scenarios:
        base = find_mechanism(scenario.mechanism).base
        if own is None and base not in [each.name for each in BASES]:
            raise UsageError(
                f"mechanism '{scenario.mechanism}' is that of a kernel you bring: give it with --kernel and --vmlinux"
            )
        if own is not None and base != own.base.name:
            there = ", ".join(each.name for each in mechanisms_of(own.base.name))
            raise UsageError(f"mechanism '{scenario.mechanism}' is not there: this kernel has {there}")


def find_mechanism_of(own: "GivenKernel | None") -> str:
    """Return the mechanism that files may leave out, empty where they may not."""
    there = [] if own is None else [each.name for each in mechanisms_of(own.base.name)]
    return there[0] if len(there) == 1 else ""


def _find_only(there: list[str]) -> str:
    if len(there) != 1:
        raise UsageError(f"this kernel has several mechanisms: name one with --mechanism: {', '.join(there)}")
    return there[0]


def _sift(scenarios: Iterable[Scenario]) -> tuple[tuple[Scenario, ...], tuple[tuple[str, UsageError], ...]]:
    possible, refused = [], []
    for scenario in scenarios:
        try:
            scenario.check()
            possible.append(scenario)
        except UsageError as error:
            refused.append((scenario.mechanism, error))
    if not possible:
        raise refused[0][1]
    return tuple(possible), tuple(refused)
