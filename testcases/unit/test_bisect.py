# SPDX-License-Identifier: GPL-2.0-or-later
"""A bisection over a real git history. The trees are small, and what tries a commit is a program of this file."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from lab.bisect.bisection import Bisected, bisect, claim, recover
from lab.bisect.history import find_range, is_bisecting
from lab.bisect.step import Asked, Standing, Step, Tried, read_step, weigh, write_step
from lab.build.git_tree import read_commit
from lab.errors import EvidenceError, LabError, UsageError
from lab.host.paths import ROOT
from lab.model.scenario import Scenario
from lab.model.verdict import Outcome

COMMITS = 8
SCENARIO = Scenario(mechanism="stock-nmi")
#: Tries a commit by what is in its file ``standing``; notes each try.
STEP = """\
import os, sys, time
from pathlib import Path
from lab.bisect.step import STATUS, Standing, Step, write_step, read_asked, read_step
from lab.build.git_tree import read_commit
folder = Path(sys.argv[1])
asked = read_asked(folder)
commit = read_commit(Path(asked.tree))
found = read_step(folder, commit)
if found is None:
    with open(folder / "tries", "a") as tries:
        tries.write(commit + "\\n")
    standing = Standing(Path("standing").read_text().split()[0])
    found = Step(commit=commit, standing=standing, reason="as the file says")
    write_step(folder, found)
print(f"lab: {commit[:12]} is {found.standing.value}: {found.reason}", flush=True)
sys.exit(STATUS[found.standing])
"""
#: Notes its process, and runs until its lifeline is cut.
WAIT = """\
import os, sys
from pathlib import Path
(Path(sys.argv[1]) / "pid").write_text(str(os.getpid()))
os.read(int(sys.argv[2]), 1)
sys.exit(130)
"""


def git(tree: Path, *words: str) -> str:
    who = ["-c", "user.name=Tester", "-c", "user.email=tester@example.invalid"]
    environment = {**os.environ, "GIT_CONFIG_GLOBAL": os.devnull}
    command: list[str | Path] = ["git", "-C", tree, *who, *words]
    return subprocess.run(command, env=environment, check=True, capture_output=True, timeout=60).stdout.decode().strip()


Make = Callable[..., tuple[Path, list[str]]]


@pytest.fixture
def make_tree(tmp_path: Path) -> Make:
    def make(*standings: str) -> tuple[Path, list[str]]:
        tree = tmp_path / "linux"
        tree.mkdir()
        git(tree, "init", "--quiet", "--initial-branch=main")
        (tree / "Makefile").write_text("# SPDX-License-Identifier: GPL-2.0\nVERSION = 6\nPATCHLEVEL = 12\n")
        (tree / "Kconfig").write_text('mainmenu "Small"\n')
        # A file of a tree must not shadow the lab's or Python's own.
        (tree / "msgspec.py").write_text("raise SystemExit(0)\n")
        commits = []
        for number, standing in enumerate(standings):
            (tree / "standing").write_text(f"{standing} {number}\n")
            git(tree, "add", "--all")
            git(tree, "commit", "--quiet", "--message", f"change {number}")
            commits.append(git(tree, "rev-parse", "HEAD"))
        return tree, commits

    return make


def make_asked(tree: Path, good: str, bad: str) -> Asked:
    return Asked(tree=str(tree), good=good, bad=bad, scenario=SCENARIO, trials=3, retries=2, seed=1)


def make_step(folder: Path, text: str = STEP) -> tuple[str, ...]:
    program = folder / "step.py"
    program.write_text(text)
    return (sys.executable, "-P", str(program), str(folder / "out"))


def run(tmp_path: Path, tree: Path, commits: list[str]) -> Bisected:
    (tmp_path / "out").mkdir(exist_ok=True)
    claim(tmp_path / "out", make_asked(tree, commits[0], commits[-1]))
    return bisect(tmp_path / "out", find_range(tree, commits[0], commits[-1]), print, make_step(tmp_path))


def list_tries(tmp_path: Path) -> list[str]:
    return (tmp_path / "out/tries").read_text().split()


@pytest.mark.parametrize("first_bad", range(1, COMMITS))
def test_each_first_bad_commit_is_found_and_the_tree_is_as_it_was(
    first_bad: int, make_tree: Make, tmp_path: Path
) -> None:
    tree, commits = make_tree(*["good"] * first_bad, *["bad"] * (COMMITS - first_bad))
    found = run(tmp_path, tree, commits)
    assert found.first_bad is not None
    assert (found.first_bad.commit, found.first_bad.subject) == (commits[first_bad], f"change {first_bad}")
    assert found.before is not None
    assert found.before.commit == commits[first_bad - 1]
    assert len(list_tries(tmp_path)) == len(set(list_tries(tmp_path))) <= 2 + 3
    assert [each.commit for each in found.tried] == list_tries(tmp_path)
    assert git(tree, "symbolic-ref", "--short", "HEAD") == "main"
    assert git(tree, "status", "--porcelain") == ""
    assert not is_bisecting(tree)


def test_a_commit_that_shows_nothing_is_skipped(make_tree: Make, tmp_path: Path) -> None:
    tree, commits = make_tree("good", "good", "skipped", "bad", "bad", "bad")
    found = run(tmp_path, tree, commits)
    if found.first_bad is None:
        assert set(found.suspects) == {commits[2], commits[3]}
    assert commits[2] in found.suspects
    assert commits[3] in found.suspects
    assert "2 commits are left" in found.reason
    assert not is_bisecting(tree)


def test_an_end_that_shows_nothing_ends_it(make_tree: Make, tmp_path: Path) -> None:
    tree, commits = make_tree("skipped", "good", "bad")
    found = run(tmp_path, tree, commits)
    assert found.first_bad is None
    assert "the good commit cannot be judged" in found.reason
    assert not is_bisecting(tree)


@pytest.mark.parametrize(
    ("standings", "said"),
    [(("bad", "bad", "bad"), "--good [0-9a-f]{12} is bad"), (("good", "good"), "--bad .* is good")],
)
def test_an_end_that_is_the_contrary_is_refused(
    standings: tuple[str, ...], said: str, make_tree: Make, tmp_path: Path
) -> None:
    tree, commits = make_tree(*standings)
    with pytest.raises(UsageError, match=said):
        run(tmp_path, tree, commits)
    assert not is_bisecting(tree)
    assert git(tree, "symbolic-ref", "--short", "HEAD") == "main"


def test_what_aborted_an_earlier_try_is_not_told_again(make_tree: Make, tmp_path: Path) -> None:
    tree, commits = make_tree("good", "aborted", "bad")
    with pytest.raises(LabError, match="as the file says"):
        run(tmp_path, tree, commits)
    silent = make_step(tmp_path, "import sys; sys.exit(200)")
    with pytest.raises(LabError, match="bisect run failed: exit code 200"):
        bisect(tmp_path / "out", find_range(tree, commits[0], commits[-1]), print, silent)


def test_an_error_aborts_and_a_second_try_goes_on_where_it_was(make_tree: Make, tmp_path: Path) -> None:
    tree, commits = make_tree("good", "good", "aborted", "bad", "bad")
    with pytest.raises(LabError, match="is aborted: as the file says"):
        run(tmp_path, tree, commits)
    assert not is_bisecting(tree)
    assert read_step(tmp_path / "out", commits[2]) is None
    tried = list_tries(tmp_path)
    assert tried[-1] == commits[2]
    write_step(tmp_path / "out", Step(commit=commits[2], standing=Standing.GOOD, reason="mended"))
    found = run(tmp_path, tree, commits)
    assert found.first_bad is not None
    assert found.first_bad.commit == commits[3]
    assert len(set(list_tries(tmp_path))) == len(list_tries(tmp_path)), "no commit was tried twice"


def start_waiting(tmp_path: Path, tree: Path, commits: list[str]) -> tuple[subprocess.Popen[bytes], int]:
    """Start a bisection whose first step between the ends waits, and return it and the step's process."""
    (tmp_path / "out").mkdir()
    claim(tmp_path / "out", make_asked(tree, commits[0], commits[-1]))
    for commit, standing in ((commits[0], Standing.GOOD), (commits[-1], Standing.BAD)):
        write_step(tmp_path / "out", Step(commit=commit, standing=standing, reason="known"))
    read = "found = read_step(folder, commit)"
    step = make_step(tmp_path, STEP.replace(read, f"{read}\nif found is None:\n    exec({WAIT!r})"))
    program = (
        "import signal, sys; from pathlib import Path\n"
        "from lab.bisect.bisection import bisect; from lab.bisect.history import find_range\n"
        "signal.signal(signal.SIGTERM, signal.default_int_handler)\n"
        f"bisect(Path({str(tmp_path / 'out')!r}), find_range(Path({str(tree)!r}), {commits[0]!r}, {commits[-1]!r}),"
        f" [].append, {step!r})"
    )
    process = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stderr=subprocess.DEVNULL)
    pid = tmp_path / "out/pid"
    wait_until(lambda: pid.exists() and bool(pid.read_text()))
    return process, int(pid.read_text())


def wait_until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)


def is_gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_leaves_no_process_and_no_bisection(
    number: signal.Signals, make_tree: Make, tmp_path: Path
) -> None:
    tree, commits = make_tree("good", "good", "bad", "bad")
    process, step = start_waiting(tmp_path, tree, commits)
    assert is_bisecting(tree)
    process.send_signal(number)
    process.wait(60)
    assert is_gone(step)
    assert not is_bisecting(tree)
    assert git(tree, "symbolic-ref", "--short", "HEAD") == "main"


def test_a_kill_leaves_no_process_and_the_next_bisection_goes_on(make_tree: Make, tmp_path: Path) -> None:
    tree, commits = make_tree("good", "good", "bad", "bad")
    process, step = start_waiting(tmp_path, tree, commits)
    process.kill()
    process.wait(60)
    wait_until(lambda: is_gone(step))
    with pytest.raises(UsageError, match="is being bisected"):
        find_range(tree, commits[0], commits[-1])
    recover(tmp_path / "elsewhere", tree)
    assert is_bisecting(tree), "a bisection of another folder is not this one's to end"
    recover(tmp_path / "out", tree)
    assert git(tree, "symbolic-ref", "--short", "HEAD") == "main"
    found = run(tmp_path, tree, commits)
    assert found.first_bad is not None
    assert found.first_bad.commit == commits[2]
    assert commits[0] not in list_tries(tmp_path)


def bisect_by_command(*words: str | Path) -> subprocess.CompletedProcess[str]:
    command = (sys.executable, "-m", "lab.cli", "bisect", "--scenario", "upstream", *map(str, words))
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize(
    ("change", "words", "said"),
    [
        ("", ("--good", "main", "--bad", "nonesuch"), "--bad 'nonesuch' is no commit"),
        ("", ("--good", "--all", "--bad", "main"), "--good '--all' is no commit"),
        ("", ("--good", "main", "--bad", "main~1"), "is not an ancestor"),
        ("", ("--good", "main", "--bad", "main"), "are the same commit"),
        ("dirty", ("--good", "main~1", "--bad", "main"), "has changed or untracked files"),
        ("untracked", ("--good", "main~1", "--bad", "main"), "has changed or untracked files"),
        ("bisecting", ("--good", "main~1", "--bad", "main"), "is being bisected"),
        ("no linux", ("--good", "main~1", "--bad", "main"), "is not one of Linux"),
        ("inside", ("--good", "main~1", "--bad", "main"), "is inside the tree"),
        ("other", ("--good", "main~1", "--bad", "main"), "may not replace"),
        ("", ("--good", "main~1", "--bad", "main", "--trials", "0"), "trials"),
        ("", ("--good", "main~1", "--bad", "main", "--config", "nonesuch"), "'nonesuch' is not there"),
        ("", ("--good", "main~1", "--bad", "main", "--scenario", "upstrem"), "did you mean 'upstream'"),
    ],
)
def test_what_cannot_be_bisected_is_refused(
    change: str, words: tuple[str, ...], said: str, make_tree: Make, tmp_path: Path
) -> None:
    tree, _ = make_tree("good", "bad")
    out = tmp_path / "out"
    match change:
        case "dirty":
            (tree / "standing").write_text("changed")
        case "untracked":
            (tree / "new").write_text("new")
        case "bisecting":
            git(tree, "bisect", "start")
        case "no linux":
            git(tree, "rm", "--quiet", "Kconfig")
            git(tree, "commit", "--quiet", "--message", "gone")
        case "inside":
            out = tree / ".git" / "out"
        case "other":
            out.mkdir()
            (out / "file").write_text("of the user")
    done = bisect_by_command("--tree", tree, "--out", out, *words)
    assert done.returncode == 2
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert is_bisecting(tree) == (change == "bisecting")


def test_a_folder_of_another_bisection_is_refused(make_tree: Make, tmp_path: Path) -> None:
    tree, commits = make_tree("good", "good", "bad")
    out = tmp_path / "out"
    out.mkdir()
    assert not claim(out, make_asked(tree, commits[0], commits[2]))
    assert claim(out, make_asked(tree, commits[0], commits[2]))
    with pytest.raises(UsageError, match="is of another bisection"):
        claim(out, make_asked(tree, commits[1], commits[2]))


def tried(*outcomes: Outcome) -> tuple[Tried, ...]:
    return tuple(Tried(outcome=each, seed=1, reason="r", evidence="") for each in outcomes)


@pytest.mark.parametrize(
    ("outcomes", "wanted"),
    [
        ((Outcome.PASS, Outcome.PASS), Standing.GOOD),
        ((Outcome.PASS,), None),
        ((Outcome.INVALID, Outcome.INVALID, Outcome.INVALID), None),
        ((Outcome.PASS, Outcome.INVALID, Outcome.PASS), Standing.GOOD),
        ((Outcome.PASS, Outcome.FAIL), Standing.BAD),
        ((Outcome.INVALID, Outcome.ERROR), Standing.ABORTED),
        ((), None),
    ],
)
def test_a_commit_is_what_its_trials_are(outcomes: tuple[Outcome, ...], wanted: Standing | None) -> None:
    found = weigh(tried(*outcomes), 2)
    assert (found[0] if found is not None else None) is wanted


def test_a_crash_of_a_step_is_no_verdict_on_a_commit(tmp_path: Path) -> None:
    for words in ((str(tmp_path), "0"), (), ("x", "y")):
        command = (sys.executable, "-m", "lab.cli.bisect_step", *words)
        done = subprocess.run(command, cwd=ROOT, capture_output=True, timeout=60, check=False, stdin=subprocess.PIPE)
        assert done.returncode >= 128


def test_a_damaged_note_is_none(tmp_path: Path) -> None:
    (tmp_path / "steps").mkdir()
    write_step(tmp_path, Step(commit="a" * 40, standing=Standing.BAD, reason=""))
    (tmp_path / "steps" / ("a" * 40 + ".json")).write_text("{}")
    with pytest.raises(EvidenceError, match="is none of this lab's"):
        read_step(tmp_path, "a" * 40)


def test_a_step_reads_the_commit_that_is_checked_out(make_tree: Make) -> None:
    tree, commits = make_tree("good", "bad")
    assert read_commit(tree) == commits[-1]
