# SPDX-License-Identifier: GPL-2.0-or-later
"""Where a hold is in a kernel made for the case, and how one is refused that is nowhere in it."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from test_places import BASE, WRMSR_79, make_kernel, start_of

from lab.cli import choice
from lab.errors import UsageError
from lab.kernelimage.hold_places import FoundHold, find_holds
from lab.mechanisms.table import MECHANISMS, find_mechanism
from lab.model.evidence import EventKind
from lab.model.hold import LANDMARKS, Hold
from lab.model.phase import Role
from lab.model.placed import Placed
from lab.model.qemu import Qemu
from lab.model.scenario import Scenario

QEMU = Qemu(path=Path("/qemu"), version="7.2", interface_min=0, interface_max=1, sha256="e" * 64)
KERNEL = make_kernel(outer=WRMSR_79 + b"\xc3")
NMI_SELF = find_mechanism("nmi-self")


def find(at: str, mechanism: str = "nmi-self") -> FoundHold:
    (found,) = find_holds(KERNEL, find_mechanism(mechanism), (Hold(at=at, vcpu=1),))
    return found


@pytest.mark.parametrize(
    ("at", "address"),
    [
        ("outer", start_of("outer")),
        ("outer+0x0", start_of("outer")),
        ("outer+0x5", start_of("outer") + 5),
        (f"{start_of('outer') + 7:#x}", start_of("outer") + 7),
        # What the compiler made of a function goes by the name in the source, and by its own.
        ("wait", start_of("wait.constprop.0")),
        ("wait.constprop.0+0x0", start_of("wait.constprop.0")),
    ],
)
def test_a_block_is_found_by_symbol_or_address(at: str, address: int) -> None:
    assert find(at) == FoundHold(Hold(at=at, vcpu=1), None, address)


def test_a_landmark_is_any_place_of_its_kind() -> None:
    assert find("window-open") == FoundHold(Hold(at="window-open", vcpu=1), EventKind.WINDOW_OPEN, 0)
    assert find("any-block") == FoundHold(Hold(at="any-block", vcpu=1), None, 0)


@pytest.mark.parametrize(
    ("at", "says"),
    [
        ("otter+0x0", r"place 'otter\+0x0': .*'otter' is not in this kernel; the nearest names are outer"),
        ("zzz", "place 'zzz': .*'zzz' is not in this kernel$"),
        ("outer+0x1", r"place 'outer\+0x1' is in the middle of an instruction of outer"),
        (f"{start_of('outer') + 6:#x}", "is in the middle of an instruction of outer"),
        ("outer+0x8", r"place 'outer\+0x8' is behind the end of outer: it is 0x8 long"),
        ("outer+0xffffffff", "is behind the end of outer"),
        ("0x0", "place '0x0' is not in the text of this kernel"),
        (f"{BASE - 1:#x}", "is not in the text of this kernel"),
        # Between two functions.
        (f"{start_of('outer') + 32:#x}", "is not in the text of this kernel"),
        ("0x" + "f" * 16, "is not in the text of this kernel"),
    ],
)
def test_a_place_that_is_nowhere_is_refused_in_one_sentence(at: str, says: str) -> None:
    with pytest.raises(UsageError, match=says) as caught:
        find(at)
    assert "\n" not in str(caught.value)


def test_a_landmark_that_a_mechanism_lacks_is_refused() -> None:
    lacking = {(each.name, at) for each in MECHANISMS for at in LANDMARKS if _is_refused(at, each.name)}
    assert ("uniform", "call-in") in lacking
    assert ("uniform", "release") in lacking
    assert ("nmi-self", "ipi-nmi") in lacking
    assert ("nmi-broadcast", "ipi-nmi") not in lacking
    assert ("park-hlt", "self-nmi") in lacking
    always = {"load-begin", "load-end", "window-open", "window-close", "nmi-entry"}
    assert not {at for _, at in lacking} & always


def _is_refused(at: str, mechanism: str) -> bool:
    try:
        find(at, mechanism)
    except UsageError as error:
        return f"place '{at}': mechanism '{mechanism}' has no such landmark" == str(error)
    return False


def test_all_holds_of_a_plan_are_found_in_their_order() -> None:
    holds = (Hold(at="outer", vcpu=0), Hold(at="release", vcpu=1))
    assert [each.hold for each in find_holds(KERNEL, NMI_SELF, holds)] == list(holds)


def test_a_place_that_is_nowhere_is_refused_before_a_guest_is_booted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lab.build.images.build_images", lambda _tell, _qemu, _base: SimpleNamespace(vmlinux=""))
    monkeypatch.setattr("lab.kernelimage.vmlinux.read_kernel", lambda _path: KERNEL)

    def build(at: str) -> None:
        choice.build_bases(
            (Scenario(mechanism="nmi-self", placed=(Placed(at=at, role=Role.PRIMARY),)),), print, None, QEMU
        )

    build("outer+0x5")
    with pytest.raises(UsageError, match="place 'nowhere'"):
        build("nowhere")
