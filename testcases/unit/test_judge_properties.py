# SPDX-License-Identifier: GPL-2.0-or-later
"""What must be so of any evidence: the judge never raises, and a damaged witness never turns a FAIL into a PASS.

Evidence is made up, or that of real trials (data/evidence).
"""

from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from evidence_builder import END_AT_NS, MS, RELEASE_AT_NS, WINDOW_AT_NS, Load, change
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kept_evidence import KEPT, read_kept
from test_judge_outcomes import BREAKING

from lab.judge import judge
from lab.model.evidence import EventKind, Evidence, ObserverEvent, ObserverEvidence, Sent, SiblingView, WindowSeen
from lab.model.hold import Hold
from lab.model.phase import Phase, Role
from lab.model.placed import Placed
from lab.model.plan import Injection
from lab.model.scenario import Parking, Scenario, Siblings
from lab.model.topology import Topology
from lab.model.verdict import Finding, Outcome, Verdict

#: Few, so that they meet: vCPUs, cores, sequence numbers, and the edges of what a folder can hold.
NUMBERS = st.one_of(st.integers(-2, 9), st.sampled_from([100, 2**31, 2**63 - 1, -(2**63)]), st.integers())
WORDS = st.one_of(
    st.sampled_from(["", "nmi-self", "stop-machine", "exc_nmi+0x5", "WARNING: x", "microcode: Reload failed"]),
    st.text(max_size=5),
)


def anything(kind: Any) -> st.SearchStrategy[Any]:
    """Return a strategy of well-typed values, tuples of any length included."""
    fields = msgspec.inspect.type_info(kind)
    return _of(fields)


def _of(info: msgspec.inspect.Type) -> st.SearchStrategy[Any]:
    match info:
        case msgspec.inspect.BoolType():
            return st.booleans()
        case msgspec.inspect.IntType():
            return NUMBERS
        case msgspec.inspect.StrType():
            return WORDS
        case msgspec.inspect.EnumType(cls=cls):
            return st.sampled_from(list(cls))
        case msgspec.inspect.UnionType(types=types):
            return st.one_of(*(_of(each) for each in types))
        case msgspec.inspect.NoneType():
            return st.none()
        case msgspec.inspect.VarTupleType(item_type=item):
            return st.lists(_of(item), max_size=4).map(tuple)
        case msgspec.inspect.TupleType(item_types=items):
            return st.tuples(*(_of(each) for each in items))
        case msgspec.inspect.StructType(cls=cls, fields=fields):
            return st.builds(cls, **{field.name: _of(field.type) for field in fields})
    raise TypeError(info)


def places(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the path and value of every field of evidence, elements of tuples included."""
    if isinstance(value, msgspec.Struct):
        children = [(name, getattr(value, name)) for name in value.__struct_fields__]
    elif isinstance(value, tuple):
        children = [(str(index), each) for index, each in enumerate(value)]
    else:
        children = []
    for name, child in children:
        here = f"{path}.{name}" if path else name
        yield here, child
        yield from places(child, here)


def check_sound(verdict: Verdict) -> None:
    """A verdict can be written and read back, and holds to its own precedence."""
    assert msgspec.json.decode(msgspec.json.encode(verdict), type=Verdict) == verdict
    assert verdict.reason
    assert verdict.windows_judged >= 0


CLEAN = Load().build()
WATCHED = Load().watch().build()
OFFLINE = tuple(
    Load(mechanism=mechanism, siblings=Siblings.RETURNING, parking=parking).watch().build()
    for mechanism in ("upstream", "nmi-self")
    for parking in Parking
)
#: Trials of a plan with a phase, and with a hold that was kept and its NMI.
PHASED = change(
    CLEAN, "plan.injections", lambda old: tuple(msgspec.structs.replace(one, phase=Phase.WINDOW) for one in old)
)
HELD = change(
    change(
        Load(sends=[(1, 3 * MS, 4 * MS)]).add(3 * MS - 1, EventKind.HELD, 1).add(5 * MS, EventKind.LET_GO, 1).build(),
        "plan",
        lambda old: msgspec.structs.replace(
            old,
            injections=tuple(msgspec.structs.replace(one, hold=0, phase=Phase.WINDOW) for one in old.injections),
            holds=(Hold(at="asm_exc_nmi", vcpu=1, phase=Phase.WINDOW),),
        ),
    ),
    "observer.arrivals",
    (1,),
)
FAILS = {name: build() for name, build, _ in BREAKING}
FAILS |= {f"kept-{name}": read_kept(name) for name, row in KEPT.items() if row.outcome is Outcome.FAIL}
REAL_PASSES = {name: read_kept(name) for name, row in KEPT.items() if row.outcome is Outcome.PASS}

#: Damage that leaves no trace: a line of a log without numbers, and records before the load's first or after its last.
UNTRACEABLE = {
    "warning": ("guest.dmesg",),
    "early": ("observer.events",),
    "update-after-the-load": ("observer.events",),
}


@settings(max_examples=150, suppress_health_check=list(HealthCheck), deadline=None)
@given(evidence=anything(Evidence))
def test_no_well_typed_evidence_raises(evidence: Evidence) -> None:
    verdict = judge(evidence)

    check_sound(verdict)
    assert verdict.outcome is not Outcome.PASS


@settings(max_examples=200, suppress_health_check=list(HealthCheck), deadline=None)
@given(
    events=st.lists(anything(ObserverEvent), max_size=30).map(tuple),
    windows=st.lists(anything(WindowSeen), max_size=4).map(tuple),
    view=anything(SiblingView),
    topology=st.sampled_from([Topology(1, 1, 2), Topology(1, 2, 2), Topology(2, 4, 2)]),
    numbered=st.booleans(),
)
def test_no_absurd_observer_raises(
    events: tuple[ObserverEvent, ...],
    windows: tuple[WindowSeen, ...],
    view: SiblingView,
    topology: Topology,
    *,
    numbered: bool,
) -> None:
    if numbered:
        events = tuple(msgspec.structs.replace(event, seq=seq, load=1) for seq, event in enumerate(events))
        windows = tuple(msgspec.structs.replace(window, load=1, siblings=(view,)) for window in windows)
    observer = ObserverEvidence(events=events, windows=windows, records_lost=0, windows_lost=0, gaps_ns=(0,) * 4)
    evidence = change(
        change(CLEAN, "observer", observer), "scenario", Scenario(mechanism="nmi-self", topology=topology)
    )

    check_sound(judge(evidence))


@settings(max_examples=200, suppress_health_check=list(HealthCheck), deadline=None)
@given(data=st.data())
def test_no_change_of_a_sound_trial_raises(data: st.DataObject) -> None:
    sound = [CLEAN, WATCHED, PHASED, HELD, *OFFLINE]
    evidence = data.draw(st.sampled_from([*sound, *FAILS.values(), *REAL_PASSES.values()]))
    for _ in range(data.draw(st.integers(1, 4))):
        path, value = data.draw(st.sampled_from(list(places(evidence))))
        # bool before int: it is one.
        for kind, values in ((bool, st.booleans()), (int, NUMBERS), (str, WORDS)):
            if isinstance(value, kind):
                evidence = change(evidence, path, data.draw(values))
                break
        else:
            if value is not None and not isinstance(value, tuple):
                evidence = change(evidence, path, data.draw(anything(type(value))))

    check_sound(judge(evidence))


@settings(max_examples=200, suppress_health_check=list(HealthCheck), deadline=None)
@given(
    events=st.lists(anything(ObserverEvent), max_size=20).map(tuple),
    arrivals=st.lists(NUMBERS, max_size=4).map(tuple),
    sent=st.lists(anything(Sent), max_size=4).map(tuple),
    injections=st.lists(anything(Injection), max_size=4).map(tuple),
    holds=st.lists(anything(Hold), max_size=4).map(tuple),
    scenario=st.builds(
        Scenario,
        mechanism=st.sampled_from(["nmi-self", "stop-machine", "uniform", "upstream", "park-hlt"]),
        topology=st.sampled_from([Topology(1, 1, 2), Topology(2, 4, 2)]),
        phase=anything(Phase | None),
        role=anything(Role | None),
        placed=st.lists(anything(Placed), max_size=3).map(tuple),
    ),
    kept=st.booleans(),
)
def test_no_absurd_plan_raises(
    events: tuple[ObserverEvent, ...],
    arrivals: tuple[int, ...],
    sent: tuple[Sent, ...],
    injections: tuple[Injection, ...],
    holds: tuple[Hold, ...],
    scenario: Scenario,
    *,
    kept: bool,
) -> None:
    assert HELD.observer is not None
    evidence = change(HELD, "observer.events", (*(HELD.observer.events if kept else ()), *events))
    evidence = change(evidence, "observer.arrivals", arrivals)
    evidence = change(change(evidence, "injections.sent", sent), "scenario", scenario)
    plan = msgspec.structs.replace(evidence.plan, injections=injections, holds=holds)

    check_sound(judge(change(evidence, "plan", plan)))


def test_what_a_hold_leaves_passes_whole_and_is_missed_record_by_record() -> None:
    assert [judge(each).outcome for each in (PHASED, HELD)] == [Outcome.PASS] * 2
    assert HELD.observer is not None
    for kind in (EventKind.HELD, EventKind.LET_GO):
        (event,) = (one for one in HELD.observer.events if one.kind is kind)
        changed = msgspec.structs.replace(event, detail=1)
        events = tuple(changed if one is event else one for one in HELD.observer.events)
        assert judge(change(HELD, "observer.events", events)).outcome is Outcome.INVALID


def damaged(draw: st.DataObject, evidence: Evidence, spared: tuple[str, ...]) -> Evidence:
    """Drop, cut, repeat or disorder elements of one witness's records."""
    tuples = [
        (path, value)
        for path, value in places(evidence)
        if isinstance(value, tuple) and value and not path.startswith(("scenario", "plan", *spared))
    ]
    path, value = draw.draw(st.sampled_from(tuples))
    at, other = (draw.draw(st.integers(0, len(value) - 1)) for _ in range(2))
    kinds = {
        "drop": (*value[:at], *value[at + 1 :]),
        "truncate": value[:at],
        "behead": value[at + 1 :],
        "repeat": (*value[:at], value[at], *value[at:]),
        "repeat-at-the-end": (*value, value[at]),
        "repeat-all": (*value, *value),
        "reverse": value[::-1],
        "rotate": (*value[at:], *value[:at]),
        "swap": tuple(value[{at: other, other: at}.get(index, index)] for index in range(len(value))),
    }
    return change(evidence, path, kinds[draw.draw(st.sampled_from(sorted(kinds)))])


@pytest.mark.parametrize("name", FAILS)
@settings(max_examples=60, suppress_health_check=list(HealthCheck), deadline=None)
@given(data=st.data())
def test_damage_to_a_witness_never_turns_a_fail_into_a_pass(name: str, data: st.DataObject) -> None:
    evidence = FAILS[name]
    for _ in range(data.draw(st.integers(1, 3))):
        evidence = damaged(data, evidence, UNTRACEABLE.get(name, ()))

    assert judge(evidence).outcome is not Outcome.PASS


@pytest.mark.parametrize("name", REAL_PASSES)
@settings(max_examples=40, suppress_health_check=list(HealthCheck), deadline=None)
@given(data=st.data())
def test_damage_to_a_real_trial_never_raises(name: str, data: st.DataObject) -> None:
    evidence = REAL_PASSES[name]
    for _ in range(data.draw(st.integers(1, 3))):
        evidence = damaged(data, evidence, ())

    check_sound(judge(evidence))


#: Where each record names itself: by its number, its vCPU or its core.
NAMED = (
    "observer.events",
    "observer.windows",
    "observer.resting",
    "injections.sent",
    "injections.sentinels",
    "guest.state.cpus",
    "guest.ledger_before",
    "guest.ledger_after",
    "timings.vcpus",
)


@pytest.mark.parametrize("name", [*FAILS, *REAL_PASSES])
@settings(max_examples=15, suppress_health_check=list(HealthCheck), deadline=None)
@given(data=st.data())
def test_records_that_name_themselves_may_come_in_any_order(name: str, data: st.DataObject) -> None:
    evidence = shuffled = FAILS.get(name) or REAL_PASSES[name]
    there = dict(places(evidence))
    for path in NAMED:
        if there.get(path):
            shuffled = change(shuffled, path, tuple(data.draw(st.permutations(there[path]))))

    assert findings(judge(shuffled)) == findings(judge(evidence))


def findings(verdict: Verdict) -> tuple[Outcome, dict[str, Finding]]:
    return verdict.outcome, {one.name: one.finding for one in verdict.invariants}


@pytest.mark.parametrize("name", FAILS)
@pytest.mark.parametrize("witness", ["observer", "injections", "guest", "guest.state", "timings"])
def test_a_witness_that_says_nothing_never_turns_a_fail_into_a_pass(name: str, witness: str) -> None:
    if FAILS[name].guest is None and witness == "guest.state":
        return

    assert judge(change(FAILS[name], witness, None)).outcome is not Outcome.PASS


@pytest.mark.parametrize("index", range(len(CLEAN.observer.events if CLEAN.observer else ())))
def test_every_record_of_a_clean_load_is_missed(index: int) -> None:
    verdict = judge(change(CLEAN, "observer.events", lambda old: (*old[:index], *old[index + 1 :])))

    assert verdict.outcome is Outcome.INVALID


IRRELEVANT = st.one_of(
    st.tuples(st.just(EventKind.WAIT_LOOP), st.integers(1, END_AT_NS - 1), st.integers(0, 3)),
    # The way out of 6.1's rendezvous is the function of its way in.
    st.tuples(st.just(EventKind.CALL_IN), st.integers(RELEASE_AT_NS + 10_000, END_AT_NS - 1), st.integers(0, 3)),
)


@settings(max_examples=200, deadline=None)
@given(
    extra=st.lists(IRRELEVANT, max_size=10),
    lines=st.lists(st.sampled_from(["random: crng init done", "[ 3.0] NMI watchdog: Perf NMI watchdog disabled"])),
)
def test_what_has_no_bearing_keeps_a_pass(extra: list[tuple[EventKind, int, int]], lines: list[str]) -> None:
    load = Load()
    for kind, at_ns, vcpu in extra:
        load.add(at_ns, kind, vcpu)
    evidence = change(load.build(), "guest.dmesg", lambda old: (*old, *lines))

    assert judge(evidence).outcome is Outcome.PASS


def insert_again(evidence: Evidence, index: int) -> Evidence:
    """Return evidence with one of the observer's records a second time, right behind the first, and all renumbered."""
    assert evidence.observer is not None
    events = sorted(evidence.observer.events, key=lambda event: event.seq)
    again = events[index]

    def later(seq: int) -> int:
        return seq + (seq > again.seq)

    def renumber(window: WindowSeen) -> WindowSeen:
        window = change(change(window, "open_seq", later), "close_seq", later)
        for path, value in places(window):
            if path.endswith(("first_seq", "last_seq")):
                window = change(window, path, later(value))
        return window

    moved = [change(event, "seq", later) for event in events]
    moved.insert(index + 1, change(again, "seq", again.seq + 1))
    windows = tuple(renumber(window) for window in evidence.observer.windows)
    updates = tuple(change(update, "seq", later) for update in evidence.observer.updates)
    evidence = change(change(evidence, "observer.events", tuple(moved)), "observer.windows", windows)
    return change(evidence, "observer.updates", updates)


#: A thread that goes round its wait loop says nothing new.
TURNS = {
    name: [index for index, event in enumerate(evidence.observer.events) if event.kind is EventKind.WAIT_LOOP]
    for name, evidence in REAL_PASSES.items()
    if evidence.observer is not None
}


@pytest.mark.parametrize("name", [name for name, turns in TURNS.items() if turns])
@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_what_has_no_bearing_keeps_a_real_pass(name: str, data: st.DataObject) -> None:
    evidence = REAL_PASSES[name]
    # From the last one on, so that each index is still that of its record.
    for index in sorted(data.draw(st.lists(st.sampled_from(TURNS[name]), min_size=1, max_size=4)), reverse=True):
        evidence = insert_again(evidence, index)
    lines = data.draw(st.lists(st.sampled_from(["random: crng init done", "[ 3.0] eth0: link becomes ready"])))
    for path in ("guest.dmesg", "guest.dmesg_before", "console_tail"):
        evidence = change(evidence, path, lambda old: (*old, *lines))

    assert findings(judge(evidence)) == findings(judge(REAL_PASSES[name]))


@settings(max_examples=200, deadline=None)
@given(shift=st.integers(1, 2_000), start=st.booleans())
def test_a_window_moved_off_its_records_is_not_believed(shift: int, *, start: bool) -> None:
    field = "open_seq" if start else "close_seq"

    assert judge(change(CLEAN, f"observer.windows.0.{field}", lambda old: old + shift)).outcome is Outcome.INVALID


def test_swapped_vcpus_are_not_believed() -> None:
    def swap(events: tuple[ObserverEvent, ...]) -> tuple[ObserverEvent, ...]:
        return tuple(msgspec.structs.replace(event, vcpu=event.vcpu ^ 1) for event in events)

    assert judge(change(CLEAN, "observer.events", swap)).outcome is not Outcome.PASS


@settings(max_examples=100, deadline=None)
@given(at_ns=st.integers(WINDOW_AT_NS + 2_000, WINDOW_AT_NS + 9 * MS), vcpu=st.sampled_from([1, 3]))
def test_noise_anywhere_in_a_window_is_found_and_its_absence_is_not(at_ns: int, vcpu: int) -> None:
    assert judge(Load().add(at_ns, EventKind.OUTSIDE, vcpu).build()).outcome is Outcome.FAIL
    assert judge(Load().build()).outcome is Outcome.PASS
