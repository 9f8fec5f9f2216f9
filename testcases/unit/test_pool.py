# SPDX-License-Identifier: GPL-2.0-or-later
"""Which guest serves a trial: one of the kernel that has its mechanism."""

from typing import Any

import pytest

from lab.model.boot import Boot
from lab.model.plan import draw_plan
from lab.model.scenario import Scenario
from lab.trial import pool


class FakeGuest:
    """Stands for a warm guest, and keeps what is asked of all of them."""

    asked: list[tuple[str, str]]
    retired: list[str]

    def __init__(self, images: Any, kernel: Any, boot: Boot, *_: Any) -> None:
        self._base = base = boot.base
        assert (images, kernel) == (f"images of {base}", f"kernel of {base}")

    def __enter__(self) -> "FakeGuest":
        return self

    def __exit__(self, *_: object) -> None:
        self.retired.append(self._base)

    def run_trial(self, scenario: Scenario, *_: Any, **__: Any) -> None:
        self.asked.append((self._base, scenario.mechanism))


def test_each_mechanism_runs_on_the_guest_of_its_base(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeGuest, "asked", [], raising=False)
    monkeypatch.setattr(FakeGuest, "retired", [], raising=False)
    monkeypatch.setattr(pool, "WarmGuest", FakeGuest)
    bases = ("linux-6.1", "linux-6.12")
    images: Any = {base: f"images of {base}" for base in bases}
    kernels: Any = {base: f"kernel of {base}" for base in bases}
    with pool.WarmGuests(images, kernels, print) as guests:
        for name in ("upstream", "nmi-self", "upstream"):
            scenario = Scenario(mechanism=name)
            guests.run_trial(scenario, draw_plan(scenario, 1))

    assert FakeGuest.asked == [("linux-6.12", "upstream"), ("linux-6.1", "nmi-self"), ("linux-6.12", "upstream")]
    assert sorted(FakeGuest.retired) == ["linux-6.1", "linux-6.12"]
