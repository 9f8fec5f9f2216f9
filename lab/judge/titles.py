# SPDX-License-Identifier: GPL-2.0-or-later
"""One title for what went wrong in a guest, from its console or dmesg: equal failures get the same.

What is a complaint at all is told by the table of lab.judge.dmesg; here each gets its words. A title names the function
it happened in and never a number, an address, a CPU or a task. Messages are those of Linux 6.1 and 6.12.
"""

import enum
import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Final, NamedTuple

from lab.judge.dmesg import classify, message_of

#: Room for a column of a table and a key of a store.
MAX_TITLE: Final = 120
#: An oops of a deep stack has some 60 lines, a stall that dumps several CPUs twice as many.
MAX_REPORT_LINES: Final = 200
#: A guest may print anything for ever; complaints behind so many others are consequences.
_MAX_REPORTS: Final = 64
_MAX_FUNCTION: Final = 60
_MAX_LINE: Final = 1_000

#: What a kernel prints for each NMI that the lab sends it where no ledger of ours claims it, and what a slow host makes
#: it print of itself: the title only where nothing else went wrong.
WEAK: Final = frozenset({"unknown NMI", "slow NMI handler", "clocksource"})


class _Where(enum.Enum):
    """Where the function is named."""

    NOWHERE = enum.auto()
    #: In the complaint's own line.
    LINE = enum.auto()
    #: In the first kernel RIP below it.
    RIP = enum.auto()
    #: In the first frame of the stack below it that did not only wait or print.
    STACK = enum.auto()


class _Rule(NamedTuple):
    """How complaints of one kind are called.

    :param title: may have ``{text}`` of the pattern; " in FUNC" is added where one is found
    """

    pattern: re.Pattern[str]
    title: str
    where: _Where


def _rule(pattern: str, title: str, where: _Where = _Where.NOWHERE) -> _Rule:
    return _Rule(re.compile(pattern, re.ASCII), title, where)


#: A symbol as %pS prints it; at the beginning of nothing longer.
_NAME: Final = r"(?P<func>[A-Za-z_][A-Za-z0-9_.]{0,200})\+0x[0-9a-f]+/0x[0-9a-f]+"

#: The first that matches counts; one without any is called by its family.
_RULES: Final = (
    _rule(r"^Kernel panic - .*: Microcode load: Primary CPU \d+ timed out", "Microcode load: primary CPU timed out"),
    _rule(r"^Kernel panic - not syncing:? *(?P<text>.*)", "kernel panic: {text}"),
    _rule(r"soft lockup", "soft lockup", _Where.RIP),
    _rule(r"Watchdog detected hard LOCKUP", "hard lockup", _Where.RIP),
    _rule(r"^BUG: workqueue lockup", "workqueue lockup"),
    _rule(r"^rcu: ", "RCU stall", _Where.RIP),
    _rule(r"^INFO: task ", "INFO: task hung", _Where.STACK),
    _rule(r"^microcode: Timeout while waiting for CPUs", "Timeout while waiting for CPUs rendezvous"),
    _rule(r"^microcode: (?P<text>.*)", "microcode: {text}"),
    _rule(r"^INFO: NMI handler \((?P<func>[A-Za-z_][A-Za-z0-9_.]{0,200})", "NMI handler took too long", _Where.LINE),
    _rule(r"^clocksource: ", "clocksource unstable"),
    _rule(rf"^BUG: (?P<text>K[A-Z]{{3,5}}: [a-z -]{{1,60}}?) in {_NAME}", "BUG: {text}", _Where.LINE),
    _rule(r"^BUG: kernel NULL pointer dereference", "BUG: kernel NULL pointer dereference", _Where.RIP),
    _rule(r"^BUG: unable to handle", "BUG: unable to handle page fault", _Where.RIP),
    _rule(r"^BUG: scheduling while atomic", "BUG: scheduling while atomic", _Where.STACK),
    _rule(r"^kernel BUG at ", "kernel BUG", _Where.RIP),
    _rule(r"^\[ ?BUG: (?P<text>.*?) ?\]$", "BUG: {text}"),
    _rule(r"^BUG: (?P<text>.*)", "BUG: {text}"),
    _rule(rf"^WARNING: CPU: \d+ PID: \d+ at (?:\S+:\d+ )?{_NAME}", "WARNING", _Where.LINE),
    _rule(r"^WARNING: CPU: ", "WARNING", _Where.RIP),
    _rule(r"^\[ ?WARNING: (?P<text>.*?) ?\]$", "WARNING: {text}"),
    _rule(r"^WARNING: (?P<text>.*)", "WARNING: {text}"),
    _rule(rf"^unchecked MSR access error: .* at rIP: 0x[0-9a-f]+ \({_NAME}", "unchecked MSR access error", _Where.LINE),
    _rule(r"^(?:PANIC: )?double fault", "double fault", _Where.RIP),
    # 6.12 puts "Oops: " before what 6.1 prints alone.
    _rule(r"^(?:Oops: )?(?P<text>[a-z][a-z ]{2,40}[a-z])(?:, .*)?: [0-9a-f]{4} \[#\d+\]", "{text}", _Where.RIP),
    _rule(r"^(?P<text>general protection fault|stack segment)", "{text}", _Where.RIP),
    _rule(r"^Oops\b", "Oops", _Where.RIP),
    _rule(r"^UBSAN: (?P<text>[a-z -]{1,60}?)(?: in |$)", "UBSAN: {text}", _Where.STACK),
)  # fmt: skip

#: What the kernel prints at the beginning of each line; behind user space's own text where that ended no line.
_STAMP: Final = re.compile(r"\[ {0,9}\d{1,12}\.\d{6}\](?:\[ {0,9}(?P<caller>[TC]\d{1,10})\])? ?", re.ASCII)

#: A line that a reader or user space's text has cut within such a word is looked at together with the next.
_HEADS: Final = (
    "Kernel panic - not syncing: ", "watchdog: BUG: soft lockup", "BUG: kernel NULL pointer dereference",
    "BUG: unable to handle", "kernel BUG at ", "WARNING: CPU: ", "general protection fault", "invalid opcode: 0000 [#",
    "divide error: 0000 [#", "rcu: INFO: rcu_sched self-detected stall", "microcode: Timeout while waiting for CPUs",
    "Uhhuh. NMI received",
)  # fmt: skip
#: Fewer characters are any word's beginning.
_MIN_HEAD: Final = 6

_RIP: Final = re.compile(rf"^RIP: 0010:{_NAME}", re.ASCII)
#: Frames that the unwinder is not sure of begin with "? ".
_FRAME: Final = re.compile(rf"^ {{1,4}}{_NAME}(?: \[|$)", re.ASCII)
#: What waits, prints or yields for others: the place is whoever called it.
_PASSED_THROUGH: Final = re.compile(
    r"^(?:_{0,3}schedule\w*|preempt_schedule\w*|_?_?cond_resched|io_schedule\w*|(?:__|do_)?wait_for_common|(?:usleep|msleep)\w*"
    r"|_{0,3}wait_for_completion\w*|__?down\w*|down(?:_read|_write)?\w*|rwsem_\w+|_{0,3}mutex_lock\w*|_raw_\w+|native_queued_\w+"
    r"|queued_\w+|dump_stack\w*|show_stack|_{0,2}warn\w*|ubsan_\w+|__ubsan\w*|rcu_momentary\w+|stop_machine_yield|delay_\w+"
    r"|_{0,2}(?:const_)?udelay|_{0,2}delay|cpu_relax|bit_wait\w*|__wait_on_bit\w*|out_of_line_wait_on_bit\w*)$",
    re.ASCII,
)
#: What a compiler appends to a function that it split, specialised or made cold.
_CLONE: Final = re.compile(r"(?:\.(?:cold|part|isra|constprop|llvm|lto_priv)(?:\.\d+)?)+$", re.ASCII)
#: A stopper thread that spins for the others is the victim of whoever does not come.
_STOPPER: Final = re.compile(r"soft lockup - .*\[migration/\d+:\d+\]", re.ASCII)
#: Numbers in any base.
_NUMBER: Final = re.compile(r"\b(?:0x)?[0-9a-f]*[0-9][0-9a-f]*\b|[0-9]+", re.ASCII | re.IGNORECASE)


class _Line(NamedTuple):
    """One line, parted.

    :param caller: T and a task or C and a CPU, empty where the kernel does not say
    """

    caller: str
    message: str


class _Report(NamedTuple):
    """Where one complaint begins.

    :param message: its first line, put together again where it was cut
    """

    at: int
    message: str
    family: str


def find_title(lines: Iterable[str], *, weak: bool = True) -> str:
    """Return the title of what went wrong first, empty when nothing did.

    A panic that follows an oops is its consequence. Complaints in WEAK count only where there is no other.

    :param weak: take one of those at all
    """
    parted = _part(lines)
    report = _find_first(parted)
    return _make_title(parted, report) if report is not None and (weak or report.family not in WEAK) else ""


def cut_report(lines: Sequence[str]) -> tuple[str, ...]:
    """Return the lines that a title is made of: from the complaint on, at most MAX_REPORT_LINES; empty for none."""
    report = _find_first(_part(lines))
    return tuple(lines[report.at : report.at + MAX_REPORT_LINES]) if report is not None else ()


def name_function(symbol: str) -> str:
    """Return a function of ``symbol+0x..`` without offset and what the compiler appended; empty for no name at all."""
    name = symbol.partition("+")[0]
    return _CLONE.sub("", name)[:_MAX_FUNCTION] if re.fullmatch(r"[A-Za-z_][A-Za-z0-9_.]*", name, re.ASCII) else ""


def bound_title(text: str) -> str:
    """Return a text as a title may be: printable ASCII, without numbers, of bounded length."""
    return _cut(_NUMBER.sub("N", _clean(text)))


def _part(lines: Iterable[str]) -> list[_Line]:
    return [_part_line(line[:_MAX_LINE]) for line in lines]


def _part_line(line: str) -> _Line:
    stamp = _STAMP.search(line)
    if stamp is None:
        return _Line("", message_of(line))
    return _Line(stamp["caller"] or "", message_of(line[stamp.start() :]))


def _find_first(lines: Sequence[_Line]) -> _Report | None:
    reports = list(itertools.islice(_find_reports(lines), _MAX_REPORTS))
    strong = [report for report in reports if report.family not in WEAK]
    if strong and _STOPPER.search(strong[0].message):
        stuck = (one for one in strong if one.family == strong[0].family and not _STOPPER.search(one.message))
        return next(stuck, strong[0])
    return next(iter(strong or reports), None)


def _find_reports(lines: Sequence[_Line]) -> Iterator[_Report]:
    for at, line in enumerate(lines):
        message = _mend(lines, at)
        family = classify(message)
        if family is not None:
            yield _Report(at, message, family.name)
        elif message is not line.message and (family := classify(line.message)) is not None:
            yield _Report(at, line.message, family.name)


def _mend(lines: Sequence[_Line], at: int) -> str:
    """Return a message whole that was cut within the words that it is known by, or a panic's whose reason is behind."""
    message = lines[at].message
    if at + 1 == len(lines) or len(message) < _MIN_HEAD:
        return message
    following = lines[at + 1]
    if following.caller not in ("", lines[at].caller):
        return message
    cut = any(head.startswith(message) or (head == _HEADS[0] and head.rstrip() == message.rstrip()) for head in _HEADS)
    return message + following.message if cut else message


def _make_title(lines: Sequence[_Line], report: _Report) -> str:
    found = next(((rule, match) for rule in _RULES if (match := rule.pattern.search(report.message))), None)
    if found is None:
        return _cut(report.family)
    rule, match = found
    groups = match.groupdict()
    text = bound_title(groups.get("text") or "")
    title = rule.title.format(text=text).rstrip(": ")
    function = name_function(groups.get("func") or "") or _find_function(lines, report.at, rule.where)
    room = MAX_TITLE - len(function) - len(" in ")
    return f"{title[:room]} in {function}" if function else _cut(title)


def _find_function(lines: Sequence[_Line], at: int, where: _Where) -> str:
    if where not in (_Where.RIP, _Where.STACK):
        return ""
    below = lines[at + 1 : at + 1 + MAX_REPORT_LINES]
    # Several CPUs print at the same time: the caller's own lines first.
    for part in ([line for line in below if line.caller == lines[at].caller], below):
        names = _list_frames(part) if where is _Where.STACK else _list_rip_and_frames(part)
        function = next((name for name in names if not _PASSED_THROUGH.match(name)), "")
        if function:
            return function
    return ""


def _list_rip_and_frames(lines: Sequence[_Line]) -> Iterator[str]:
    """Yield the function of the first kernel RIP, and the frames below it."""
    for at, line in enumerate(lines):
        if match := _RIP.search(line.message):
            yield name_function(match["func"])
            yield from _list_frames(lines[at + 1 :])
            return


def _list_frames(lines: Sequence[_Line]) -> Iterator[str]:
    for line in lines:
        if match := _FRAME.search(line.message):
            yield name_function(match["func"])


def _clean(text: str) -> str:
    return " ".join("".join(char if " " <= char <= "~" else " " for char in text[: 4 * MAX_TITLE]).split())


def _cut(text: str) -> str:
    return text if len(text) <= MAX_TITLE else text[: MAX_TITLE - 3] + "..."
