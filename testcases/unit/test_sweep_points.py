# SPDX-License-Identifier: GPL-2.0-or-later
"""Sweeps without a guest: which points there are, what is tried how often, and what a journal keeps."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from evidence_builder import Load

from lab.errors import UsageError
from lab.kernelimage.source_lines import parse_source_lines
from lab.model.evidence import Cover, Covered, EventKind, ObserverEvent
from lab.model.phase import Phase, Role
from lab.model.placed import Placed, Target
from lab.model.plan import Plan
from lab.model.scenario import Scenario, Siblings
from lab.model.sweep import Block, Point, Rank, SweepAsk, Visit, arrival_of, place_nmis, ranks_of
from lab.model.topology import Topology
from lab.model.verdict import Finding, Invariant, Outcome, Verdict
from lab.sweep import run as sweeps
from lab.sweep.journal import JOURNAL, JOURNAL_VERSION, Begun, Found, Journal, Tried, read_lines
from lab.sweep.known import Known, Lead
from lab.sweep.result import Swept, sum_up
from lab.sweep.run import run_sweep
from lab.trial.session import Kept

ASK = SweepAsk(mechanism="nmi-self", roles=(Role.SIBLING,), first=Phase.ARMED, last=Phase.WINDOW)
SHA = "0" * 64
SIBLING = 1


def begun(ask: SweepAsk = ASK, sha: str = SHA) -> Begun:
    return Begun(version=JOURNAL_VERSION, lab_version="0", ask=ask, kernel_sha256=sha)


def covered(pc: int, count: int, phase: Phase = Phase.ARMED, vcpu: int = SIBLING, *, masked: bool = False) -> Covered:
    return Covered(vcpu=vcpu, phase=phase, pc=pc, symbol=f"wait+{pc:#x}", count=count, masked=masked)


def found_at(count: int, lead: tuple[Visit, ...] = ()) -> Found:
    return Found(role=Role.SIBLING, phase=Phase.ARMED, pc=16, symbol="", count=count, lead=lead)


class FakeGuests:
    """Loads whose sibling begins certain blocks; what each comes to is said by a test.

    :param blocks: pc to how often, in every load
    :param comes: whether a trial's last hold is reached, by its hold's address and arrival
    :param after: what is begun as well once an NMI was sent at an address
    :param breaks: the addresses at which an NMI breaks ``quiet``
    :param before: how often each block is come to before the phase
    :param lost: how many blocks more each load has than its cover
    :param waits: those that are reached in their phase only by a thread that comes there before it, and waits
    """

    failed_boots = 0

    def __init__(
        self,
        blocks: dict[int, int],
        comes: Callable[[int, int], bool] = lambda *_: True,
        after: dict[int, dict[int, int]] | None = None,
        breaks: tuple[int, ...] = (),
        waits: tuple[int, ...] = (),
        lost: int = 0,
        before: int = 0,
    ) -> None:
        self._blocks = blocks
        self._comes = comes
        self._after = after or {}
        self._breaks = breaks
        self._waits = waits
        self._lost = lost
        self._before = before
        self.placed: list[tuple[Placed, ...]] = []
        self.tried: list[tuple[tuple[int, int], ...]] = []
        self.dies_at = -1
        self.seen = 0

    def find(self, _: object) -> "FakeGuests":
        return self

    @contextlib.contextmanager
    def in_turns(self, _: float) -> Iterator[None]:
        yield

    def run_trial(self, scenario: Scenario, plan: Plan, *, cover: bool) -> Kept:
        assert cover
        if len(self.tried) == self.dies_at:
            raise KeyboardInterrupt
        visits = tuple((int(hold.at, 16), hold.arrival) for hold in plan.holds if hold.at.startswith("0x"))
        self.tried.append(visits)
        self.placed.append(scenario.placed)
        early = [hold.early for hold in plan.holds if hold.at.startswith("0x")]
        seen = dict(self._blocks)
        events: list[ObserverEvent] = []
        for index, (pc, arrival) in enumerate(visits):
            if pc not in seen or not self._comes(pc, arrival) or (pc in self._waits and not early[index]):
                break
            seen |= self._after.get(pc, {})
            for kind, symbol in ((EventKind.HELD, ""), (EventKind.RESUMED, "asm_exc_nmi+0x0")):
                event = ObserverEvent(
                    seq=2 * index + (kind is EventKind.RESUMED) + 1,
                    mono_ns=0,
                    tsc=0,
                    kind=kind,
                    vcpu=SIBLING,
                    load=1,
                    pc=pc,
                    symbol=symbol,
                    detail=index,
                )
                events.append(event)
        built = Load(topology=Topology(1, 1, 2)).build()
        assert built.observer is not None
        blocks = tuple(covered(pc, count) for pc, count in seen.items())
        if self._before:
            blocks = (*blocks, *(covered(pc, self._before, Phase.GATHER) for pc in seen))
        observer = msgspec.structs.replace(
            built.observer,
            events=tuple(events),
            cover=Cover(blocks=blocks, lost=self._lost),
            arrivals=(self.seen,) * len(visits),
        )
        reason = "broken" if any(pc in self._breaks for pc, _ in visits) and len(events) == 2 * len(visits) else ""
        return Kept(msgspec.structs.replace(built, plan=plan, scenario=scenario, observer=observer, reason=reason), {})


@pytest.fixture(autouse=True)
def judge(monkeypatch: pytest.MonkeyPatch) -> None:
    """Judge fake loads by what the fake says of them: the judge itself has its own tests."""

    def weigh(evidence: Any) -> Verdict:
        if not evidence.reason:
            return Verdict(outcome=Outcome.PASS, reason="all held")
        quiet = Invariant(name="quiet", finding=Finding.BROKEN, required=True, reason="")
        return Verdict(outcome=Outcome.FAIL, reason="quiet broken", invariants=(quiet,))

    monkeypatch.setattr(sweeps, "judge", weigh)


def run(folder: Path, guests: Any, resume: bool = False) -> Swept:
    with Journal(folder, begun(), resume) as journal:
        return run_sweep(ASK, guests, journal, lambda *_: None)


def list_tried(folder: Path) -> list[Tried]:
    return [line for line in read_lines(folder)[0] if isinstance(line, Tried)]


@pytest.mark.parametrize(
    ("count", "arrivals"), [(0, ()), (1, (1,)), (2, (1, 2)), (3, (1, 2, 3)), (8, (1, 4, 8)), (5955, (1, 2978, 5955))]
)
def test_first_middle_and_last_arrival_are_told_apart_only_where_they_differ(
    count: int, arrivals: tuple[int, ...]
) -> None:
    assert tuple(arrival_of(rank, count) for rank in ranks_of(count)) == arrivals


def test_holds_of_one_trial_share_the_bound_of_one() -> None:
    visits = tuple(Visit(Block(Role.SIBLING, Phase.ARMED, pc), 1) for pc in (1, 2, 3))
    assert sum(each.bound_us for each in place_nmis(visits, 0)) <= place_nmis(visits[:1], 0)[0].bound_us


def test_only_blocks_of_the_asked_threads_and_phases_are_points() -> None:
    blocks = (covered(1, 1), covered(2, 1, vcpu=0), covered(3, 1, Phase.CLOSING), covered(4, 2, Phase.WINDOW))
    observer = Load().build().observer
    assert observer is not None
    new = Known().find_new(ASK, msgspec.structs.replace(observer, cover=Cover(blocks=blocks, lost=0)), Lead())
    assert [(each.pc, each.phase, each.count) for each in new] == [(1, Phase.ARMED, 1), (4, Phase.WINDOW, 2)]


def test_each_point_is_tried_once_and_clean_is_0(tmp_path: Path) -> None:
    guests = FakeGuests({16: 1, 32: 9})
    swept = run(tmp_path, guests)
    assert guests.tried == [(), (), (), ((16, 1),), ((32, 1),), ((32, 5),), ((32, 9),)]
    assert (swept.known, swept.tried, swept.entered, swept.exit_status) == (4, 4, 4, 0)


def test_an_arrival_that_does_not_come_is_halved_and_said_to_be(tmp_path: Path) -> None:
    guests = FakeGuests({16: 100}, lambda _, arrival: arrival <= 50)
    swept = run(tmp_path, guests)
    assert guests.tried[3:] == [((16, 1),), ((16, 50),), ((16, 100),), ((16, 50),)]
    assert (swept.tried, swept.earlier, swept.exit_status) == (3, 1, 0)


def test_an_arrival_is_no_later_than_the_load_that_missed_it_had(tmp_path: Path) -> None:
    guests = FakeGuests({16: 18_733}, lambda _, arrival: arrival <= 40)
    guests.seen = 40
    swept = run(tmp_path, guests)
    assert guests.tried[3:] == [((16, 1),), ((16, 9367),), ((16, 20),), ((16, 18_733),), ((16, 40),)]
    assert (swept.tried, swept.earlier, swept.exit_status) == (3, 2, 0)


def test_what_never_comes_again_is_counted_with_the_reason_and_incomplete_is_3(tmp_path: Path) -> None:
    guests = FakeGuests({16: 1, 32: 1}, lambda pc, _: pc != 16)
    swept = run(tmp_path, guests)
    # By itself, pinned, and early; the last two also with one thread or the other the last to call in; five times all.
    assert guests.tried.count(((16, 1),)) == 5 * 7
    assert swept.untried == {"the thread did not come there again in .. loads": 1}
    assert (swept.known, swept.tried, swept.exit_status) == (2, 1, 3)


def test_what_an_nmi_leads_to_is_reached_by_that_nmi(tmp_path: Path) -> None:
    guests = FakeGuests({16: 1}, after={16: {32: 1}})
    swept = run(tmp_path, guests)
    assert guests.tried[3:] == [((16, 1),), ((16, 1), (32, 1))]
    assert (swept.known, swept.tried, swept.exit_status) == (2, 2, 0)


def test_a_thread_waits_for_its_phase_where_it_came_there_before_it_and_its_core_is_kept_in_it(tmp_path: Path) -> None:
    guests = FakeGuests({16: 1}, after={16: {32: 1}}, waits=(32,))
    swept = run(tmp_path, guests)
    assert (swept.known, swept.tried, swept.exit_status) == (2, 2, 0)
    assert guests.tried[3:] == [((16, 1),), *[((16, 1), (32, 1))] * 3]
    block = Block(Role.SIBLING, Phase.ARMED, 32)
    lead = Visit(Block(Role.SIBLING, Phase.ARMED, 16), 1)
    visits = (msgspec.structs.replace(lead, pinned=True), Visit(block, 1, early=True, pinned=True))
    pins = (Placed(at="window-open", role=Role.PRIMARY, nmi=Target.NONE, until=index) for index in (0, 1))
    assert guests.placed[-1] == (*place_nmis(visits, 0), *pins)
    assert [each.placed for each in list_tried(tmp_path)] == [place_nmis((lead,), 0), guests.placed[-1]]


def test_arrivals_that_an_nmi_of_ours_adds_are_no_points_of_their_own() -> None:
    observer = Load().build().observer
    assert observer is not None
    lead = Lead((Visit(Block(Role.SIBLING, Phase.ARMED, 8), 1),))

    def find(known: Known, count: int, given: Lead) -> list[int]:
        cover = Cover(blocks=(covered(16, count),), lost=0)
        return [each.count for each in known.find_new(ASK, msgspec.structs.replace(observer, cover=cover), given)]

    known = Known()
    assert find(known, 1, lead) == [1]
    known.take(found_at(1, lead.visits))
    assert find(known, 2, lead) == [2]
    assert find(known, 2, Lead(lead.visits * 2)) == []
    assert find(known, 2, Lead()) == [2]


def test_one_that_spins_before_its_phase_is_stopped_ever_further_from_the_end_of_that(tmp_path: Path) -> None:
    guests = FakeGuests({16: 1}, lambda _, arrival: 1 < arrival < 100, before=1_000)
    swept = run(tmp_path, guests)
    assert (swept.known, swept.tried) == (1, 1)
    early = [arrival for ((_, arrival),) in guests.tried[3:] if arrival > 1]
    assert early == [500, 250, 125, 62]


def test_where_no_other_nmi_enters_is_a_point_only_if_the_load_comes_there_by_itself() -> None:
    observer = Load().build().observer
    assert observer is not None
    lead = Lead((Visit(Block(Role.SIBLING, Phase.ARMED, 8), 1),))

    def find(known: Known, blocks: tuple[Covered, ...], given: Lead) -> list[tuple[int, int, bool]]:
        shown = msgspec.structs.replace(observer, cover=Cover(blocks=blocks, lost=0))
        new = known.find_new(ASK, shown, given)
        for each in new:
            known.take(each)
        return [(each.pc, each.count, each.masked) for each in new]

    known = Known()
    handler = (covered(16, 1, masked=True), covered(32, 1, masked=True), covered(32, 2))
    assert find(known, handler, lead) == [(16, 1, True), (32, 3, False)]
    assert find(known, handler, lead) == []
    assert [point.block.pc for point in known.points] == [32, 32, 32]
    assert [block.pc for block in known.masked] == [16]
    # The same block in a handler that the load comes to without the sweep's NMIs.
    assert find(known, handler, Lead()) == [(16, 1, False)]
    assert (list(known.masked), len(known.points)) == ([], 4)


def test_one_that_comes_there_less_often_before_its_phase_is_stopped_at_an_arrival_that_it_has(tmp_path: Path) -> None:
    guests = FakeGuests({16: 1}, lambda _, arrival: arrival == 3, before=3, waits=(16,))
    swept = run(tmp_path, guests)
    assert (swept.known, swept.tried, swept.exit_status) == (1, 1, 0)
    assert guests.tried[-1] == ((16, 3),)


def test_an_early_arrival_counts_those_of_the_phases_before() -> None:
    observer = Load().build().observer
    assert observer is not None
    blocks = (covered(1, 3, Phase.GATHER), covered(1, 2), covered(1, 4, Phase.WINDOW), covered(1, 9, vcpu=0))
    new = Known().find_new(ASK, msgspec.structs.replace(observer, cover=Cover(blocks=blocks, lost=0)), Lead())
    assert [(each.phase, each.before) for each in new] == [(Phase.ARMED, 3), (Phase.WINDOW, 5)]


def test_points_that_nobody_knows_of_are_no_complete_sweep(tmp_path: Path) -> None:
    guests = FakeGuests({16: 1}, lost=3)
    swept = run(tmp_path, guests)
    assert (swept.known, swept.tried, swept.uncovered, swept.exit_status) == (1, 1, 3 * 4, 3)


def test_what_breaks_on_the_way_is_kept_whatever_comes_of_the_point(tmp_path: Path) -> None:
    """The lead's NMI breaks it, and the thread comes to the point only without."""

    class Leads(FakeGuests):
        def run_trial(self, scenario: Scenario, plan: Plan, *, cover: bool) -> Kept:
            alone = [hold.at for hold in plan.holds if hold.at.startswith("0x")] == ["0x20"]
            self._blocks = {16: 1, 32: 1} if alone else {16: 1}
            self._breaks = (32,) if not alone else ()
            kept = super().run_trial(scenario, plan, cover=cover)
            if len(self.tried[-1]) < 2:
                return kept
            observer = kept.evidence.observer
            assert observer is not None
            first = tuple(event for event in observer.events if event.detail == 0)
            observer = msgspec.structs.replace(observer, events=first)
            return Kept(msgspec.structs.replace(kept.evidence, observer=observer), {})

    swept = run(tmp_path, Leads({16: 1}, after={16: {32: 1}}))
    assert (swept.known, swept.tried, swept.broken) == (2, 2, ())
    assert [(each.pc, each.broken, each.evidence) for each in swept.broke] == [(32, ("quiet",), "broken/before-00002")]
    assert (tmp_path / "broken/before-00002/verdict.json").is_file()
    assert swept.exit_status == 1
    assert run(tmp_path, FakeGuests({}), resume=True).exit_status == 1


def test_what_one_load_shows_is_kept_also_if_its_point_was_not_done(tmp_path: Path) -> None:
    class Chance(FakeGuests):
        def run_trial(self, scenario: Scenario, plan: Plan, *, cover: bool) -> Kept:
            first = len(self.tried) == 3
            self._blocks, self._lost = ({16: 1, 48: 1}, 7) if first else ({16: 1}, 0)
            return super().run_trial(scenario, plan, cover=cover)

    guests = Chance({16: 1}, lambda _, arrival: arrival > 1)
    guests.dies_at = 4
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, guests)
    swept = run(tmp_path, FakeGuests({16: 1}), resume=True)
    assert (swept.known, swept.tried, swept.uncovered, swept.exit_status) == (2, 1, 7, 3)


def test_who_is_stopped_in_a_loop_before_the_phase_is_at_no_later_arrival_than_its_first(tmp_path: Path) -> None:
    swept = run(tmp_path, FakeGuests({16: 3}, waits=(16,), before=1_000))
    assert (swept.known, swept.tried, swept.earlier) == (3, 3, 2)
    assert [each.arrival for each in list_tried(tmp_path)] == [1, 1, 1]


def test_a_point_that_breaks_keeps_its_evidence_and_is_1(tmp_path: Path) -> None:
    swept = run(tmp_path, FakeGuests({16: 1, 32: 1}, breaks=(32,)))
    assert [(each.pc, each.broken, each.evidence) for each in swept.broken] == [(32, ("quiet",), "broken/00002")]
    assert (tmp_path / "broken/00002/verdict.json").is_file()
    assert not (tmp_path / "broken/00001").exists()
    assert swept.exit_status == 1


@pytest.mark.parametrize("torn", [b"", b'{"type":"tri'])
@pytest.mark.parametrize("dies_at", range(1, 7))
def test_a_sweep_that_was_killed_goes_on_with_what_is_left(tmp_path: Path, dies_at: int, torn: bytes) -> None:
    killed = FakeGuests({16: 1, 32: 9})
    killed.dies_at = dies_at
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, killed)
    with open(tmp_path / JOURNAL, "ab") as sink:
        sink.write(torn)
    swept = run(tmp_path, FakeGuests({16: 1, 32: 9}), resume=True)
    tried = [each.point for each in list_tried(tmp_path)]
    assert len(tried) == len(set(tried)) == 4
    assert (swept.known, swept.tried, swept.exit_status) == (4, 4, 0)


def test_a_journal_goes_on_only_with_the_same_sweep_of_the_same_kernel(tmp_path: Path) -> None:
    run(tmp_path, FakeGuests({16: 1}))
    other = msgspec.structs.replace(ASK, last=Phase.CLOSING)
    for changed in (begun(other), begun(sha="1" * 64)):
        with (
            pytest.raises(UsageError, match="another one, or its kernel or QEMU has changed"),
            Journal(tmp_path, changed, True),
        ):
            pass


def test_two_sweeps_do_not_write_one_folder(tmp_path: Path) -> None:
    with (
        Journal(tmp_path, begun(), resume=False),
        pytest.raises(UsageError, match="another sweep is writing"),
        Journal(tmp_path, begun(), resume=True),
    ):
        pass


@pytest.mark.parametrize("text", [b"no json\n", b"[1]\n", b'{"type":"found"}\n', b"\xff\n"])
def test_a_damaged_journal_is_refused_in_one_sentence(tmp_path: Path, text: bytes) -> None:
    (tmp_path / JOURNAL).write_bytes(text)
    with pytest.raises(UsageError, match="line 1 cannot be read"):
        read_lines(tmp_path)


def test_nothing_known_is_not_complete() -> None:
    assert sum_up(Known()).exit_status == 3


def test_a_role_of_which_no_block_is_known_leaves_a_sweep_incomplete() -> None:
    """The points of the other role are no evidence about it."""
    known = Known()
    found = found_at(1)
    known.take(found)
    for point in known.points:
        known.take(
            Tried(
                role=found.role,
                phase=found.phase,
                pc=found.pc,
                rank=point.rank,
                outcome=Outcome.PASS,
                reason="",
                asked=1,
                arrival=1,
                attempts=1,
            )
        )
    other = Role.PRIMARY if found.role is Role.SIBLING else Role.SIBLING
    assert sum_up(known, roles=(found.role,)).exit_status == 0
    swept = sum_up(known, roles=(found.role, other))
    assert (swept.exit_status, swept.unseen) == (3, (other,))


def test_a_block_that_is_come_to_more_often_makes_the_further_points_alone() -> None:
    known = Known()
    lead = (Visit(Block(Role.SIBLING, Phase.ARMED, 8), 1),)
    known.take(found_at(1))
    known.take(found_at(9, lead))
    block = Block(Role.SIBLING, Phase.ARMED, 16)
    assert known.points == tuple(Point(block, rank) for rank in Rank)
    assert [known.leads[point] for point in known.points] == [Lead(), Lead(lead), Lead(lead)]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"first": Phase.BEFORE}, "from is before: allowed is gather, armed, window, closing, release"),
        ({"last": Phase.AFTER}, "to is after: allowed is gather,"),
        ({"first": Phase.CLOSING}, "from is closing and to is window: the load goes the other way"),
        ({"roles": (Role.OTHER,)}, "role is other: allowed is primary, sibling, offline"),
        ({"roles": (Role.OFFLINE,)}, "role is offline: siblings are online"),
        ({"siblings": Siblings.OFFLINE}, "role is sibling: siblings are offline"),
        ({"core": 1}, "core is 1: topology 1x1x2 has 0 to 0"),
        ({"mechanism": "init-sipi"}, "an NMI is for a sibling: not with mechanism 'init-sipi'"),
    ],
)
def test_what_cannot_be_swept_is_refused(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UsageError) as refused:
        msgspec.structs.replace(ASK, **changes).check()
    assert sentence in str(refused.value)


def test_source_lines_are_known_or_not() -> None:
    said = ["/src/nmi.c:345 (discriminator 2)", "??:0", "??:?", "/src/core.c:?", "a:b.c:7"]
    assert parse_source_lines(range(5), said) == {0: "/src/nmi.c:345", 4: "a:b.c:7"}
