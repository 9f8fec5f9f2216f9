# SPDX-License-Identifier: GPL-2.0-or-later
"""The schedule of a plan: what is due when, as the load tells where it is."""

from scipy.stats import kstest

from lab.model.phase import Phase
from lab.model.plan import PPM, Injection, Plan
from lab.model.scenario import Aim
from lab.trial.schedule import Overhead, Schedule

MS = 1_000_000
#: Half of a plan's times are before the first window opens, half in the windows.
OVERHEAD = Overhead(before_us=10_000)
FOR_EVER = 2**62


def make(*injections: Injection, overhead: Overhead = OVERHEAD, cores: int = 2) -> Schedule:
    return Schedule(Plan(seed=1, stretch_us=(10_000,) * cores, injections=injections), overhead)


def at(ppm: int, *, phase: Phase | None = None, core: int = 0, hold: int = -1) -> Injection:
    return Injection(at_ppm=ppm, aim=Aim.BROADCAST, vcpu=-1, phase=phase, core=core, hold=hold)


def test_what_is_drawn_over_the_load_is_due_from_its_begin_and_from_the_first_opening() -> None:
    schedule = make(at(250_000), at(750_000))
    assert (schedule.next_ns, schedule.take_due(FOR_EVER)) == (None, ())
    schedule.begin(100 * MS)
    assert [schedule.next_ns] == [105 * MS]
    assert (schedule.take_due(105 * MS - 1), schedule.take_due(105 * MS)) == ((), (0,))
    schedule.open(1, 200 * MS)
    assert [schedule.next_ns] == [205 * MS]
    # It is counted from the first opening alone.
    schedule.open(0, 204 * MS)
    assert (schedule.take_due(205 * MS), schedule.take_due(FOR_EVER)) == ((1,), ())


def test_what_is_left_for_the_rendezvous_is_spread_over_the_window() -> None:
    schedule = make(at(0), at(450_000), at(300_000), at(100_000))
    schedule.begin(100 * MS)
    assert schedule.take_due(100 * MS) == (0,)
    # Six of ten milliseconds are left of it, and go into the ten of the window; what was due before is late.
    schedule.open(0, 104 * MS)
    assert schedule.take_due(104 * MS) == (3,)
    assert schedule.next_ns == 104 * MS + 2 * MS * 10 // 6
    assert schedule.take_due(104 * MS + 2 * MS * 10 // 6) == (2,)
    assert schedule.next_ns == 104 * MS + 5 * MS * 10 // 6


def test_shots_that_a_quick_rendezvous_leaves_are_uniform_in_the_window() -> None:
    shots = []
    for opened in range(1, 10):
        schedule = make(*(at(ppm) for ppm in range(0, PPM, 1_000)))
        schedule.begin(0)
        schedule.take_due(opened * MS)
        schedule.open(0, opened * MS)
        while (due := schedule.next_ns) is not None:
            shots += [(due - opened * MS) / (10 * MS) for _ in schedule.take_due(due)]
    assert all(0 <= shot <= 1 for shot in shots)
    assert kstest(shots, "uniform").statistic < 0.01


def test_a_window_that_opens_before_the_begin_was_heard_leaves_nothing_out() -> None:
    schedule = make(at(100_000), at(600_000))
    schedule.open(0, 102 * MS)
    schedule.begin(100 * MS)
    assert sorted(schedule.take_due(FOR_EVER)) == [0, 1]


def test_phases_that_need_no_hold_have_their_own_edges() -> None:
    schedule = make(
        at(500_000, phase=Phase.WINDOW, core=1),
        at(PPM - 1, phase=Phase.WINDOW),
        at(900_000, phase=Phase.AFTER),
        at(900_000, phase=Phase.BEFORE),
    )
    assert schedule.take_before() == (3,)
    schedule.begin(100 * MS)
    assert schedule.take_due(FOR_EVER) == ()
    assert [schedule.open(core, (110 + 2 * core) * MS) for core in (0, 1, 0)] == [1, 1, 0]
    assert schedule.next_ns == 117 * MS
    assert schedule.take_due(120 * MS) == (0, 1)
    schedule.end(130 * MS)
    assert schedule.take_due(130 * MS) == (2,)


def test_an_edge_that_is_told_again_makes_nothing_due_again() -> None:
    kinds = (at(1, phase=Phase.WINDOW), at(1, phase=Phase.AFTER), at(1, phase=Phase.BEFORE), at(1), at(900_000))
    schedule = make(*kinds)
    taken = list(schedule.take_before())
    for _ in range(3):
        schedule.begin(100 * MS)
        schedule.open(0, 110 * MS)
        schedule.end(130 * MS)
        taken += [*schedule.take_before(), *schedule.take_due(FOR_EVER)]
    assert sorted(taken) == [0, 1, 2, 3, 4]


def test_what_a_hold_waits_for_is_never_due() -> None:
    schedule = make(at(0, hold=0), at(0, phase=Phase.ARMED, hold=1), at(0, phase=Phase.WINDOW, hold=0))
    schedule.begin(100 * MS)
    schedule.open(0, 110 * MS)
    schedule.end(130 * MS)
    assert (schedule.take_before(), schedule.take_due(FOR_EVER)) == ((), ())
