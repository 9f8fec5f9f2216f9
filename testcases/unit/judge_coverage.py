# SPDX-License-Identifier: GPL-2.0-or-later
"""Whether each invariant of the judge is needed: taken out, a test must go red (``make judge-coverage``).

As a pytest plugin (``-p judge_coverage``) it replaces the rule that the environment names by one that always says
*held*; as a program it runs the judge's tests so for each invariant, and first with none taken out. The rules that
several invariants, or the count of proven NMIs, rest on are taken out in the same way.
"""

import concurrent.futures
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

import msgspec
import pytest

from lab.judge import arrival, nmis
from lab.judge import judging as verdict
from lab.judge.arrival import Arrival
from lab.judge.facts import Facts
from lab.judge.finding import held
from lab.judge.judging import INVARIANTS
from lab.model.verdict import Invariant

#: Names the invariant to take out.
TAKEN_OUT: Final = "LAB_JUDGE_WITHOUT"

HERE: Final = Path(__file__).parent
ROOT: Final = HERE.parents[1]
#: All tests of the judge but its properties, which take longer than these together; the plainest first.
TESTS: Final = tuple(
    HERE / f"test_{name}.py"
    for name in (
        "judge_outcomes",
        "judge_updates",
        "judge_images",
        "judge_engine",
        "judge_handlers",
        "judge_entries",
        "judge_clocks",
        "judge_offline",
        "judge_nmis",
        "judge_dmesg",
        "judge_parked",
        "judge_stalled",
        "judge_plain_kernel",
        "judge_edges",
        "judge_phases",
        "judge_accounts",
        "judge_attribution",
        "judge_arrival",
        "judge_untrusted",
        "judge_backtraces",
        "kept_evidence",
    )
)
#: The whole of them takes some ten seconds.
MAX_S: Final = 300.0
PROCESSES: Final = 2

#: Other rules than invariants: where each is, and what says in its place that nothing is wrong.
RULES: Final[dict[str, tuple[object, str, object]]] = {
    "rule:has-left": (Arrival, "has_left", lambda *_: False),
    "rule:has-run-on": (Arrival, "has_run_on", lambda *_: False),
    "rule:is-prompt": (Arrival, "is_prompt", lambda *_: True),
    "rule:dropped": (nmis, "_find_dropped", lambda *_: []),
    "rule:outside": (arrival, "_find_outside", lambda *_: ()),
    "rule:untrusted": (verdict, "why_untrusted", lambda *_: ""),
}

_FAILED = re.compile(r"^FAILED (.+?)(?: - .*)?$", re.MULTILINE)


class Tried(msgspec.Struct, frozen=True, kw_only=True):
    """What came of the tests without one invariant.

    :param without: its name, empty when none was taken out
    :param red: the first test that failed, empty when all passed
    """

    without: str
    red: str
    seconds: float


class NotRun(Exception):
    """The tests could not be run; the text is what pytest said."""


def pytest_configure() -> None:
    """Take out the invariant that the environment names."""
    name = os.environ.get(TAKEN_OUT, "")
    if not name:
        return
    if name in RULES:
        setattr(*RULES[name])
        return
    if name not in INVARIANTS:
        raise pytest.UsageError(f"{TAKEN_OUT} is '{name}': there are {', '.join((*INVARIANTS, *RULES))}")

    def say_held(_: Facts) -> Invariant:
        return held(name, "taken out")

    INVARIANTS[name] = say_held


def try_without(name: str, tests: tuple[Path, ...] = TESTS) -> Tried:
    """Run the judge's tests without an invariant, until the first goes red.

    :param name: empty to take out none
    :raise NotRun: pytest failed otherwise than by a test
    """
    command = [sys.executable, "-m", "pytest", "-p", "judge_coverage", "-p", "no:cacheprovider", "-x", "-q"]
    command += ["--tb=no", "-rf", "--no-header", *map(str, tests)]
    paths = os.pathsep.join(filter(None, (str(HERE), os.environ.get("PYTHONPATH", ""))))
    begin_s = time.monotonic()
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=os.environ | {TAKEN_OUT: name, "PYTHONPATH": paths, "COLUMNS": "500"},
        capture_output=True,
        text=True,
        timeout=MAX_S,
    )
    failed = _FAILED.search(done.stdout)
    if (done.returncode, failed is not None) not in ((0, False), (1, True)):
        raise NotRun(done.stdout + done.stderr)
    seconds = time.monotonic() - begin_s
    return Tried(without=name, red=failed[1] if failed is not None else "", seconds=seconds)


def main() -> int:
    """Print a table and return the exit status: 1 when an invariant can be taken out with all tests green."""
    whole = try_without("")
    if whole.red:
        sys.stdout.write(f"with no invariant taken out {whole.red} fails: mend that first\n")
        return 1
    sys.stdout.write(f"with no invariant taken out all tests are green ({whole.seconds:.1f} s)\n\n")
    names = (*INVARIANTS, *RULES)
    width = max(map(len, names))
    sys.stdout.write(f"{'taken out':{width}} {'s':>5}  first red test\n")
    unneeded = 0
    with concurrent.futures.ThreadPoolExecutor(PROCESSES) as threads:
        for tried in threads.map(try_without, names):
            unneeded += not tried.red
            shown = tried.red.removeprefix(f"{HERE.relative_to(ROOT)}/") or "NONE: all tests are green without it"
            sys.stdout.write(f"{tried.without:{width}} {tried.seconds:5.1f}  {shown}\n")
            sys.stdout.flush()
    sys.stdout.write(f"\n{len(names) - unneeded} of {len(names)} invariants and rules are needed by a test\n")
    return 1 if unneeded else 0


if __name__ == "__main__":
    sys.exit(main())
