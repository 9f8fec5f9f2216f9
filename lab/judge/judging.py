# SPDX-License-Identifier: GPL-2.0-or-later
"""The verdict of one trial: every invariant's finding, and the outcome they add up to."""

from collections.abc import Callable

import msgspec

from lab.errors import UsageError
from lab.judge import dmesg, guest, handlers, images, nmis, offline, quiet, rendezvous, updates, witnesses
from lab.judge.completeness import why_untrusted
from lab.judge.durations import find_durations
from lab.judge.facts import Facts, find_facts, find_repeat
from lab.judge.finding import NEEDS_ENGINE, NO_ENGINE, clean, find_unneeded, unseen
from lab.judge.landings import find_landings, why_hold_missed, why_phase_missed
from lab.judge.liveness import MIN_PROVEN_NMIS, Proven, count_proven
from lab.judge.nmi_ledger import find_accounts, find_entries
from lab.judge.stall import describe_stall
from lab.mechanisms.base import Witness, find_base
from lab.mechanisms.mechanism import Expectation
from lab.mechanisms.table import find_mechanism
from lab.model.evidence import SCHEMA_VERSION, Ending, EventKind, Evidence, Match
from lab.model.phase import Phase
from lab.model.topology import Topology
from lab.model.verdict import NO_NMIS_ASKED, Finding, Invariant, NmiCount, Outcome, Verdict

#: In the order of cause and effect, so that the first broken one heads the verdict.
INVARIANTS: dict[str, Callable[[Facts], Invariant]] = {
    "all-waiting-before-update": rendezvous.judge_all_waiting,
    "quiet": quiet.judge_quiet,
    "harmless": quiet.judge_harmless,
    "no-nmi-entry-in-window": quiet.judge_no_nmi_entry,
    "still": quiet.judge_still,
    "released-after-update": rendezvous.judge_released_after,
    "one-update-per-core": updates.judge_one_update,
    "right-image": images.judge_right_image,
    "new-revision-everywhere": guest.judge_revisions,
    "counters-settled": rendezvous.judge_counters,
    "offline-siblings-return": offline.judge_offline_siblings,
    "load-repeatable": rendezvous.judge_repeatable,
    "dmesg-clean": dmesg.judge_dmesg,
    "errno-and-messages": dmesg.judge_errno_and_messages,
    "nmis-delivered": nmis.judge_delivered,
    "nmis-passed-on": handlers.judge_passed_on,
    "nmis-serviced": handlers.judge_serviced,
    "within-deadline": guest.judge_deadline,
    "witnesses-agree": witnesses.judge_agreement,
}

_MATCHED_BY = {
    Match.GUEST: "the build id read in the guest",
    Match.BUILT: "being built with the kernel, before boot",
    Match.BUILD_ID: "build id, before boot",
    Match.VERSION: "version only, before boot",
}

#: What a mechanism gives up that is known to let NMIs through to a sibling.
DISTURBED = ("quiet", "harmless", "no-nmi-entry-in-window")

#: What is not seen of a trial whose lab failed early; how it failed is the verdict's reason.
_NOT_BEGUN = "the lab failed before the load"

#: Broken, it shows that a witness is wrong and not which, so it takes a trial its PASS without accusing the kernel.
AGREEMENT = "witnesses-agree"

#: In front of the reason of a trial that ended before its plan was begun.
FIRST_LOAD = "in the first load of this guest, to which no NMIs were sent"


def judge(evidence: Evidence) -> Verdict:
    """Judge one trial. Never raises on well-typed evidence; the same evidence always gives the same verdict."""
    verdict = _judge_foreign(evidence) or _judge_load(evidence)
    return msgspec.structs.replace(verdict, matched=_tell_match(evidence))


def _judge_foreign(evidence: Evidence) -> Verdict | None:
    """Judge a trial that has nothing to show; None when it has."""
    foreign = _why_foreign(evidence)
    failed = evidence.ending is Ending.LAB
    reason = _NOT_BEGUN if failed and not foreign and not _has_begun(evidence) else foreign
    if not reason:
        return None
    return Verdict(
        outcome=Outcome.ERROR if failed else Outcome.INVALID,
        reason=_lab_failed(evidence) if failed else foreign,
        invariants=tuple(unseen(name, reason) for name in INVARIANTS),
    )


def _judge_load(evidence: Evidence) -> Verdict:
    scenario = evidence.scenario
    facts = find_facts(evidence, scenario.topology, find_mechanism(scenario.mechanism))
    invariants = tuple(_require(facts, rule(facts)) for rule in INVARIANTS.values())
    proven = count_proven(facts)
    counted = _count_nmis(facts, proven)
    outcome, reason = _conclude(facts, invariants, counted, proven)
    if evidence.plan.first_load:
        reason = f"{FIRST_LOAD}: {reason}"
    judged = _count_judged(facts)
    landings = find_landings(facts)
    windows = (
        len(evidence.observer.windows) + max(0, evidence.observer.windows_lost) if evidence.observer is not None else 0
    )
    return Verdict(
        outcome=outcome,
        reason=reason,
        invariants=invariants,
        durations=find_durations(facts, landings),
        nmis=counted,
        windows_judged=judged,
        landings=landings,
        accounts=find_accounts(facts),
        entries=find_entries(facts),
        windows_unseen=windows - judged,
        stall=describe_stall(evidence),
    )


def list_accused(verdict: Verdict) -> tuple[str, ...]:
    """Return the names of the invariants by which a verdict accuses the kernel, in the order of cause and effect."""
    return tuple(one.name for one in verdict.invariants if _accuses(one))


def _accuses(invariant: Invariant) -> bool:
    return invariant.required and invariant.finding is Finding.BROKEN and invariant.name != AGREEMENT


def _require(facts: Facts, invariant: Invariant) -> Invariant:
    """Require of a mechanism only what it promises and its kernel can show; all else is reported all the same."""
    mechanism = facts.mechanism
    disturbed = mechanism.expectation is Expectation.MEASURED and invariant.name in DISTURBED
    unshown = invariant.finding is Finding.UNSEEN and invariant.name in mechanism.unshown
    unneeded = find_unneeded(
        facts.base,
        offline=bool(facts.offline),
        engine=facts.has_engine,
        takes=facts.takes,
        memory=facts.sees_updates,
    )
    if disturbed or unshown or invariant.name in unneeded:
        return msgspec.structs.replace(invariant, required=False)
    return invariant


def _conclude(
    facts: Facts, invariants: tuple[Invariant, ...], counted: NmiCount, proven: Proven
) -> tuple[Outcome, str]:
    """Walk down the precedence of design section 2: ERROR, FAIL, INVALID, and PASS only with nothing left to object."""
    if facts.evidence.ending is Ending.LAB:
        return Outcome.ERROR, _lab_failed(facts.evidence)
    required = [invariant for invariant in invariants if invariant.required]
    accused = [one for one in required if _accuses(one)]
    if accused:
        return Outcome.FAIL, f"{accused[0].name} broken: {accused[0].reason}"
    objection = _find_objection(facts, required, counted)
    if objection:
        return Outcome.INVALID, objection
    held = f"all {len(required)} required invariants held over {len(facts.windows)} windows"
    return Outcome.PASS, held + _tell_nmis(facts, counted, proven) + _tell_what_is_missing(facts)


def _tell_nmis(facts: Facts, counted: NmiCount, proven: Proven) -> str:
    """Say what the plan's NMIs show, and what its holds."""
    plan, phase = facts.evidence.plan, facts.evidence.scenario.phase
    held = f", {len(plan.holds)} holds reached and let go" if plan.holds else ""
    if not counted.sent:
        return f", {NO_NMIS_ASKED}: nothing is shown of what one would do{held}"
    if phase not in (None, Phase.WINDOW):
        return f", {counted.sent} of {counted.sent} NMIs sent in {phase.value}, as asked{held}"
    return (
        f", {proven.total} of {counted.sent} NMIs proven in a window: {proven.siblings} pending on a sibling,"
        f" {proven.primaries} at the primary"
        + (f", {proven.masked} met a masked LINT1" if proven.masked else "")
        + held
    )


def _tell_what_is_missing(facts: Facts) -> str:
    images = facts.evidence.images
    missing = "" if facts.has_engine else f"; {NO_ENGINE}: not required were {', '.join(sorted(NEEDS_ENGINE))}"
    if images is not None and images.best_match is Match.VERSION:
        missing += "; that vmlinux is the kernel's was told by its version only"
    return missing


def _find_objection(facts: Facts, required: list[Invariant], counted: NmiCount) -> str:
    """Return the first reason why the trial does not show what it was meant to; empty when there is none."""
    disagreed = next((one for one in required if one.finding is Finding.BROKEN), None)
    if disagreed is not None:
        return f"{disagreed.name} broken: {disagreed.reason}"
    ended = "" if facts.complete else next(one.reason for one in required if one.name == "within-deadline")
    missing = witnesses.find_missing_witnesses(facts)
    if missing:
        return f"missing: {', '.join(missing)}" + (f"; {ended}" if ended else "")
    if ended:
        return ended
    if facts.lost:
        return facts.lost
    landmarks = witnesses.find_missing_landmarks(facts)
    if landmarks:
        return f"landmarks not hit: {', '.join(landmarks[:5])}"
    hold_missed = why_hold_missed(facts)
    if hold_missed:
        return clean(hold_missed)
    log_doubt = nmis.why_log_doubted(facts)
    if log_doubt:
        return clean(log_doubt)
    complaints = dmesg.find_earlier_complaints(facts)
    if complaints:
        return f"the guest had complained before this load, {complaints[0].text}"
    for one in required:
        if one.finding is not Finding.HELD:
            return f"{one.name} unseen: {one.reason}"
    if counted.sent and not facts.evidence.scenario.sends_nmis:
        return "NMIs were sent though the scenario is about none"
    scenario = facts.evidence.scenario
    if scenario.nmis and scenario.phase in (None, Phase.WINDOW) and counted.proven_in_window < MIN_PROVEN_NMIS:
        return "no NMI was proven sent and pending within a window"
    if scenario.sends_nmis and not counted.sent:
        return "no NMI was sent though the scenario is about some"
    return clean(why_phase_missed(facts))


def _why_foreign(evidence: Evidence) -> str:
    """Say why the evidence is not one of a trial that can be judged at all; empty when it is."""
    if evidence.schema_version != SCHEMA_VERSION:
        return f"the evidence is of schema {evidence.schema_version}: this judge reads {SCHEMA_VERSION}"
    try:
        # Done in memory, for its checks alone: it bounds every number, and so each difference and text made of them.
        msgspec.msgpack.encode(evidence)
    except (OverflowError, UnicodeError):
        return "the evidence holds a number beyond 64 bits or a text that is no text"
    try:
        Topology.parse(str(evidence.scenario.topology))
        find_mechanism(evidence.scenario.mechanism)
    except UsageError as error:
        return clean(str(error))
    state = evidence.guest.state if evidence.guest is not None else None
    if state is not None and state.mechanism != evidence.scenario.mechanism:
        return f"the guest ran mechanism '{clean(state.mechanism)}' instead of '{evidence.scenario.mechanism}'"
    return (
        _why_other_kernel(evidence)
        or _why_aimed_amiss(evidence)
        or _why_other_siblings(evidence)
        or _why_not_one_load(evidence)
        or why_untrusted(evidence, evidence.scenario.topology, find_repeat(evidence))
    )


def _has_begun(evidence: Evidence) -> bool:
    events = evidence.observer.events if evidence.observer is not None else ()
    return any(event.kind is EventKind.LOAD_BEGIN for event in events)


def _tell_match(evidence: Evidence) -> str:
    if evidence.images is None:
        return "no guest was booted"
    return f"vmlinux matched by {_MATCHED_BY[evidence.images.best_match]}"


def _why_aimed_amiss(evidence: Evidence) -> str:
    """Say which NMI of the plan was aimed where none may be: what it does there is the emulator's, and no finding.

    The sentinels come when the load is over: a thread that still is in that state by then, the kernel has left there.
    """
    scenario = evidence.scenario
    unaimable = find_mechanism(scenario.mechanism).unaimable
    aimed = {injection.vcpu for injection in evidence.plan.injections}
    aimed |= {sent.vcpu for sent in evidence.injections.sent} if evidence.injections is not None else set()
    hit = sorted(aimed.intersection(scenario.topology.siblings))
    return f"the plan aims at vCPU {hit[0]}, a sibling, but {unaimable}" if unaimable and hit else ""


def _why_other_kernel(evidence: Evidence) -> str:
    base = find_base(find_mechanism(evidence.scenario.mechanism).base)
    release = evidence.images.kernel_release if evidence.images is not None else base.version
    if not base.version or release.split(".")[:2] == base.version.split("."):
        return ""
    return f"the guest ran Linux {clean(release)} instead of {base.name}"


def _why_other_siblings(evidence: Evidence) -> str:
    if evidence.guest is None:
        return ""
    wanted = evidence.scenario.online_threads
    if evidence.guest.online == wanted:
        return ""
    return f"CPUs {list(evidence.guest.online[:20])} of the guest were online instead of {list(wanted)}"


def _why_not_one_load(evidence: Evidence) -> str:
    if evidence.observer is None:
        return ""
    events = evidence.observer.events
    begun = {event.seq for event in events if event.kind is EventKind.LOAD_BEGIN}
    loads = {event.load for event in events} | {window.load for window in evidence.observer.windows}
    count = max(len(begun), len(loads - {0}))
    # A second load that followed the first is the kernel's own doing, and judged.
    known = 2 if find_repeat(evidence) is not None else 1
    return f"the trial holds {count} late loads instead of one" if count > known else ""


def _lab_failed(evidence: Evidence) -> str:
    return f"the lab failed: {clean(evidence.reason) or 'it did not say how'}"


def _count_judged(facts: Facts) -> int:
    return sum(
        bool(quiet.find_noise(facts, window)) or not quiet.why_not_quiet(facts, window) for window in facts.windows
    )


def _count_nmis(facts: Facts, proven: Proven) -> NmiCount:
    log = facts.evidence.injections
    return NmiCount(
        sent=sum(sent.reply_ns > 0 for sent in log.sent) if log is not None else 0,
        handled=sum(_count_handled(facts, cpu) for cpu in facts.vcpus),
        entries=len(facts.every_of_kind(EventKind.NMI_ENTRY)),
        proven_in_window=proven.total,
        on_siblings=proven.siblings,
        masked=proven.masked,
    )


def _count_handled(facts: Facts, cpu: int) -> int:
    """Count what the ordinary handlers took: by the ledger, or all that the kernel counted and the mechanism left."""
    if facts.has(Witness.LEDGER):
        delta = facts.ledger_delta(cpu)
        return delta.ordinary if delta is not None else 0
    return max(0, (facts.counted_nmis(cpu) or 0) - len(facts.consumed(cpu)))
