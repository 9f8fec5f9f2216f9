# SPDX-License-Identifier: GPL-2.0-or-later
"""A run or campaign as the text of a mail for a kernel list. Pure: values in, text out.

Plain ASCII of WIDTH columns. Only commands are longer, since a reader pastes a command whole.
"""

import textwrap
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

import msgspec

from lab.expected.tally import MechanismResult, Tally
from lab.model.evidence import Images
from lab.model.verdict import Outcome
from lab.report.answer import RISK, answer
from lab.report.statistics import compute_interval
from lab.report.story import LAB, WEIGHTY, Story
from lab.report.text import clean

WIDTH: Final = 72
#: More than these are counted, and not told.
MAX_SCENARIOS: Final = 40
MAX_FAILURES: Final = 8
MAX_STORY_ROWS: Final = 12
#: How many of them are breaks, so that there is room for what led to them.
MAX_BREAKS: Final = 5
MAX_SCENARIO_LINES: Final = 200
MAX_IMAGES: Final = 8
#: Lists refuse mail of 100 kB and more.
MAX_BYTES: Final = 64_000
#: A text of others takes at most so many characters of the mail.
_MAX_TEXT_CHARS: Final = 500
_ID_DIGITS: Final = 16

_LIMITS: Final = (
    "This shows ordering under an emulator (QEMU's TCG). It does not show what silicon does.",
    "An INVALID trial shows nothing, for or against the kernel.",
    "A window is a stretch of host time that the lab makes. Compare durations with each other, not with hardware.",
    "NMIs enter between blocks of translated code, never inside a block.",
    "A mechanism without a failure here may still fail: the bounds say how often, at 95 % confidence.",
)


class ScenarioSeen(msgspec.Struct, frozen=True, kw_only=True):
    """One scenario, and what was seen of it.

    :param asked: words of the command line that ask for it
    """

    name: str
    asked: str
    result: MechanismResult


class FailureSeen(msgspec.Struct, frozen=True, kw_only=True):
    """Trials that failed alike, and one of them to tell.

    :param of: trials of the scenarios in which they failed
    :param expected: all are failures of controls, which must fail
    :param seed: of the trial that is told
    :param story: None where its evidence is not kept; ``problem`` then says why
    :param scenario: a scenario file, by symbol and offset; empty as above
    :param own: the kernel is not one that the lab builds
    :param file: how the mail calls the scenario file
    :param caution: what else the reader must know to repeat it, empty for nothing
    """

    title: str
    count: int
    of: int
    scenarios: tuple[str, ...]
    expected: bool
    trial: int
    seed: int
    reason: str
    story: Story | None
    problem: str
    scenario: str
    own: bool = False
    file: str = "failure.toml"
    caution: str = ""

    @property
    def command(self) -> str:
        """What runs the scenario, in the reader's own folder."""
        kernel = " --kernel bzImage --vmlinux vmlinux" if self.own else ""
        return f"lab trial --scenario {self.file}{kernel} --seed {self.seed} --out {self.file.removesuffix('.toml')}"


class Mail(msgspec.Struct, frozen=True, kw_only=True):
    """All that a mail tells.

    :param seed: of the whole, from which the seed of each trial follows; empty where nobody noted it
    :param command: empty for a campaign of a file
    :param seeds: the first and the last of the trials' seeds as they ran; empty without a trial
    :param host: facts about the host by name
    """

    lab_version: str
    started: str
    seed: str
    command: str
    seeds: tuple[int, ...]
    images: tuple[Images, ...]
    host: dict[str, str]
    scenarios: tuple[ScenarioSeen, ...]
    failures: tuple[FailureSeen, ...]


def name_file(failure: FailureSeen, number: int) -> FailureSeen:
    """Return the failure with a name for its scenario file, by its place in the mail."""
    return msgspec.structs.replace(failure, file=f"failure-{number}.toml")


def format_mail(mail: Mail) -> str:
    """Return the mail, its subject in the first line."""
    head = [*_tell_subject(mail), "", *_tell_tested(mail), "", *_tell_seen(mail.scenarios)]
    limits = ["", *_title("Limits"), *(line for each in _LIMITS for line in _wrap(each, "- ", "  "))]
    room = MAX_BYTES - _count(head) - _count(limits)
    failures: list[str] = []
    told = 0
    for number, failure in enumerate(mail.failures[:MAX_FAILURES], 1):
        lines = ["", *_tell_failure(number, failure)]
        if _count(failures) + _count(lines) > room - 4 * WIDTH:
            break
        failures += lines
        told += 1
    if told < len(mail.failures):
        failures += ["", *_wrap(f"{len(mail.failures) - told} more kinds of failure are left out.")]
    if mail.failures:
        failures = ["", *_title("Failures"), *failures[1:]]
    return "\n".join((*head, *failures, *limits)) + "\n"


def _count(lines: Sequence[str]) -> int:
    return sum(len(line) + 1 for line in lines)


def _tell_subject(mail: Mail) -> Iterator[str]:
    trials = sum(each.result.outcomes.trials for each in mail.scenarios)
    bad = sum(not each.result.met for each in mail.scenarios)
    said = f"{bad} of {len(mail.scenarios)} scenarios NOT as expected" if bad else "all as expected"
    said = said if trials else "no trial yet"
    kernels = " and ".join(dict.fromkeys(_plain(each.kernel_release) for each in mail.images[:2]))
    # What is cut off is what matters least.
    tried = f"{trials} trial{'' if trials == 1 else 's'}{f' of {kernels}' if kernels else ''}"
    subject = f"Subject: x86/microcode: {said}, {tried}"
    yield subject if len(subject) <= WIDTH else f"{subject[: WIDTH - 3]}..."


def _tell_tested(mail: Mail) -> Iterator[str]:
    yield from _title("Tested")
    yield from _wrap(f"microcode-nmi-lab {_plain(mail.lab_version)}, begun {_plain(mail.started)}.")
    for images in mail.images[:MAX_IMAGES]:
        build = images.build_id or images.guest_build_id
        named = f"build id {build}" if build else f"no build id, bzImage {images.kernel_sha256[:_ID_DIGITS]}..."
        yield from _wrap(f"Linux {images.kernel_release}, {named}", "- ", "  ")
        yield from _wrap(f"on QEMU {images.qemu_version}, plugin interface {images.plugin_interface}", "  ")
    if len(mail.images) > MAX_IMAGES:
        yield from _wrap(f"{len(mail.images) - MAX_IMAGES} more kernels are left out.", "- ", "  ")
    if not mail.images:
        yield from _wrap("Which kernel and QEMU ran is not noted in this folder.", "- ", "  ")
    facts = [f"{name} {value}" for name, value in mail.host.items() if name not in ("run seed", "qemu")]
    yield from _wrap(f"host: {', '.join(facts) or 'unknown'}", "- ", "  ")
    seeds = f"; trials have seeds {mail.seeds[0]} to {mail.seeds[-1]}" if mail.seeds else ""
    yield from _wrap(f"seed of the whole: {mail.seed or 'not noted'}{seeds}", "- ", "  ")
    if 0 < len(mail.command) <= _MAX_TEXT_CHARS:
        yield from ("- command:", "", _paste(mail.command))


def _tell_seen(scenarios: Sequence[ScenarioSeen]) -> Iterator[str]:
    yield from _title("Seen")
    yield from _wrap(
        "Intervals are of the share of trials, exact (Clopper and Pearson), at 95 % confidence."
        if scenarios
        else "Nothing: no scenario was asked for."
    )
    for each in scenarios[:MAX_SCENARIOS]:
        yield ""
        yield from _tell_scenario(each)
    if len(scenarios) > MAX_SCENARIOS:
        yield from ("", *_wrap(f"{len(scenarios) - MAX_SCENARIOS} more scenarios are left out."))


def _tell_scenario(seen: ScenarioSeen) -> Iterator[str]:
    result, counts = seen.result, seen.result.outcomes
    met = "as expected" if result.met else "NOT AS EXPECTED"
    yield from _wrap(f"{seen.name} (expected: {result.expectation.value}): {met}", "* ", "  ")
    if 0 < len(seen.asked) <= _MAX_TEXT_CHARS:
        yield _paste(f"lab trial {seen.asked} --out DIR")
    numbers = ((Outcome.PASS, counts.passed), (Outcome.FAIL, counts.failed))
    others = ((Outcome.INVALID, counts.invalid), (Outcome.ERROR, counts.error))
    all_told = ", ".join(f"{outcome.value} {count}" for outcome, count in (*numbers, *others))
    yield from _wrap(f"{counts.trials} trials: {all_told}", "  ", "    ")
    yield from _wrap(
        f"FAIL: {_share(counts.failed, counts.passed + counts.failed)} that passed or failed", "  ", "    "
    )
    for name, tally in (("quiet", result.quiet), ("harmless", result.harmless)):
        yield from _wrap(f"{name} broken: {_tell_tally(tally)}", "  ", "    ")
    struck = result.struck
    if struck.sent:
        yield from _wrap(
            f"with an NMI pending on a sibling in its core's window: {struck.trials} trials,"
            f" quiet broken: {_tell_tally(struck.quiet)}",
            "  ",
            "    ",
        )
    headline, sentence = answer(result)
    yield from _wrap(f"{headline}: {sentence}.", "  ", "    ")
    yield from _wrap(f"{result.reason}.", "  ", "    ")


def _tell_tally(tally: Tally) -> str:
    return f"{_share(tally.broken, tally.held + tally.broken)} that could tell"


def _share(count: int, of: int) -> str:
    if not of:
        return "0 of 0"
    low, high = compute_interval(count, of, RISK)
    return f"{count} of {of} ({100 * low:.3g} to {100 * high:.3g} %)"


def _tell_failure(number: int, failure: FailureSeen) -> Iterator[str]:
    yield from _wrap(failure.title or "failed without a title", f"{number}. ", "   ")
    names = ", ".join(failure.scenarios)
    control = " A control, which must fail." if failure.expected else ""
    yield from _wrap(f"{failure.count} of {failure.of} trials of {names}.{control}", "   ")
    yield from _wrap(f"Trial {failure.trial}, seed {failure.seed}: {failure.reason}", "   ")
    if failure.story is None:
        yield from _wrap(f"Its story cannot be told: {failure.problem or 'its evidence is not kept'}.", "   ")
        return
    yield ""
    yield from _tell_story(failure.story)
    lines = failure.scenario.splitlines()
    if len(lines) > MAX_SCENARIO_LINES:
        yield from ("", *_wrap(f"Its scenario has {len(lines)} lines, and is not part of this mail.", "   "))
        return
    yield from ("", *_wrap(f"To repeat it, put this into {failure.file}:", "   "), "")
    yield from (line for each in lines for line in _break(_plain(each)))
    yield from ("", *_wrap("and run:", "   "), "", _paste(failure.command))
    if failure.caution:
        yield from ("", *_wrap(failure.caution, "   "))


def shorten_story(story: Story) -> Story:
    """Return the rows of a whole story that a mail has room for: the first breaks, and what led to them."""
    rows = story.rows
    breaks = [at for at, row in enumerate(rows) if row.broke][:MAX_BREAKS]
    last = breaks[-1] if breaks else len(rows) - 1
    weighty = [at for at, row in enumerate(rows) if row.kind in WEIGHTY and at not in breaks]
    # What came after the last break that is told explains nothing.
    weighty.sort(key=lambda at: (at > last, at))
    near = [at for at in range(last - 1, -1, -1) if at not in breaks and at not in weighty]
    kept = sorted([*breaks, *weighty, *near][:MAX_STORY_ROWS])
    ends = [*kept[1:], len(rows)]
    gaps = {number: end - at - 1 for number, (at, end) in enumerate(zip(kept, ends, strict=True)) if end - at > 1}
    gaps |= {-1: kept[0]} if kept and kept[0] else {}
    return Story(threads=story.threads, rows=tuple(rows[at] for at in kept), gaps=gaps, elsewhere=story.elsewhere)


def _tell_story(story: Story) -> Iterator[str]:
    if -1 in story.gaps:
        yield from _wrap(f"({story.gaps[-1]} left out)", " " * 25)
    for number, row in enumerate(story.rows[:MAX_STORY_ROWS]):
        who = "the lab" if row.who == LAB else f"vCPU {row.who}"
        broke = f" !! breaks {', '.join(row.broke)}" if row.broke else ""
        yield from _wrap(f"{row.text}{broke}", f"{row.at_us:>12.1f} us  {who:8}", " " * 25)
        if number in story.gaps:
            yield from _wrap(f"({story.gaps[number]} left out)", " " * 25)


def _title(text: str) -> tuple[str, str, str]:
    return text, "-" * len(text), ""


def _wrap(text: str, first: str = "", then: str | None = None) -> list[str]:
    """Return lines of WIDTH columns at most; a longer word is cut."""
    return textwrap.wrap(
        _plain(text),
        WIDTH,
        initial_indent=first,
        subsequent_indent=first if then is None else then,
        break_on_hyphens=False,
    )


def _break(line: str) -> Iterable[str]:
    """Yield a line of a scenario file. TOML lets a list go on in the next line, and nothing else."""
    indent = " " * 5
    if len(line) <= WIDTH - len(indent) or "= [" not in line:
        return (f"{indent}{line}".rstrip(),)
    return textwrap.wrap(line, WIDTH, initial_indent=indent, subsequent_indent=f"{indent}  ")


def _paste(command: str) -> str:
    return f"  $ {_plain(command)}"


def _plain(text: str) -> str:
    """Return one line of ASCII without control characters."""
    line = " ".join(clean(text).replace("µ", "u").split())
    line = line.encode("ascii", "backslashreplace").decode()
    return line if len(line) <= _MAX_TEXT_CHARS else f"{line[: _MAX_TEXT_CHARS - 3]}..."
