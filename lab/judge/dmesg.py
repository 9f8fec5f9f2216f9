# SPDX-License-Identifier: GPL-2.0-or-later
"""What the kernel's log of the trial says. Messages are those of Linux 6.1 and 6.12.

Accepted line: an optional ``<level>``, any number of ``[  12.345678]`` or ``[  T18]``, then the message.
"""

import re
from collections.abc import Iterable
from enum import Enum
from itertools import islice
from typing import NamedTuple

from lab.judge.facts import Facts
from lab.judge.finding import MAX_PROOFS, NO_ENGINE, broken, broken_unless, clean, held, unseen
from lab.judge.nmis import why_log_doubted
from lab.judge.starvation import why_starved
from lab.mechanisms.base import LOAD_MARK, Loader, Witness
from lab.model.engine import Engine, is_taken_by
from lab.model.evidence import EventKind, GuestEvidence
from lab.model.verdict import Invariant, Proof


class Cause(Enum):
    """Whether a slow host alone can make the kernel print a message."""

    KERNEL = "kernel"
    CLOCK = "clock"


class Family(NamedTuple):
    """One kind of complaint; the pattern is searched in the message without its prefixes."""

    name: str
    cause: Cause
    pattern: re.Pattern[str]


def _family(name: str, cause: Cause, pattern: str) -> Family:
    return Family(name, cause, re.compile(pattern, re.ASCII))


#: The kernel's own line is under 1,000 characters (LOG_LINE_MAX); more is not searched.
_MAX_LINE = 1_000

#: Callers are T and a task, or C and a CPU (printk.c). Anything else in brackets is the message: some of lockdep's are.
_PREFIX = re.compile(r"(?:<\d{1,3}>)?(?:\[ {0,9}(?:\d{1,12}\.\d{1,9}|[TC]\d{1,10})\] ?)*", re.ASCII)

#: Anchored where the kernel's message begins, so that a line that only quotes one does not match: "NMI watchdog: Perf
#: NMI watchdog permanently disabled", "perf: interrupt took too long" and a bare "RIP:" are no complaints of their own.
FAMILIES = (
    _family("panic", Cause.KERNEL, r"^Kernel panic - not syncing"),
    _family("soft lockup", Cause.CLOCK, r"^(?:watchdog: )?BUG: soft lockup"),
    _family("hard lockup", Cause.CLOCK, r"^(?:NMI watchdog: |watchdog: )?Watchdog detected hard LOCKUP"),
    _family("workqueue lockup", Cause.CLOCK, r"^BUG: workqueue lockup"),
    _family("rcu stall", Cause.CLOCK, r"^rcu: .*(?:self-detected stall|detected (?:expedited )?stalls)"),
    _family("rcu stall", Cause.CLOCK, r"^rcu: .*kthread starved"),
    _family("hung task", Cause.CLOCK, r"^INFO: task .* blocked for more than \d+ seconds"),
    _family("rendezvous timeout", Cause.CLOCK, r"^microcode: Timeout (?:while waiting for CPUs|during microcode)"),
    _family("rendezvous timeout", Cause.CLOCK, r"^microcode: load: \d+ CPUs timed out"),
    _family("slow NMI handler", Cause.CLOCK, r"^INFO: NMI handler .* took too long"),
    _family("clocksource", Cause.CLOCK, r"^clocksource: .*(?:Marking clocksource .* as unstable|marking unstable)"),
    _family("BUG", Cause.KERNEL, r"^(?:kernel |\[ ?)?BUG(?::| at )"),
    _family("WARNING", Cause.KERNEL, r"^(?:\[ ?)?WARNING: "),
    _family("Oops", Cause.KERNEL, r"^(?:Oops\b|Internal error|.*\[#\d+\](?: |$))"),
    _family("exception", Cause.KERNEL, r"^(?:general protection fault|double fault|stack segment|PANIC: )"),
    _family("unknown NMI", Cause.KERNEL, r"^(?:Uhhuh\. NMI received|Dazed and confused|Do you have a strange power)"),
    _family("MSR access", Cause.KERNEL, r"^unchecked MSR access error"),
    _family("UBSAN", Cause.KERNEL, r"^UBSAN: "),
)


class Words(NamedTuple):
    """How one kernel tells of a late load.

    :param begin: its first line; between it and ``done`` or ``failed`` the log covers the load
    :param done: its last line when it succeeded, with CPU 0's old and new revision
    :param updated: how many primaries were updated and how many siblings found that done, None where it does not say
    """

    begin: re.Pattern[str]
    done: re.Pattern[str]
    failed: re.Pattern[str]
    updated: re.Pattern[str] | None


def _words(begin: str, done: str, failed: str, updated: str = "") -> Words:
    return Words(
        begin=_line_of_loader(begin),
        done=_line_of_loader(done),
        failed=_line_of_loader(failed),
        updated=_line_of_loader(updated) if updated else None,
    )


def _line_of_loader(text: str) -> re.Pattern[str]:
    return re.compile(f"^microcode: (?:{text})", re.ASCII)


#: 6.1: microcode_reload_late(), __reload_late(); 6.12: load_late_stop_cpus(), setup_cpus(), load_secondary().
WORDS = {
    Loader.BEFORE_6_7: _words(
        begin="Attempting late microcode loading - it is dangerous and taints the kernel",
        done="Reload succeeded, microcode revision: 0x([0-9a-f]+) -> 0x([0-9a-f]+)",
        failed=r"Reload failed|CPU\d+ update to revision 0x[0-9a-f]+ failed|Error reloading microcode on CPU",
    ),
    Loader.SINCE_6_7: _words(
        begin=r"Late microcode loading without minimal revision check\.",
        done="revision: 0x([0-9a-f]+) -> 0x([0-9a-f]+)",
        failed=r"update failed: |load incomplete\. |load: \d+ CPUs timed out|\d+ offline siblings did not respond"
        r"|CPU \d+ not online, loading aborted",
        updated=r"load: updated on (\d{1,5}) primary CPUs with (\d{1,5}) siblings",
    ),
}

#: What a kernel says of an NMI that none of its handlers knows: one line of each kind, the first with its CPU. Older
#: ones ask about a power saving mode as well.
_UNKNOWN_NMI = re.compile(r"^Uhhuh\. NMI received for unknown reason [0-9a-f]{2} on CPU (\d{1,5})\.", re.ASCII)
_UNKNOWN_NMI_TOO = (
    re.compile(r"^Dazed and confused, but trying to continue", re.ASCII),
    re.compile(r"^Do you have a strange power saving mode enabled\?", re.ASCII),
)


#: What an engine that does not take an update did.
_ENGINE_DID = {
    Engine.REFUSES: "refused the update",
    Engine.FAULTS: "raised #GP at the WRMSR",
    Engine.OTHER_REVISION: "took another revision",
    Engine.ONE_CORE: "took it on core 0 only",
}
#: What microcode_check() says, since 4.16.
_FEATURES_CHANGED = re.compile(r"^x86/CPU: CPU features have changed after loading microcode", re.ASCII)
#: What a kernel says, once in its life, of a WRMSR that faults and that it takes no precautions for.
_FAULTED = re.compile(r"^unchecked MSR access error: WRMSR to 0x79 ", re.ASCII)


def find_complaints(lines: Iterable[str], cause: Cause | None = None) -> list[Proof]:
    """Return the first complaints among lines, of one cause or of both."""
    found = (
        Proof(text=f"{family.name}: {clean(line)}")
        for line in lines
        if (family := classify(message_of(line))) is not None and cause in (None, family.cause)
    )
    return list(islice(found, MAX_PROOFS))


def find_earlier_complaints(facts: Facts) -> list[Proof]:
    """Return what the guest complained of between the last trial and this one.

    A kernel without a ledger complains of each NMI that it does not know, and printk() may be late with what an NMI
    handler prints: such lines are the last trial's, which accounts for its NMIs by their entries.
    """
    guest = facts.evidence.guest
    lines = guest.dmesg_before if guest is not None else ()
    if not facts.has(Witness.LEDGER):
        known = (_UNKNOWN_NMI, *_UNKNOWN_NMI_TOO)
        lines = tuple(line for line in lines if not any(each.search(message_of(line)) for each in known))
    if facts.evidence.scenario.engine is Engine.FAULTS:
        lines = tuple(line for line in lines if not _FAULTED.search(message_of(line)))
    return find_complaints(lines)


def message_of(line: str) -> str:
    """Return a line without level, timestamp and caller."""
    return _PREFIX.sub("", line[:_MAX_LINE], count=1)


def classify(message: str) -> Family | None:
    """Return the family of a message, None where it is no complaint."""
    return next((family for family in FAMILIES if family.pattern.search(message)), None)


def judge_dmesg(facts: Facts) -> Invariant:
    """Hold when the log covers the load from its first line to its last and complains of nothing.

    What a slow host can bring about counts for nothing next to a starvation gap (design section 2). A kernel without
    a ledger has no handler that knows the lab's NMIs, so it may complain once of each that the mechanism left to it.
    """
    name = "dmesg-clean"
    guest = facts.evidence.guest
    if guest is None:
        return unseen(name, "the guest's evidence is missing")
    lines = guest.dmesg if facts.has(Witness.LEDGER) else _leave_out_unknown_nmis(facts, guest.dmesg)
    excused = len(guest.dmesg) - len(lines)
    if facts.evidence.scenario.engine is Engine.FAULTS:
        lines = [line for line in lines if not _FAULTED.search(message_of(line))]
    certain = find_complaints(lines, Cause.KERNEL)
    clock = find_complaints(guest.dmesg, Cause.CLOCK)
    starved = why_starved(facts)
    if certain or (clock and not starved):
        return broken(name, certain + clock)
    if clock:
        return unseen(name, f"{clock[0].text}; but {starved}", clock)
    gap = facts.lost if excused else ""
    gap = gap or _why_not_covered(facts, guest.dmesg)
    also = f" but {excused} of NMIs that only the lab knows, at most one of each kind per entry" if excused else ""
    return unseen(name, gap) if gap else held(name, f"{len(guest.dmesg)} lines over the whole load, no complaint{also}")


def judge_errno_and_messages(facts: Facts) -> Invariant:
    """Hold when the write succeeded and the kernel named the right revisions and, where it does, the right CPUs.

    A mechanism whose threads waited too long for one that the host did not run fails without a word, so starvation
    alone explains a failure.
    """
    name = "errno-and-messages"
    guest = facts.evidence.guest
    if guest is None:
        return unseen(name, "the guest's evidence is missing")
    if not facts.has_engine:
        ended = f"failed with errno {guest.load_errno}" if guest.load_errno > 0 else "did not say that it failed"
        return unseen(name, f"{NO_ENGINE}: the write to reload {ended}")
    words = WORDS[facts.base.loader]
    messages = _of_first_load(words, [message_of(line) for line in guest.dmesg])
    if not facts.takes:
        return _judge_failure(facts, guest, words, messages)
    proofs = []
    if guest.load_errno > 0:
        proofs.append(Proof(text=f"the write to reload failed with errno {guest.load_errno}"))
    proofs += [Proof(text=clean(message)) for message in messages if words.failed.search(message)]
    done = [match for message in messages if (match := words.done.search(message))]
    if guest.revisions_before and guest.revisions_before[0] < guest.target_revision:
        right = (guest.revisions_before[0], guest.target_revision)
        for match in done:
            if (int(match[1], 16), int(match[2], 16)) != right:
                text = f"the kernel printed '{clean(match[0])}' for {right[0]:#x} -> {right[1]:#x}"
                proofs.append(Proof(text=text))
    proofs += _find_wrong_counts(facts, words, messages)
    proofs += _find_wrong_warning(facts, messages)
    began = facts.evidence.scenario.min_revision or any(words.begin.search(message) for message in messages)
    if began and guest.load_errno == 0 and not done and not proofs:
        proofs.append(Proof(text="the write succeeded but the kernel did not say so"))
    if proofs:
        return broken_unless(name, proofs, why_starved(facts))
    if guest.load_errno:
        return unseen(name, "the write to reload did not return")
    gap = _why_not_covered(facts, guest.dmesg)
    seen = facts.evidence.observer
    if facts.evidence.scenario.engine is Engine.CPUID_CHANGES and seen is not None and seen.cpuid_missed:
        gap = f"{seen.cpuid_missed} CPUIDs could not show the changed feature: each ends its block"
    if not guest.revisions_before or guest.revisions_before[0] >= guest.target_revision:
        gap = "sysfs named no older revision of CPU 0 before, so the right numbers are not known"
    return unseen(name, gap) if gap else held(name, f"errno 0, and the kernel said '{clean(done[0][0])}'")


def _find_wrong_warning(facts: Facts, messages: list[str]) -> list[Proof]:
    """Say where a kernel is silent of features that have changed, or tells of some that have not."""
    told = [clean(message) for message in messages if _FEATURES_CHANGED.search(message)]
    if facts.evidence.scenario.engine is not Engine.CPUID_CHANGES:
        return [Proof(text=f"the kernel said '{message}', and none has changed") for message in told]
    observer = facts.evidence.observer
    if told or observer is None or observer.cpuid_missed:
        return []
    return [Proof(text="the kernel did not warn that the update changed the CPU's features")]


def _judge_failure(facts: Facts, guest: GuestEvidence, words: Words, messages: list[str]) -> Invariant:
    """Hold when the kernel reports that a core did not take the update, by errno and in its log, and claims nothing."""
    name = "errno-and-messages"
    engine, right = facts.evidence.scenario.engine, facts.base.failed_errno
    what = f"though the engine {_ENGINE_DID[engine]}"
    proofs = []
    if guest.load_errno not in (right, -1):
        ended = f"failed with errno {guest.load_errno} instead of {right}" if guest.load_errno else "succeeded"
        proofs.append(Proof(text=f"the write to reload {ended}, {what}"))
    failed = [message for message in messages if words.failed.search(message)]
    if not failed:
        proofs.append(Proof(text=f"the kernel did not say that the load failed, {what}"))
    done = [message for message in messages if words.done.search(message)]
    # Since 6.7 it tells the revisions of CPU 0 wherever a core was updated.
    partly = engine is Engine.ONE_CORE and facts.base.loader is Loader.SINCE_6_7
    if not partly:
        proofs += [Proof(text=f"the kernel said '{clean(message)}', {what}") for message in done]
    proofs += _find_wrong_counts(facts, words, messages)
    if proofs:
        return broken_unless(name, proofs, why_starved(facts))
    if guest.load_errno < 0:
        return unseen(name, "the write to reload did not return")
    gap = _why_not_covered(facts, guest.dmesg)
    return unseen(name, gap) if gap else held(name, f"errno {right}, and the kernel said '{clean(failed[-1])}'")


def _of_first_load(words: Words, messages: list[str]) -> list[str]:
    begins = [number for number, message in enumerate(messages) if words.begin.search(message)]
    return messages[: begins[1]] if len(begins) > 1 else messages


def _leave_out_unknown_nmis(facts: Facts, lines: Iterable[str]) -> list[str]:
    """Return lines without the complaints of unknown NMIs that entries account for: all when records were lost.

    Of each CPU there may be as many as it entered NMIs that did not lead to the mechanism, but no more than the lab
    sent it: one that the kernel sent itself, it has to know. Ratelimiting leaves fewer.
    """
    left = {cpu: _count_unknown(facts, cpu) for cpu in facts.online}
    left_too = dict.fromkeys(_UNKNOWN_NMI_TOO, sum(left.values()))
    kept = []
    for line in lines:
        message = message_of(line)
        match = _UNKNOWN_NMI.search(message)
        if match is not None and (facts.lost or left.get(int(match[1]), 0) > 0):
            left[int(match[1])] = left.get(int(match[1]), 0) - 1
        elif (known := _find_known(message)) is not None and (facts.lost or left_too[known] > 0):
            left_too[known] -= 1
        else:
            kept.append(line)
    return kept


def _count_unknown(facts: Facts, cpu: int) -> int:
    entered = len(facts.every_of_kind(EventKind.NMI_ENTRY, cpu)) - len(facts.consumed(cpu))
    return entered if why_log_doubted(facts) else min(entered, len(facts.sent_to(cpu)))


def _find_known(message: str) -> re.Pattern[str] | None:
    return next((known for known in _UNKNOWN_NMI_TOO if known.search(message)), None)


def _find_wrong_counts(facts: Facts, words: Words, messages: Iterable[str]) -> list[Proof]:
    if words.updated is None:
        return []
    engine = facts.evidence.scenario.engine
    cores = [core for core in facts.cores if is_taken_by(engine, core)]
    right = (len(cores), sum(facts.topology.core_of(vcpu) in cores for vcpu in facts.online) - len(cores))
    told = [match for message in messages if (match := words.updated.search(message))]
    return [
        Proof(text=f"the kernel printed '{clean(match[0])}' for {right[0]} and {right[1]}")
        for match in told
        if (int(match[1]), int(match[2])) != right
    ]


def _why_not_covered(facts: Facts, lines: Iterable[str]) -> str:
    words = WORDS[facts.base.loader]
    messages = [message_of(line) for line in lines]
    # A kernel that looks at least revisions has nothing to warn of, and says nothing before the load.
    silent = facts.evidence.scenario.min_revision
    warned = any(words.begin.search(message) for message in messages)
    marked = facts.base.needs_mark and LOAD_MARK in messages
    if silent and warned:
        return "the kernel warned that it looks at no least revision, though it was to"
    if not silent and not warned and not marked:
        return "the kernel's log does not show the load's beginning"
    if not any(words.done.search(message) or words.failed.search(message) for message in messages):
        return "the kernel's log does not show the load's end"
    return ""
