# SPDX-License-Identifier: GPL-2.0-or-later
"""Real trials judged again: a change of the judge that moves any of them shows here."""

import itertools

import pytest
from kept_evidence import FOLDER, KEPT, read_kept

from lab.judge import judge
from lab.judge.judging import INVARIANTS
from lab.mechanisms.table import MECHANISMS
from lab.model.verdict import Outcome, Verdict

#: Large enough for a load on two cores that went wrong; the repository keeps them for ever.
MAX_FOLDER_BYTES = 40 * 1024


@pytest.mark.parametrize("name", KEPT)
def test_the_judge_says_what_it_always_said(name: str) -> None:
    verdict = judge(read_kept(name))
    found = {one.name: one.finding for one in verdict.invariants}

    assert found == {each: KEPT[name].find(each) for each in INVARIANTS}, verdict.reason
    assert verdict.outcome is KEPT[name].outcome, verdict.reason


def test_each_folder_has_its_row_and_is_small() -> None:
    folders = {path.name: sum(file.stat().st_size for file in path.iterdir()) for path in FOLDER.iterdir()}

    assert set(folders) == set(KEPT)
    assert {name: size for name, size in folders.items() if size > MAX_FOLDER_BYTES} == {}


def test_rows_name_invariants_of_the_judges() -> None:
    named = {name for row in KEPT.values() for name in (*row.broken, *row.unseen)}

    assert named <= set(INVARIANTS)


@pytest.mark.parametrize("mechanism", [each.name for each in MECHANISMS])
def test_each_mechanism_is_kept(mechanism: str) -> None:
    assert read_kept(mechanism).scenario.mechanism == mechanism


def test_every_invariant_was_seen_broken() -> None:
    broken = {name for row in KEPT.values() for name in row.broken}

    assert broken == set(INVARIANTS)


def test_controls_fail_and_no_other_is_accused_without_a_cause() -> None:
    failed = {name for name, row in KEPT.items() if row.outcome is Outcome.FAIL}

    assert {"stop-machine", "nmi-spin-as-posted"} <= failed
    assert not failed & {each.name for each in MECHANISMS} - {"stop-machine", "nmi-spin-as-posted"}


@pytest.mark.parametrize("name", KEPT)
def test_no_nmi_is_put_down_to_an_entry_before_that_of_one_that_was_acknowledged_before_it_was_sent(name: str) -> None:
    evidence = read_kept(name)
    sent = {each.index: each for each in evidence.injections.sent} if evidence.injections is not None else {}
    landings = [each for each in judge(evidence).landings if each.entry_seq or each.shared_seq]
    for one, other in itertools.permutations(landings, 2):
        before, after = sent[one.nmi], sent[other.nmi]
        if one.vcpu == other.vcpu and 0 < before.reply_ns < after.send_ns:
            assert (one.entry_seq or one.shared_seq) <= (other.entry_seq or other.shared_seq), (one, other)


@pytest.mark.parametrize("name", KEPT)
def test_durations_and_landings_tell_of_the_same_entries(name: str) -> None:
    verdict = judge(read_kept(name))

    assert tell_delays(verdict) == sorted((one.who, one.us) for one in verdict.durations.host_nmi_delay_us)


def tell_delays(verdict: Verdict) -> list[tuple[int, float]]:
    return sorted((each.vcpu, each.delay_us) for each in verdict.landings if each.delay_us is not None)
