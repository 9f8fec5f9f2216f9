# SPDX-License-Identifier: GPL-2.0-or-later
"""Every kind of figure that a page has, against numbers worked out by hand or by its definition."""

import math
import random
from pathlib import Path

import msgspec
import pytest
from evidence_builder import Load
from night_samples import make_done, make_spec, open_store
from old_run import OldRun
from report_samples import make_info, make_record

from lab.campaign.old_runs import MechanismAsked
from lab.campaign.reader import summarise
from lab.campaign.store import Kept
from lab.expected.tally import MechanismResult, OutcomeCounts, Struck, Tally
from lab.mechanisms.mechanism import Expectation
from lab.model.phase import Phase, Role
from lab.model.plan import Injection
from lab.model.scenario import Aim
from lab.model.verdict import MAX_FRACTIONS, Durations, Finding, Landing, NmiCount, Outcome, Span, TrialRecord, Verdict
from lab.report.answer import answer, bound_percent, compute_interval_percent, format_bound
from lab.report.campaign_page import write_campaign_report
from lab.report.figures import measure_spread
from lab.report.landings import Uniformity, correct, measure_uniformity
from lab.report.latency import measure_added
from lab.report.page import write_report
from lab.report.text import format_us
from lab.trial.record import make_record as keep_record
from lab.trial.record import sample

RISK = 0.05


def below(n: int, most: int, p: float) -> float:
    """Return how likely at most so many of n coins fall."""
    return sum(math.comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(most + 1))


@pytest.mark.parametrize(("trials", "percent"), [(1, 95.0), (2, 77.6393), (20, 13.9108), (60, 4.8704), (300, 0.99363)])
def test_a_bound_is_the_share_at_which_seeing_nothing_has_a_chance_of_one_in_twenty(
    trials: int, percent: float
) -> None:
    bound = bound_percent(Tally(held=trials))
    assert bound == pytest.approx(percent, rel=1e-4)
    assert (1 - percent / 100) ** trials == pytest.approx(RISK, rel=1e-3)


def test_a_bound_of_many_trials_is_three_over_their_number() -> None:
    assert bound_percent(Tally(held=30_000)) == pytest.approx(100 * 3 / 30_000, rel=0.002)


def test_there_is_no_bound_where_something_broke_or_nothing_could_tell() -> None:
    assert bound_percent(Tally(held=3, broken=1)) is None
    assert bound_percent(Tally(unseen=3)) is None


@pytest.mark.parametrize(
    ("percent", "text"),
    [(95.0, "95"), (77.6393, "78"), (45.0720, "46"), (13.9108, "14"), (4.94, "5"), (4.8704, "4.9"), (0.0998561, "0.1")],
)
def test_a_bound_is_rounded_up(percent: float, text: str) -> None:
    """45.07 % is no bound of 45 %."""
    assert format_bound(percent) == text
    assert float(text) >= percent


@pytest.mark.parametrize(
    ("broken", "held", "low", "high"),
    # From the tables of Clopper and Pearson.
    [(0, 10, 0.0, 30.85), (5, 5, 18.71, 81.29), (12, 8, 36.05, 80.88), (10, 0, 69.15, 100.0), (1, 19, 0.13, 24.87)],
)
def test_an_interval_leaves_one_in_forty_on_either_side(broken: int, held: int, low: float, high: float) -> None:
    found = compute_interval_percent(Tally(broken=broken, held=held, unseen=7))
    assert found == pytest.approx((low, high), abs=0.005)
    assert found is not None
    n = broken + held
    if broken:
        assert 1 - below(n, broken - 1, found[0] / 100) == pytest.approx(RISK / 2)
    if held:
        assert below(n, broken, found[1] / 100) == pytest.approx(RISK / 2)


def test_there_is_no_interval_where_nothing_could_tell() -> None:
    assert compute_interval_percent(Tally(unseen=3)) is None


def test_percentiles_lie_between_their_neighbours() -> None:
    # The 95th of 20 lies 0.95 * 19 = 18.05 steps from the first.
    spread = measure_spread([float(value) for value in range(20, 0, -1)])
    assert (spread.n, spread.p50_us, spread.max_us) == (20, 10.5, 20.0)
    assert spread.p95_us == pytest.approx(19.05)
    one = measure_spread([7.0])
    assert (one.p50_us, one.p95_us, one.max_us) == (7.0, 7.0, 7.0)


def test_the_interval_of_a_median_is_that_of_coins() -> None:
    """Of nine, at most one lies below the median with a chance of 10 / 512, at most two with 46 / 512."""
    assert below(9, 1, 0.5) < RISK / 2 < below(9, 2, 0.5)
    records = []
    for difference in range(1, 10):
        for name, load_us in (("stop-machine", 100.0), ("x", 100.0 + difference)):
            records.append(
                msgspec.structs.replace(make_record(1, name, Outcome.PASS), durations=Durations(host_load_us=load_us))
            )
    added = measure_added(records, "x")
    assert added is not None
    assert (added.pairs, added.low_us, added.median_us, added.high_us) == (9, 2.0, 5.0, 8.0)


def shots(*fractions: float, mechanism: str = "x", phase: str = "window") -> TrialRecord:
    record = make_record(1, mechanism, Outcome.PASS)
    return msgspec.structs.replace(record, fractions={phase: fractions}, shots={phase: len(fractions)})


@pytest.mark.parametrize(
    ("fractions", "distance"),
    [
        # The step function of evenly placed ones is half a step off everywhere.
        (tuple((index + 0.5) / 50 for index in range(50)), 0.01),
        # It goes from 0 to 0.5 at 0.1, where the even one is 0.1.
        ((0.1,) * 25 + (0.9,) * 25, 0.4),
        ((0.25,) * 60, 0.75),
    ],
)
def test_the_distance_is_that_of_the_step_function_from_the_even_one(
    fractions: tuple[float, ...], distance: float
) -> None:
    (found,) = measure_uniformity([shots(*fractions)])
    assert found.statistic == pytest.approx(distance)
    assert (found.shots, found.tested) == (len(fractions), len(fractions))


def test_the_chance_of_a_distance_is_kolmogorovs() -> None:
    """2 * sum of (-1)^(k-1) exp(-2 k^2 n D^2), for large n."""
    n = 2_000
    (found,) = measure_uniformity([shots(*(0.97 * (index + 0.5) / n for index in range(n)))])
    assert found.statistic == pytest.approx(1 - 0.97 * (n - 0.5) / n)
    expected = 2 * sum((-1) ** (k - 1) * math.exp(-2 * k**2 * n * found.statistic**2) for k in range(1, 5))
    assert found.p == pytest.approx(expected, rel=0.05)


def uniformity(*chances: float) -> tuple[Uniformity, ...]:
    return tuple(
        Uniformity(mechanism="x", phase="window", shots=50, sent=50, statistic=0.1, p=p, tested=50) for p in chances
    )


def test_tests_of_one_page_are_corrected_for_their_number() -> None:
    """Holm: 0.01 * 4, then 0.02 * 3 and 0.03 * 2, which must not be below the one before, then 0.8 * 1."""
    found = correct(uniformity(0.03, 0.01, 0.8, 0.02))
    assert [each.p_holm for each in found] == pytest.approx([0.06, 0.04, 0.8, 0.06])
    assert {each.tests for each in found} == {4}
    assert [each.is_uneven for each in correct(uniformity(0.005, 0.5))] == [False, False]
    assert "p = 0.01 by Holm for 2 tests, 0.005 alone" in correct(uniformity(0.005, 0.5))[0].sentence
    assert correct(uniformity(0.005))[0].is_uneven


def test_a_page_of_even_shots_alone_accuses_them_seldom() -> None:
    source = random.Random(3)
    pages = [
        measure_uniformity(
            [shots(*(source.random() for _ in range(60)), mechanism=f"m{number}") for number in range(20)]
        )
        for _ in range(60)
    ]
    alone = sum(any(each.p < 0.01 for each in page) for page in pages)
    together = sum(any(each.is_uneven for each in page) for page in pages)
    assert alone > 60 * 0.08
    assert together < 60 * 0.08


def in_order_of_time(count: int, seed: int) -> tuple[float, ...]:
    source = random.Random(seed)
    return tuple(sorted(source.random() for _ in range(count)))


def test_a_sample_of_many_shots_is_even_where_they_are() -> None:
    """The first 256 of a plan's shots, which are in order of time, are those early in their phase."""
    records = []
    for seed in range(4):
        fractions = in_order_of_time(1_000, seed)
        landings = tuple(
            Landing(
                nmi=index,
                vcpu=1,
                role=Role.SIBLING,
                pending=Phase.WINDOW,
                fraction=fraction,
                entered=None,
                entry_seq=0,
                delay_us=None,
            )
            for index, fraction in enumerate(fractions)
        )
        evidence = Load().build()
        plan = msgspec.structs.replace(
            evidence.plan, seed=seed, injections=tuple(Injection(0, Aim.SIBLING, 1) for _ in fractions)
        )
        evidence = msgspec.structs.replace(evidence, plan=plan)
        record = keep_record(seed, evidence, Verdict(outcome=Outcome.PASS, landings=landings), "")
        assert len(record.fractions["window"]) == MAX_FRACTIONS
        assert record.shots == {"window": 1_000}
        assert record == keep_record(seed, evidence, Verdict(outcome=Outcome.PASS, landings=landings), "")
        records.append(record)
    (found,) = measure_uniformity(records)
    assert (found.shots, found.tested) == (4_000, 4 * MAX_FRACTIONS)
    assert found.p > 0.01, found
    assert "of them tested" in found.sentence
    # Read and written as a store does.
    assert msgspec.json.decode(msgspec.json.encode(records[0]), type=TrialRecord) == records[0]


def test_each_shot_is_as_likely_in_a_sample_as_any_other() -> None:
    fractions = tuple(index / 1_024 for index in range(1_024))
    taken = [len([one for one in sample(fractions, seed, "window") if one < 0.25]) for seed in range(200)]
    # Hypergeometric: 64 of 256, spread 6 a trial.
    assert sum(taken) / len(taken) == pytest.approx(64, abs=4 * 6 / math.sqrt(len(taken)))
    assert sample(fractions, 1, "window") != sample(fractions, 1, "closing")


def test_an_older_record_with_the_first_shots_alone_is_left_out() -> None:
    older = msgspec.structs.replace(shots(*in_order_of_time(1_000, 1)[:MAX_FRACTIONS]), shots={})
    assert measure_uniformity([older]) == ()
    few = msgspec.structs.replace(shots(*in_order_of_time(60, 1)), shots={})
    assert measure_uniformity([few])[0].shots == 60


def result(struck: int, *, trials: int = 20, sent: int = 240, masked: int = 0, broken: int = 0) -> MechanismResult:
    return MechanismResult(
        name="x",
        expectation=Expectation.CLEAN,
        met=True,
        reason="",
        outcomes=OutcomeCounts(passed=trials),
        quiet=Tally(held=trials - broken, broken=broken),
        harmless=Tally(held=trials),
        struck=Struck(quiet=Tally(held=struck), harmless=Tally(held=struck), sent=sent, masked=masked),
    )


def test_a_headline_counts_trials_in_which_an_nmi_reached_a_sibling_alone() -> None:
    headline, sentence = answer(result(10))
    # 1 - 0.05 ** (1 / 10) is 25.89 %.
    assert headline == "No instruction at all, breaks in fewer than 26 % of trials (95 %)"
    assert "in the 10 of 20 trials that could tell and in which an NMI was pending on a sibling" in sentence
    assert answer(result(10, broken=1))[0] == "No nasty ones, breaks in fewer than 26 % of trials (95 %)"
    assert answer(result(0, broken=1))[0] == "Not quiet"


@pytest.mark.parametrize(
    ("sent", "masked", "headline", "said"),
    [
        (0, 0, "No NMI was sent", "20 trials without an NMI show nothing of what one would do"),
        (240, 0, "No NMI reached a sibling", "of 240 NMIs in 20 trials none was proven pending on a live sibling"),
        (240, 18, "No NMI reached a sibling", "; in 18 of them NMIs met the masked LINT1 of a sibling"),
    ],
)
def test_where_no_nmi_reached_a_sibling_the_headline_says_so(sent: int, masked: int, headline: str, said: str) -> None:
    found = answer(result(0, sent=sent, masked=masked))
    assert found[0] == headline
    assert said in found[1]


def without_nmis(number: int) -> TrialRecord:
    record = make_record(number, "stop-machine", Outcome.PASS)
    return msgspec.structs.replace(record, nmis=NmiCount(on_siblings=0, masked=0))


def write_run(folder: Path, *records: TrialRecord) -> str:
    asked = tuple(
        MechanismAsked(name=name, summary=name, expectation=Expectation.CLEAN)
        for name in dict.fromkeys(record.mechanism for record in records)
    )
    with OldRun(folder, make_info(mechanisms=asked)) as store:
        for record in records:
            store.append(record)
    return write_report(folder).read_text()


def test_a_page_of_trials_without_nmis_claims_no_protection(tmp_path: Path) -> None:
    text = write_run(tmp_path / "run", *(without_nmis(number) for number in range(60)))
    assert "No instruction at all," not in text
    assert "No NMI was sent" in text
    assert "PASS (no NMIs asked)" in text
    assert '<span class="of">(no NMIs asked)</span>' in text
    assert "4.9 %" not in text


def test_a_campaigns_page_has_the_bound_in_its_headline(tmp_path: Path) -> None:
    with open_store(tmp_path, make_spec(trials=20)) as store:
        store.add(make_done(1), Kept(), 1.0)
        bare = make_done(2, part="control")
        record = msgspec.structs.replace(bare.record, mechanism="stop-machine", nmis=NmiCount(on_siblings=0, masked=0))
        store.add(msgspec.structs.replace(bare, record=record), Kept(), 2.0)
    sound, control = summarise(tmp_path)[0].parts
    assert (sound.passed_without_nmis, control.passed_without_nmis) == (0, 1)
    text = write_campaign_report(tmp_path).read_text()
    assert "No instruction at all, breaks in fewer than 95 % of trials (95 %)" in text
    assert text.count("No instruction at all") == 1
    assert "No NMI was sent" in text
    assert "(no NMIs asked)" in text


def test_a_store_from_before_nmis_on_siblings_were_counted_tells_by_where_they_landed(tmp_path: Path) -> None:
    def older(number: int, **coverage: int) -> object:
        done = make_done(number)
        nmis = msgspec.structs.replace(done.record.nmis, on_siblings=None, masked=None)
        places = {place.replace("_", " "): count for place, count in coverage.items()}
        return msgspec.structs.replace(done, record=msgspec.structs.replace(done.record, nmis=nmis, coverage=places))

    with open_store(tmp_path, make_spec(trials=20)) as store:
        store.add(older(1, window_sibling=2), Kept(), 1.0)  # type: ignore[arg-type]
        store.add(older(2, window_primary=2), Kept(), 2.0)  # type: ignore[arg-type]
        store.add(older(3, window_offline=1), Kept(), 3.0)  # type: ignore[arg-type]
    text = write_campaign_report(tmp_path).read_text()
    # Two of the three: 1 - 0.05 ** (1 / 2) is 77.6 %.
    assert "No instruction at all, breaks in fewer than 78 % of trials (95 %)" in text


def test_the_figures_of_a_runs_page_are_those_of_its_records(tmp_path: Path) -> None:
    records = []
    for number in range(1, 6):
        durations = Durations(
            host_load_us=1_000.0 * number,
            host_rendezvous_us=10.0 * number,
            host_windows_us=(Span(who=0, us=500.0),),
            host_holds_us=(Span(who=1, us=500.0 + number),),
            host_nmi_delay_us=(Span(who=1, us=2.0 * number), Span(who=1, us=2.0 * number)),
        )
        findings = {"quiet": Finding.BROKEN if number == 1 else Finding.HELD, "harmless": Finding.HELD}
        record = make_record(number, "nmi-self", Outcome.FAIL if number == 1 else Outcome.PASS)
        records.append(msgspec.structs.replace(record, topology="1x1x2", durations=durations, invariants=findings))
    text = write_run(tmp_path / "run", *records)
    # One of five: 20 %, and by Clopper and Pearson 0.505 to 71.6 %.
    assert "1 of the 5 trials that could tell (20 %, 95 % interval 0.505 to 71.6 %)" in text
    for p50, p95, most, n in (
        # 1, 2, 3, 4, 5 ms: the 95th lies 3.8 steps from the first.
        (3_000.0, 4_800.0, 5_000.0, 5),
        (30.0, 48.0, 50.0, 5),
        # What a hold is longer than its window of 500 us.
        (3.0, 4.8, 5.0, 5),
        # Ten of them, in pairs: 8.55 steps from the first, between 10 and 10.
        (6.0, 10.0, 10.0, 10),
    ):
        cells = "".join(f'<td class="n">{format_us(us)}</td>' for us in (p95, most))
        assert f'<td class="n d">{format_us(p50)}</td>{cells}<td class="n of">{n}</td>' in text
