# SPDX-License-Identifier: GPL-2.0-or-later
"""Where a run's NMIs landed: added up, and tested for how evenly."""

import random

import msgspec
import pytest
from evidence_builder import Load
from report_samples import make_record

from lab.judge import judge
from lab.model.evidence import Evidence
from lab.model.verdict import Outcome, TrialRecord
from lab.report.landings import MIN_SHOTS, list_columns, measure_uniformity, tally_coverage
from lab.trial.record import list_fractions


def record(mechanism: str = "nmi-self", **fields: object) -> TrialRecord:
    plain = make_record(1, mechanism, Outcome.PASS, reason="", evidence="")
    return msgspec.structs.replace(plain, coverage={}, **fields)


def test_coverage_is_added_up_by_mechanism_and_role_in_order_of_phases() -> None:
    records = (
        msgspec.structs.replace(record(), coverage={"window sibling": 2, "armed sibling": 1, "unsure primary": 1}),
        msgspec.structs.replace(record(), coverage={"window sibling": 3}),
        msgspec.structs.replace(record("uniform"), coverage={"after primary": 1}),
    )
    rows = tally_coverage(records)
    assert [(row.mechanism, row.role, row.nmis) for row in rows] == [
        ("nmi-self", "sibling", {"armed": 1, "window": 5}),
        ("nmi-self", "primary", {"unsure": 1}),
        ("uniform", "primary", {"after": 1}),
    ]
    assert list_columns(rows) == ("armed", "window", "after", "unsure")


def test_too_few_shots_are_not_tested() -> None:
    assert measure_uniformity([record(fractions={"window": (0.5,) * (MIN_SHOTS - 1)})]) == ()


def test_even_shots_and_uneven_ones_are_told_apart() -> None:
    source = random.Random(1)
    even = tuple(source.random() for _ in range(500))
    found = {
        name: measure_uniformity([record(fractions={"window": shots}, shots={"window": len(shots)})])[0]
        for name, shots in (("even", even), ("early", tuple(shot**2 for shot in even)))
    }
    assert found["even"].p > 0.05
    assert "nothing speaks against evenly" in found["even"].sentence
    assert found["early"].p < 1e-6
    assert "unevenly over its length" in found["early"].sentence
    assert found["even"].shots == 500


def fractions_of(evidence: Evidence) -> dict[str, tuple[float, ...]]:
    return list_fractions(evidence, judge(evidence))


def test_a_broadcast_is_one_shot_and_one_that_a_hold_waited_for_is_none() -> None:
    evidence = Load().build()
    shots = fractions_of(evidence)["window"]
    # Windows of 10 ms from 2 ms on; the shots are at 4.5 and 7.5 ms.
    assert shots == pytest.approx((0.25, 0.55), abs=0.001)
    held = tuple(msgspec.structs.replace(each, hold=0) for each in evidence.plan.injections)
    assert (
        fractions_of(msgspec.structs.replace(evidence, plan=msgspec.structs.replace(evidence.plan, injections=held)))
        == {}
    )
