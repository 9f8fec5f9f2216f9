# SPDX-License-Identifier: GPL-2.0-or-later
"""Landmarks of another kernel: what they call WRMSR 0x79 is another instruction here."""

from pathlib import Path

import pytest
from evidence_builder import Load, change
from observer_bench import BenchGuest, compile_plugin, start_bench

from lab.host.deadline import Deadline
from lab.judge import judge
from lab.model.evidence import EventKind, Sees
from lab.model.verdict import Outcome


def test_an_innocent_instruction_is_no_update_and_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = BenchGuest.write_landmarks

    def write_stale(guest: BenchGuest, path: Path) -> Path:
        text = right(guest, path).read_text()
        for label in ("window_site", "retry_site", "early_site"):
            # Right behind the WRMSR.
            text = text.replace(
                f"point wrmsr79 ffff {guest.labels[label]:x}\n", f"point wrmsr79 ffff {guest.labels[label] + 2:x}\n"
            )
        path.write_text(text)
        return path

    monkeypatch.setattr(BenchGuest, "write_landmarks", write_stale)
    (tmp_path / "plugin").mkdir()
    with start_bench(tmp_path, compile_plugin(tmp_path / "plugin")) as bench:
        deadline = Deadline.after(20)
        bench.link.arm(1, 3, (1_000,))
        bench.link.wait_for(EventKind.LOAD_BEGIN, deadline)
        bench.link.wait_for(EventKind.LOAD_END, deadline)
        bench.link.disarm()
        seen = bench.link.collect(bench.guest.symbolise)
    assert seen.points_wrong >= 1
    updates = {event.symbol for event in seen.events if event.kind in (EventKind.WINDOW_OPEN, EventKind.EARLY)}
    # Where the observer reads registers it needs no landmark for a real one.
    assert updates <= ({"window_site", "early_site"} if Sees.REGISTERS in seen.sees else set())


def test_nothing_follows_from_an_observer_that_knows_another_kernel() -> None:
    load = Load()
    assert judge(change(load.build(), "observer.points_wrong", 1)).outcome is Outcome.INVALID
    load.add(5_000_000, EventKind.OUTSIDE, 1)
    assert judge(load.build()).outcome is Outcome.FAIL


def test_no_update_is_outside_of_a_load_whose_begin_was_never_seen() -> None:
    early = Load().add(-1_000, EventKind.EARLY, 0, in_load=False)
    assert judge(early.build()).outcome is Outcome.FAIL
    assert judge(early.drop(EventKind.LOAD_BEGIN).build()).outcome is Outcome.INVALID
