# SPDX-License-Identifier: GPL-2.0-or-later
"""Where the engine is: in the kernel, in the observer, or nowhere, by kernel, scenario and QEMU."""

from pathlib import Path

import pytest

from lab.errors import UsageError
from lab.model.boot import Granularity
from lab.model.engine import Engine, is_taken_by
from lab.model.qemu import Qemu
from lab.model.scenario import Scenario, Siblings
from lab.model.topology import Topology
from lab.trial.opening import PROCESSOR, choose_engine


def qemu(level: int, version: str = "11.1.3") -> Qemu:
    return Qemu(path=Path("/nowhere"), version=version, interface_min=0, interface_max=level, sha256="")


@pytest.mark.parametrize("engine", list(Engine))
@pytest.mark.parametrize(("mechanism", "patched"), [("upstream", True), ("stock-nmi", False)])
def test_a_new_qemu_serves_every_kernel(mechanism: str, patched: bool, engine: Engine) -> None:
    boot = Scenario(mechanism=mechanism, engine=engine).boot
    outside = None if patched and engine is Engine.TAKES else PROCESSOR
    assert choose_engine(boot, qemu(6)) == outside


@pytest.mark.parametrize("mechanism", ["upstream", "stock-nmi"])
@pytest.mark.parametrize("engine", [Engine.TAKES, Engine.REFUSES])
def test_an_old_one_ignores_what_is_to_be_refused(mechanism: str, engine: Engine) -> None:
    assert choose_engine(Scenario(mechanism=mechanism, engine=engine).boot, qemu(5)) is None


@pytest.mark.parametrize("engine", [Engine.FAULTS, Engine.OTHER_REVISION, Engine.ONE_CORE, Engine.CPUID_CHANGES])
def test_an_old_one_says_what_it_cannot_do(engine: Engine) -> None:
    with pytest.raises(UsageError, match=r"QEMU 10\.0\.13 offers plugin interface 4: interface 6 \(QEMU 11\.0\)"):
        choose_engine(Scenario(mechanism="stock-nmi", engine=engine).boot, qemu(4, "10.0.13"))


def test_each_engine_says_which_cores_take_an_update() -> None:
    taken = {engine: (is_taken_by(engine, 0), is_taken_by(engine, 1)) for engine in Engine}
    assert taken.pop(Engine.TAKES) == taken.pop(Engine.CPUID_CHANGES) == (True, True)
    assert taken.pop(Engine.ONE_CORE) == (True, False)
    assert set(taken.values()) == {(False, False)}


@pytest.mark.parametrize(
    ("scenario", "told"),
    [
        (Scenario(mechanism="upstream", topology=Topology(1, 1, 2), engine=Engine.ONE_CORE), "has no other core"),
        (Scenario(mechanism="upstream", siblings=Siblings.RETURNING, engine=Engine.FAULTS), "cannot be returning"),
        (
            Scenario(mechanism="upstream", granularity=Granularity.INSTRUCTION, engine=Engine.CPUID_CHANGES),
            "not with granularity instruction",
        ),
    ],
)
def test_what_shows_nothing_is_refused(scenario: Scenario, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        scenario.check()
