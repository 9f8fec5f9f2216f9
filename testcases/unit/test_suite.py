# SPDX-License-Identifier: GPL-2.0-or-later
"""How the suite's own options and reports work, on cases whose guests give back kept evidence."""

import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from kept_evidence import FOLDER

from lab.evidence.folder import read_evidence
from lab.host.paths import ROOT
from lab.pytest_plugin.effort import Effort

#: Guests that end each trial at once with evidence of another, under the seed and scenario that were asked for.
HEADER = f"""
import msgspec
import pytest
from pathlib import Path
from lab.evidence.folder import read_evidence
from lab.trial.session import Kept

KEPT = Path({str(FOLDER)!r})

def give_back(scenario, name, seed, reason=None):
    evidence = read_evidence(KEPT / name)
    plan = msgspec.structs.replace(evidence.plan, seed=seed)
    scenario = msgspec.structs.replace(evidence.scenario, mechanism=scenario.mechanism)
    return Kept(msgspec.structs.replace(evidence, plan=plan, scenario=scenario), {{}})

class Replayed:
    def run_trial(self, scenario, plan, keep_files):
        return give_back(scenario, find(scenario, plan.seed), plan.seed)

def find(scenario, seed):
    return scenario.mechanism

@pytest.fixture(scope="session")
def guests():
    return lambda boot: Replayed()
"""
#: Nothing of it may reach a terminal or a file: colours, an end of text, C1, and what turns text around.
HOSTILE = "\\x1b[31mred\\x00\\x9b\\u202e"
UNFIT = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e]")


@dataclass(frozen=True, kw_only=True)
class Case:
    """What JUnit says of one case."""

    took_s: float
    properties: dict[str, str]
    failed: bool


@dataclass(frozen=True, kw_only=True)
class Ran:
    """One run of pytest."""

    status: int
    said: str
    xml: str
    cases: dict[str, Case]


Run = Callable[..., Ran]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    def run(cases: str, *words: str) -> Ran:
        """Run cases with the project's fixtures, as the suite runs its own."""
        file, xml = tmp_path / "test_made.py", tmp_path / "junit.xml"
        file.write_text(HEADER + cases)
        base = ("-p", "conftest", "-p", "no:cacheprovider", "-c", str(ROOT / "pyproject.toml"))
        kept = ("--basetemp", str(tmp_path / "base"), "--junitxml", str(xml))
        done = subprocess.run(
            (sys.executable, "-m", "pytest", *base, *kept, *words, str(file)),
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=120,
            check=False,
        )
        said, text = done.stdout.decode(), xml.read_text() if xml.exists() else ""
        return Ran(status=done.returncode, said=said, xml=text, cases=read_cases(text) if text else {})

    return run


def read_cases(text: str) -> dict[str, Case]:
    found = {}
    for case in ElementTree.fromstring(text).iter("testcase"):
        properties = {each.attrib["name"]: each.attrib["value"] for each in case.iter("property")}
        assert len(properties) == len(list(case.iter("property"))), "each is told once"
        failed, took_s = case.find("failure") is not None, float(case.attrib["time"])
        found[case.attrib["name"]] = Case(took_s=took_s, properties=properties, failed=failed)
    return found


STORMS = """
@pytest.mark.parametrize("name", ["nmi-self", "smi", "stop-machine"])
def test_it(storm, name):
    storm(name, trials=4)
"""


def list_seeds(ran: Ran) -> dict[str, str]:
    return {name: case.properties["seeds"] for name, case in ran.cases.items()}


def test_cases_run_as_many_trials_as_the_command_line_says_with_the_same_seeds_on_each_worker(run: Run) -> None:
    names = ("test_it[nmi-self]", "test_it[smi]", "test_it[stop-machine]")
    assert list_seeds(run(STORMS)) == dict.fromkeys(names, "0 1 2 3")
    asked = ("--lab-seed", "7", "--lab-trials", "6")
    alone, beside = run(STORMS, *asked), run(STORMS, *asked, "-n", "3")
    wanted = " ".join(map(str, Effort(seed=7).draw(6)))
    assert (alone.status, beside.status) == (0, 0), alone.said + beside.said
    assert list_seeds(alone) == list_seeds(beside) == dict.fromkeys(names, wanted)


@pytest.mark.parametrize(("workers", "each_s"), [(0, 3), (3, 9)])
def test_time_is_for_all_cases_together_and_no_case_runs_into_its_timeout_for_it(
    run: Run, workers: int, each_s: int
) -> None:
    ran = run(STORMS, "--lab-for", "9s", "--timeout", "2", "-n", str(workers))
    assert ran.status == 0, ran.said
    assert len(ran.cases) == 3
    for case in ran.cases.values():
        assert len(case.properties["seeds"].split()) > 4
        assert each_s <= case.took_s < each_s + 5


def test_each_trial_is_told_with_its_evidence(run: Run) -> None:
    ran = run(STORMS, "--lab-seed", "7", "--lab-trials", "2")
    told = ran.cases["test_it[stop-machine]"].properties
    first, second = Effort(seed=7).draw(2)
    assert {name: value for name, value in told.items() if not name.endswith((".reason", ".evidence"))} == {
        "seeds": f"{first} {second}",
        "trial-000.mechanism": "stop-machine",
        "trial-000.scenario": "--mechanism stop-machine --topology 1x2x2",
        "trial-000.seed": str(first),
        "trial-000.outcome": "FAIL",
        "trial-001.mechanism": "stop-machine",
        "trial-001.scenario": "--mechanism stop-machine --topology 1x2x2",
        "trial-001.seed": str(second),
        "trial-001.outcome": "FAIL",
    }
    assert "quiet broken" in told["trial-001.reason"]
    evidence = read_evidence(Path(told["trial-001.evidence"]))
    assert (evidence.scenario.mechanism, evidence.plan.seed) == ("stop-machine", second)


@pytest.mark.parametrize(
    ("mechanism", "evidence", "why"),
    [
        ("nmi-self", "'mutant-updates-twice' if seed == 3 else 'nmi-self'", "1 of 4 trials FAIL"),
        ("stop-machine", "'stock-rendezvous-aimed-at-primary'", "not caught: no trial of 4 failed with quiet broken"),
        ("nmi-self", "'nmi-self' if seed == 3 else 'nmi-self-no-nmi-in-window'", "assert 3 <= 2"),
        ("nmi-self", "'nmi-self' if seed > 1 else 'nmi-self-no-nmi-in-window'", ""),
    ],
)
def test_a_storm_is_held_against_what_is_expected(run: Run, mechanism: str, evidence: str, why: str) -> None:
    ran = run(
        f"def find(scenario, seed):\n    return {evidence}\n\ndef test_it(storm):\n    storm({mechanism!r}, trials=4)\n"
    )
    assert ran.status == (1 if why else 0), ran.said
    assert why in ran.said


def test_a_case_that_fails_tells_its_seeds_and_how_to_go_on_and_nothing_unclean(run: Run) -> None:
    ran = run(
        f"""
def find(scenario, seed):
    return "stop-machine" if seed == 12 else "nmi-self"

def test_it(trial):
    print("{HOSTILE} printed")
    for seed in (11, 12):
        trial("nmi-self" if seed == 11 else "stop-machine", seed=seed)
    text = "{HOSTILE} told"
    assert text == "good"
"""
    )
    assert ran.status == 1
    folder = ran.cases["test_it"].properties["trial-001.evidence"]
    assert f"  lab judge {folder}\n  lab replay {folder}\n" in ran.said
    assert ran.said.index("FAIL  stop-machine 1x2x2 seed 12: quiet broken") < ran.said.index(
        "PASS  nmi-self 1x2x2 seed 11"
    )
    assert "red printed" in ran.said
    assert "red told" in ran.said
    assert not UNFIT.search(ran.said)
    assert ran.cases["test_it"].failed
    assert not UNFIT.search(ran.xml)


def test_a_trial_that_does_not_end_is_told(run: Run) -> None:
    ran = run(
        "def find(scenario, seed):\n    raise OSError('no more')\n\ndef test_it(trial):\n    trial('smi', seed=5)\n"
    )
    assert ran.status == 1
    assert "no end  smi 1x2x2 seed 5\n  lab trial --mechanism smi --topology 1x2x2 --seed 5 --out DIR\n" in ran.said
    assert ran.cases["test_it"].properties["trial-000.outcome"] == "none: it did not end"


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--lab-seed", "-1"), "--lab-seed is '-1': allowed is a whole number from 0 to 18446744073709551615"),
        (("--lab-trials", "none", "-n", "2"), "--lab-trials is 'none': allowed is a whole number from 1 to 1000000"),
        (("--lab-for", "10"), "--lab-for is '10': allowed is a number above 0 with s, m, h or d, such as 30m or 8h"),
    ],
)
def test_what_is_not_allowed_is_refused_in_one_sentence(run: Run, words: tuple[str, ...], sentence: str) -> None:
    ran = run(STORMS, *words)
    assert (ran.status, ran.said.strip()) == (pytest.ExitCode.USAGE_ERROR, f"ERROR: {sentence}")
