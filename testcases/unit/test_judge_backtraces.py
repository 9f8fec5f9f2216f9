# SPDX-License-Identifier: GPL-2.0-or-later
"""NMIs that the guest's kernel sends for backtraces: each sending is one more cause for each other vCPU."""

import io
from typing import Any

import pytest
from evidence_builder import END_AT_NS, MS, RELEASE_AT_NS, WINDOW_AT_NS, Load, change
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.console import Console
from test_judge_nmis import ONE_CORE, delivered

from lab.cli.story import make_story_view
from lab.judge import judge
from lab.model.evidence import EventKind, Evidence
from lab.model.scenario import Siblings
from lab.model.verdict import Finding, Handler, Invariant, NmiAccount, Outcome, Verdict
from lab.report.story import tell_story

#: Before the load's self-NMIs, and behind all of a load that is not watched.
EARLY_NS = 50_000
LATE_NS = END_AT_NS + 4 * MS


def ask(load: Load, at_ns: int, sender: int, *takers: int) -> Load:
    """Let one vCPU send NMIs for backtraces, and others enter them."""
    load.add(at_ns, EventKind.BACKTRACE, sender, symbol="nmi_raise_cpu_backtrace+0x0")
    for vcpu in takers:
        load.add(at_ns + 1_000 + vcpu, EventKind.NMI_ENTRY, vcpu)
    return load


def accounts(verdict: Verdict) -> dict[int, NmiAccount]:
    return {each.vcpu: each for each in verdict.accounts}


def took(verdict: Verdict, vcpu: int) -> list[tuple[str, ...]]:
    return [entry.took for entry in verdict.entries if entry.vcpu == vcpu]


@pytest.mark.parametrize("at_ns", [EARLY_NS, LATE_NS])
@pytest.mark.parametrize("mechanism", ["nmi-self", "stop-machine", "upstream"])
def test_backtraces_of_all_cpus_are_the_guests_own(mechanism: str, at_ns: int) -> None:
    plain = judge(Load(mechanism=mechanism).watch().build())
    verdict = judge(ask(Load(mechanism=mechanism).watch(), at_ns, 2, 0, 1, 3).build())
    found = accounts(verdict)
    (name,) = (one for one in verdict.invariants if one.name == "nmis-delivered")

    assert {vcpu: each.backtraces for vcpu, each in found.items()} == {0: 1, 1: 1, 2: 0, 3: 1}
    assert all(each.closes and not each.unexplained for each in found.values())
    assert name.finding is Finding.HELD
    assert "3 for 1 backtraces of the guest's," in name.reason
    assert findings(verdict) == findings(plain)
    for vcpu, each in accounts(plain).items():
        more = int(vcpu != 2)
        assert (each.sent, each.self_nmis, each.ipis, each.merged) == own(found[vcpu])
        assert (each.entries + more, each.counted) == (found[vcpu].entries, (found[vcpu].counted or 0) - more)
    assert [one for one in took(verdict, 1) if one == ("a backtrace's NMI",)] == [("a backtrace's NMI",)]
    assert verdict.durations.host_nmi_delay_us == plain.durations.host_nmi_delay_us


def own(account: NmiAccount) -> tuple[int, int, int, int]:
    return account.sent, account.self_nmis, account.ipis, account.merged


def findings(verdict: Verdict) -> dict[str, Finding]:
    return {one.name: one.finding for one in verdict.invariants}


def test_a_trial_without_any_says_nothing_of_them() -> None:
    assert "backtrace" not in delivered(Load().watch().build()).reason


def test_the_ledger_says_that_an_ordinary_handler_took_them() -> None:
    verdict = judge(ask(Load(topology=ONE_CORE), EARLY_NS, 0, 1).build())

    (entry,) = (each for each in verdict.entries if each.took == ("a backtrace's NMI",))
    assert (entry.vcpu, entry.by) == (1, Handler.ORDINARY)


def spurious(evidence: Evidence) -> list[tuple[str, int]]:
    found = delivered(evidence)
    assert found.finding is Finding.BROKEN
    return [(proof.text, proof.vcpu) for proof in found.proofs]


def accused(vcpu: int) -> tuple[str, int]:
    return f"vCPU {vcpu} entered an NMI that nobody sent", vcpu


def test_it_explains_one_entry_of_each_other_vcpu_behind_it_and_nothing_else() -> None:
    assert spurious(ask(Load(), LATE_NS, 2, 1).drop(EventKind.BACKTRACE).build()) == [accused(1)]
    assert spurious(ask(Load(), LATE_NS, 2, 2).build()) == [accused(2)]
    assert spurious(ask(Load(), LATE_NS, 2, 1).add(LATE_NS - 1, EventKind.NMI_ENTRY, 3).build()) == [accused(3)]
    assert spurious(ask(Load(), LATE_NS, 2, 1).add(LATE_NS + MS, EventKind.NMI_ENTRY, 1).build()) == [accused(1)]


def test_it_goes_to_no_cpu_that_is_offline() -> None:
    offline = Load(mechanism="upstream", siblings=Siblings.OFFLINE)
    assert delivered(ask(offline, LATE_NS, 0).build()).finding is Finding.HELD
    assert delivered(ask(offline, LATE_NS, 0, 1).build()).finding is not Finding.HELD


def test_as_many_as_were_asked_for_are_explained() -> None:
    twice = ask(ask(Load(topology=ONE_CORE), LATE_NS, 0, 1), LATE_NS + MS, 0, 1)
    verdict = judge(twice.build())

    assert (accounts(verdict)[1].backtraces, accounts(verdict)[1].closes) == (2, True)
    assert "2 for 2 backtraces of the guest's," in delivered(twice.build()).reason
    assert spurious(twice.add(LATE_NS + 2 * MS, EventKind.NMI_ENTRY, 1).build()) == [accused(1)]


def test_one_that_merged_or_was_for_others_is_no_entry_and_no_loss() -> None:
    """Pending together with the lab's, or never sent to this vCPU: the evidence is the same."""
    verdict = judge(ask(Load(topology=ONE_CORE), WINDOW_AT_NS + MS, 0).build())
    plain = judge(Load(topology=ONE_CORE).build())

    assert findings(verdict) == findings(plain)
    assert accounts(verdict) == accounts(plain)
    assert took(verdict, 1)[-1] == ("NMI 0", "NMI 1", "perhaps a backtrace's NMI")
    landing = next(each for each in verdict.landings if (each.nmi, each.vcpu) == (0, 1))
    assert landing.shared_with == ("NMI 1", "perhaps a backtrace's NMI")
    assert (landing.entry_seq > 0, landing.delay_us) == (True, plain.landings[1].delay_us)


def test_one_that_nothing_follows_is_no_loss() -> None:
    verdict = judge(ask(Load(topology=ONE_CORE), LATE_NS, 0).build())

    assert verdict.outcome is Outcome.PASS
    assert (accounts(verdict)[1].never, accounts(verdict)[1].backtraces) == (0, 0)


def test_one_that_only_the_sentinel_follows_leaves_no_doubt() -> None:
    evidence = ask(Load(topology=ONE_CORE).watch(), END_AT_NS + MS // 2, 0).build()

    assert delivered(evidence).finding is Finding.HELD
    assert took(judge(evidence), 1)[-1] == ("its sentinel", "perhaps a backtrace's NMI")


def test_the_labs_own_nmi_keeps_its_entry_before_a_backtrace() -> None:
    """Both may have had the entry: it is the lab's, whose NMI is known to have been sent to this vCPU."""
    load = Load(topology=ONE_CORE, sends=[(1, LATE_NS, LATE_NS + MS)]).drop(EventKind.NMI_ENTRY, 1)
    load.add(101_200, EventKind.NMI_ENTRY, 1).add(LATE_NS + 500_000, EventKind.NMI_ENTRY, 1)
    load.add(LATE_NS - MS, EventKind.BACKTRACE, 0)
    verdict = judge(load.build())

    assert took(verdict, 1)[-1] == ("NMI 0", "perhaps a backtrace's NMI")
    assert (accounts(verdict)[1].backtraces, accounts(verdict)[1].closes) == (0, True)


def handled(load: Load, more: int) -> Invariant:
    """Return what is found when an ordinary handler took NMIs that were to be the mechanism's."""
    evidence: Evidence = load.build()
    for field, by in (("ordinary", more), ("consumed", -more)):
        evidence = change(evidence, f"guest.ledger_after.1.{field}", lambda old, by=by: old + by)
    return delivered(evidence)


def test_what_the_ledger_counts_is_not_held_against_a_kernel_that_sent_it_itself() -> None:
    def asked(**fields: Any) -> Load:
        return ask(Load(topology=ONE_CORE, sends=[], **fields), EARLY_NS, 0, 1)

    text = "CPU 1 handled {} NMIs though {} was sent to it, and for backtraces 1 at most"
    assert handled(asked(), 0).finding is Finding.HELD
    assert handled(asked().watch(), 0).finding is Finding.HELD
    assert handled(asked(), 1).reason == text.format(2, "none")
    assert handled(asked().watch(), 1).reason == text.format(3, "only the lab's sentinel")


def test_a_self_nmi_that_is_never_entered_is_lost_whatever_a_backtrace_explains() -> None:
    lost = Load(topology=ONE_CORE, sends=[]).drop(EventKind.NMI_ENTRY, 1)

    assert delivered(ask(lost, LATE_NS, 0, 1).build()).reason == (
        "the self-NMI of vCPU 1 was never entered before the load's end"
    )


def test_a_vcpu_that_takes_none_any_more_is_named_whatever_a_backtrace_explains() -> None:
    deaf = ask(Load().watch(0), LATE_NS + 2 * MS, 0, 1, 2, 3).build()

    assert delivered(deaf).reason == "vCPU 0 no longer takes NMIs after the load"


def test_in_a_window_it_breaks_what_any_nmi_breaks() -> None:
    verdict = judge(ask(Load(topology=ONE_CORE), WINDOW_AT_NS + MS, 0, 1).build())

    assert findings(verdict)["no-nmi-entry-in-window"] is Finding.BROKEN
    assert findings(verdict)["nmis-delivered"] is Finding.HELD


def test_it_is_told_apart_from_the_mechanisms_ipis() -> None:
    load = Load(mechanism="upstream", topology=ONE_CORE, siblings=Siblings.RETURNING, sends=[])
    found = accounts(judge(ask(load, RELEASE_AT_NS + MS, 0, 1).build()))[1]

    assert (found.ipis, found.backtraces, found.unexplained, found.entries) == (1, 1, 0, 2)


def test_the_story_names_who_asked_and_who_answered() -> None:
    evidence = ask(Load(topology=ONE_CORE), EARLY_NS, 0, 1).build()
    verdict = judge(evidence)
    story = tell_story(evidence, verdict, None, 1_000)
    texts = [row.text for row in story.rows if row.kind in ("backtrace", "nmi-entry")]
    assert texts[:2] == [
        "sends NMIs for a backtrace: nmi_raise_cpu_backtrace+0x0",
        "enters a backtrace's NMI, in gather, taken by the ordinary handler",
    ]

    shown = io.StringIO()
    Console(file=shown, width=200).print(make_story_view(story, evidence, verdict))
    lines = [line for line in shown.getvalue().splitlines() if line.startswith("vCPU ")]
    assert ["1 for its backtraces" in line for line in lines] == [False, True]
    assert all(": closes" in line for line in lines)


#: In the whole of a load that ends at 16 ms, and behind it.
TIMES = st.integers(0, 20 * MS)
SENDS = st.lists(st.tuples(TIMES, st.integers(1, 3 * MS)), max_size=5)


@settings(max_examples=300, suppress_health_check=list(HealthCheck), deadline=None)
@given(
    sends=SENDS,
    entries=st.lists(TIMES, max_size=6, unique=True),
    asked=st.lists(st.tuples(TIMES, st.integers(0, 1)), max_size=3),
)
def test_books_close_whatever_comes_when(
    sends: list[tuple[int, int]], entries: list[int], asked: list[tuple[int, int]]
) -> None:
    def tell(kind: EventKind) -> dict[int, NmiAccount]:
        load = Load(topology=ONE_CORE, sends=[(1, at_ns, at_ns + took_ns) for at_ns, took_ns in sends])
        load.drop(EventKind.NMI_ENTRY, 1)
        for at_ns in entries:
            load.add(at_ns, EventKind.NMI_ENTRY, 1)
        for at_ns, sender in asked:
            load.add(at_ns, kind, sender)
        return accounts(judge(load.build()))

    # Any record of a vCPU's says that it ran, and so which of its entries an NMI was for.
    without, found = tell(EventKind.WAIT_LOOP), tell(EventKind.BACKTRACE)

    for each in found.values():
        own = each.sent + each.sentinels + each.self_nmis + each.ipis + each.backtraces
        assert own - each.merged - each.never + each.unexplained == each.entries
        assert min(each.merged, each.never, each.unexplained, each.backtraces) >= 0
    # To the sender itself none is sent, and each explains one entry at most.
    others = sum(sender == 0 for _, sender in asked)
    assert found[1].backtraces <= others
    assert 0 <= without[1].unexplained - found[1].unexplained <= found[1].backtraces
    if not others:
        assert found[1] == without[1]
