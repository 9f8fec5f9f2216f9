# SPDX-License-Identifier: GPL-2.0-or-later
"""Scenarios as text and as options: what is refused, and that both ways say the same."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from lab.cli.axes import Axes, make_scenario, read_scenario
from lab.errors import UsageError
from lab.host.paths import ROOT, SCENARIOS
from lab.mechanisms.table import MECHANISMS
from lab.model.boot import Granularity
from lab.model.engine import Engine
from lab.model.phase import Phase, Role
from lab.model.placed import Placed, Target
from lab.model.plan import draw_plan
from lab.model.scenario import FAR_APART_US, Aim, Parking, Scenario, Siblings
from lab.model.scenario_file import ALLOWED, parse_scenario, to_words
from lab.model.topology import Topology

HEAD = 'summary = "s"\nmechanism = "nmi-self"\n'
AT_RELEASE = "[[placed]]\nat = 'release'\nrole = 'primary'\n"
FILES = sorted(SCENARIOS.glob("*.toml"))

#: Each changes one field from its default.
CHANGES: tuple[dict[str, object], ...] = (
    {"topology": Topology(2, 2, 2)},
    {"nmis": 0},
    {"aim": Aim.SIBLING},
    {"stretch_us": (5_000, 6_000)},
    {"stretch_per_core_us": (1_000, 50_000)},
    {"far_apart": True},
    {"siblings": Siblings.RETURNING},
    {"fsgsbase": False},
    {"parking": Parking.MWAIT},
    {"min_revision": True, "mechanism": "upstream"},
    {"phase": Phase.ARMED},
    {"phase": Phase.WINDOW, "role": Role.PRIMARY},
    {"placed": (Placed(at="window-open", role=Role.PRIMARY),)},
    {
        "placed": (
            Placed(at="asm_exc_nmi+0x0", role=Role.SIBLING, core=1, phase=Phase.WINDOW, arrival=3, until=1),
            Placed(at="0xffffffff81000000", role=Role.OTHER, nmi=Target.BROADCAST, bound_us=5_000),
        )
    },
    {"granularity": Granularity.INSTRUCTION},
    {"engine": Engine.ONE_CORE},
)


def test_there_is_a_case_for_every_field() -> None:
    assert {name for change in CHANGES for name in change} == set(Scenario.__struct_fields__)
    assert set(ALLOWED) == {"summary", *Scenario.__struct_fields__}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_scenario_of_the_repository_is_one(path: Path) -> None:
    named = read_scenario(path)
    assert named.name == path.stem
    draw_plan(named.scenario, 1)


def test_no_two_scenarios_of_the_repository_are_the_same() -> None:
    scenarios = [read_scenario(path).scenario for path in FILES]
    assert len(set(scenarios)) == len(scenarios) > 10


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: "-".join(change))
def test_a_field_means_the_same_in_a_file_and_as_options(change: dict[str, object]) -> None:
    scenario = msgspec.structs.replace(Scenario(mechanism="nmi-self"), **change)
    table = {"summary": "s", **{name: _plain(getattr(scenario, name)) for name in change}}
    text = "".join(f"{name} = {_to_toml(value)}\n" for name, value in table.items())
    if "mechanism" not in change:
        text += 'mechanism = "nmi-self"\n'
    assert parse_scenario(text, "f", "f").scenario == scenario
    assert _from_words(to_words(scenario)) == scenario


def test_a_range_that_far_apart_leaves_unused_is_not_asked_for() -> None:
    scenario = parse_scenario(HEAD + "far_apart = true\nstretch_us = [5000, 6000]\n", "f", "f").scenario
    asked = _from_words(to_words(scenario))

    assert asked == msgspec.structs.replace(scenario, stretch_us=Scenario(mechanism="nmi-self").stretch_us)
    assert draw_plan(asked, 1) == draw_plan(scenario, 1)


def _plain(value: object) -> object:
    return str(value) if isinstance(value, Topology) else value


def _to_toml(value: object) -> str:
    if isinstance(value, tuple) and all(isinstance(each, Placed) for each in value) and value:
        return f"[{', '.join(map(_to_toml, value))}]"
    if isinstance(value, Placed):
        fields = {name: field for name in value.__struct_fields__ if (field := getattr(value, name)) is not None}
        return "{" + ", ".join(f"{name} = {_to_toml(field)}" for name, field in fields.items()) + "}"
    return msgspec.json.encode(value).decode()


def _from_words(words: tuple[str, ...]) -> Scenario:
    """Read options as the command line does, in a process of its own that ends before anything is built."""
    script = (
        "import sys, msgspec, lab.cli.trials as trials\nfrom lab.cli import main\n"
        "def show(scenario, seed): print(msgspec.json.encode(scenario).decode()); sys.exit(0)\n"
        "trials.draw_plan = show\n"
        "main()\n"
    )
    command = [sys.executable, "-c", script, "trial", *words, "--out", "/nowhere"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return msgspec.json.decode(done.stdout, type=Scenario)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("nmis = ", "scenario 'f' is no TOML"),
        ('summary = "s"\n', "key 'mechanism' is missing: one of \"stop-machine\""),
        ('mechanism = "nmi-self"\n', "key 'summary' is missing"),
        (HEAD + "nmi = 3\n", "key 'nmi' is unknown: there are summary, mechanism"),
        (HEAD + "nmi = 3\n", "did you mean 'nmis'?"),
        (HEAD + 'phase = "windw"\n', "did you mean 'window'?"),
        (HEAD + 'aim = "siblings"\n', "did you mean 'sibling'?"),
        ('summary = "s"\nmechanism = "nmi-sef"\n', "did you mean 'nmi-self'?"),
        (HEAD + 'nmis = "3"\n', "key 'nmis' is '3': allowed is a whole number from 0 to 1000"),
        (HEAD + "nmis = 1001\n", "nmis is 1001: allowed is 0 to 1000"),
        (HEAD + 'siblings = "off"\n', "key 'siblings' is 'off': allowed is one of \"online\", \"offline\""),
        (HEAD + 'topology = "1x2"\n', "key 'topology': topology '1x2' is not SOCKETSxCORESxTHREADS"),
        (HEAD + "topology = 4\n", "key 'topology' is 4: allowed is SOCKETSxCORESxTHREADS"),
        (HEAD + "fsgsbase = 1\n", "key 'fsgsbase' is 1: allowed is true or false"),
        (HEAD + "stretch_us = [3]\n", "key 'stretch_us' is [3]: allowed is a range of two"),
        (HEAD + "stretch_us = [3, 2]\n", "stretch range 3 to 2 us is backwards"),
        (HEAD + "stretch_per_core_us = [1]\n", "stretch names 1 cores: topology 1x2x2 has 2"),
        (HEAD + "far_apart = true\nstretch_per_core_us = [1, 2]\n", "far_apart draws each core's stretch"),
        (HEAD + 'far_apart = true\ntopology = "1x1x2"\n', "far_apart needs two cores"),
        (HEAD + "min_revision = true\n", "min_revision is true: mechanism 'nmi-self' is of linux-6.1"),
        ('summary = "s"\nmechanism = "nmi-selb"\n', "key 'mechanism' is 'nmi-selb': allowed is one of"),
        ('summary = "a\\nb"\nmechanism = "nmi-self"\n', "key 'summary' is not one line"),
        (HEAD + f'parking = "{"x" * 100}"\n', "xxx...: allowed is"),
        (HEAD + "topology = {sockets = 1, cores = 99999999, threads = 2}\n", "key 'topology' is {'sockets': 1"),
        (HEAD + "topology = [1, 2, 2]\n", "key 'topology' is [1, 2, 2]: allowed is"),
        (HEAD + 'topology = "1x2x2\\n"\n', "key 'topology' is '1x2x2\\n': allowed is"),
        (HEAD + '"a\\nb" = 1\n', "key 'a\\nb' is unknown"),
        ('summary = " "\nmechanism = "nmi-self"\n', "key 'summary' is not one line"),
        (HEAD + "nmis = nan\n", "key 'nmis' is nan: allowed is"),
        (HEAD + "nmis = 1.0\n", "key 'nmis' is 1.0: allowed is"),
        (HEAD + "nmis = true\n", "key 'nmis' is True: allowed is"),
        (HEAD + "nmis.a.b = 1\n", "key 'nmis' is {'a': {'b': 1}}: allowed is"),
        (HEAD + "stretch_per_core_us = [inf, 1]\n", "key 'stretch_per_core_us' is [inf, 1]: allowed is"),
        (HEAD + f"nmis = {'9' * 5_000}\n", "scenario 'f' is no TOML"),
        (HEAD + f"nmis = 0x{'f' * 5_000}\n", "key 'nmis' is a number with thousands of digits: allowed is"),
        (HEAD + f"stretch_us = [0, 0x{'f' * 5_000}]\n", "key 'stretch_us' is a number with thousands of digits"),
        (HEAD + f"nmis = {'[' * 9_000}{']' * 9_000}\n", "its values are nested too deeply"),
        (HEAD + 'phase = "wndow"\n', "key 'phase' is 'wndow': allowed is one of \"before\", \"gather\""),
        (HEAD + 'role = "sibling"\n', "role is sibling: it goes with a phase only"),
        (HEAD + "placed = 3\n", "placed[0] is 3: allowed is a table with the keys at, role"),
        (HEAD + "placed = [3]\n", "placed[0] is 3: allowed is a table"),
        (HEAD + "[placed]\nat = 'release'\n", "placed[0]: key 'role' is missing: one of \"primary\""),
        (HEAD + "[placed]\nrole = 'primary'\n", "placed[0]: key 'at' is missing: a landmark (load-begin"),
        (HEAD + AT_RELEASE + "when = 1\n", "placed[0]: key 'when' is unknown: there are at, role, core"),
        (HEAD + AT_RELEASE + "arrival = '1'\n", "placed[0]: key 'arrival' is '1': allowed is a whole number from 1"),
        (HEAD + AT_RELEASE + "arrival = 1.5\n", "placed[0]: key 'arrival' is 1.5: allowed is"),
        (HEAD + AT_RELEASE + "arrival = true\n", "placed[0]: key 'arrival' is True: allowed is"),
        (HEAD + AT_RELEASE + f"core = 0x{'f' * 5_000}\n", "placed[0]: key 'core' is a number with thousands of digits"),
        (HEAD + AT_RELEASE + "core = 2\n", "core is 2: topology 1x2x2 has 0 to 1"),
        (HEAD + AT_RELEASE + "nmi = 'all'\n", "placed[0]: key 'nmi' is 'all': allowed is one of \"held\""),
        (HEAD + AT_RELEASE + "phase = 'later'\n", "placed[0]: key 'phase' is 'later': allowed is one of"),
        (HEAD + AT_RELEASE + "phase = 'before'\n", "hold 0: phase is before: allowed is gather to release"),
        (HEAD + AT_RELEASE + "bound_us = 0\n", "hold 0: bound is 0 us: allowed is 1 to 500000 us"),
        (HEAD + AT_RELEASE + "until = 0\n", "hold 0: until is 0: allowed is the number of another hold"),
        (HEAD + AT_RELEASE * 17, "17 holds are too many: allowed are 16"),
        (HEAD + AT_RELEASE * 6, "the bounds of all holds add up to 600000 us: allowed is 500000 us"),
        (HEAD + "[[placed]]\nat = \"a\\u001b[2J\"\nrole = 'primary'\n", "place 'a\\x1b[2J' is neither a landmark"),
    ],
    ids=lambda value: value[:60],
)
def test_a_wrong_file_is_refused_in_one_sentence_that_names_it(text: str, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_scenario(text, "f", "f")
    assert said in str(caught.value)
    assert "scenario 'f'" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"\xff")
    (tmp_path / "large").write_bytes(b"#" * 70_000)
    for name, said in (("absent", "No such file"), ("binary", "not UTF-8"), ("large", "too large"), (".", "directory")):
        with pytest.raises(UsageError, match=said):
            read_scenario(tmp_path / name)


def test_options_win_over_the_file(tmp_path: Path) -> None:
    path = tmp_path / "x.toml"
    path.write_text(HEAD + 'nmis = 3\naim = "primary"\nstretch_per_core_us = [1, 2]\n')
    scenario = make_scenario(Axes(scenario=path, nmis=0, topology="1x4x2", stretch_us="7"), "park-hlt")
    wanted = Scenario(
        mechanism="park-hlt",
        topology=Topology(1, 4, 2),
        nmis=0,
        aim=Aim.PRIMARY,
        stretch_per_core_us=(7,) * 4,
    )
    assert scenario == wanted


@pytest.mark.parametrize(
    ("line", "given", "wanted"),
    [
        ("far_apart = true", {"stretch_us": "7"}, {"stretch_per_core_us": (7, 7)}),
        ("far_apart = true", {"stretch_range_us": "7,8"}, {"stretch_us": (7, 8)}),
        ("far_apart = true", {"nmis": 0}, {"far_apart": True, "nmis": 0}),
        ("stretch_per_core_us = [1, 2]", {"far_apart": True}, {"far_apart": True}),
        ("stretch_per_core_us = [1, 2]", {"stretch_range_us": "7,8"}, {"stretch_us": (7, 8)}),
    ],
)
def test_how_long_windows_last_is_said_by_the_option(
    tmp_path: Path, line: str, given: dict[str, Any], wanted: dict[str, Any]
) -> None:
    path = tmp_path / "x.toml"
    path.write_text(f"{HEAD}{line}\n")
    scenario = make_scenario(Axes(scenario=path, **given), None)
    scenario.check()
    assert scenario == Scenario(mechanism="nmi-self", **wanted)


@pytest.mark.parametrize("stretch", [{"stretch_us": "7"}, {"stretch_range_us": "7,8"}])
def test_far_apart_and_another_stretch_cannot_both_be_meant(stretch: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="far-apart draws each core's stretch"):
        make_scenario(Axes(scenario=None, far_apart=True, **stretch), "nmi-self")


@pytest.mark.parametrize("cores", [2, 3, 8])
def test_far_apart_draws_both_lengths_in_every_plan(cores: int) -> None:
    scenario = Scenario(mechanism="upstream", topology=Topology(1, cores, 2), far_apart=True)
    drawn = [draw_plan(scenario, seed).stretch_us for seed in range(200)]
    assert {frozenset(each) for each in drawn} == {frozenset(FAR_APART_US)}
    # Any core may be the one that is done first.
    assert all(len({each[core] for each in drawn}) == 2 for core in range(cores))


def test_a_machine_is_shared_by_what_needs_no_other() -> None:
    ours = [each for each in MECHANISMS if each.base == "linux-6.1"]
    machines = {Scenario(mechanism=each.name).boot for each in ours if not each.needs_monitor}
    offline = Scenario(mechanism="nmi-self", siblings=Siblings.OFFLINE, nmis=0)
    assert offline.boot in machines
    assert Scenario(mechanism="nmi-self", fsgsbase=False).boot not in machines
    with_mwait = Scenario(mechanism="nmi-self", parking=Parking.MWAIT).boot
    assert with_mwait not in machines
    assert {Scenario(mechanism=each.name).boot for each in ours if each.needs_monitor} == {with_mwait}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "place '': '' is not KEY=VALUE with one of at, role"),
        ("at", "place 'at': 'at' is not KEY=VALUE"),
        ("at=release", "key 'role' is missing: one of"),
        ("role=primary", "key 'at' is missing: a landmark"),
        ("at=release,role=primary,", "'' is not KEY=VALUE"),
        ("at=release,at=release,role=primary", "key 'at' is given twice"),
        ("at=release,role=primary,x=1", "key 'x' is unknown: there are at, role"),
        ("at=release,role=boss", "key 'role' is 'boss': allowed is one of"),
        ("at=release,role=primary,core=one", "key 'core' is 'one': allowed is the number of a core"),
        ("at=release,role=primary,core=--1", "key 'core' is '--1': allowed is the number of a core"),
        ("at=release,role=primary,core=-1", "core is -1: topology 1x2x2 has 0 to 1"),
        (f"at=release,role=primary,core={'9' * 5_000}", "key 'core' is '9999"),
        ("at=release,role=primary,arrival=", "key 'arrival' is '': allowed is"),
        ("at=release,role=primary,until=5", "hold 0: until is 5: allowed is the number of another hold, or -1"),
        ("at=relea se,role=primary", "place 'relea se' is neither a landmark (load-begin"),
        ("at=12,role=primary", "place '12' is neither a landmark"),
    ],
    ids=lambda value: value[:60],
)
def test_a_wrong_place_option_is_refused_in_one_sentence(text: str, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        make_scenario(Axes(place=[text]), "nmi-self").check()
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


def test_place_options_add_up_in_their_order() -> None:
    given = ["at=window-close,role=primary,until=1,nmi=none", "at=asm_exc_nmi+0x0,role=sibling,phase=closing,arrival=2"]
    scenario = make_scenario(Axes(place=given), "nmi-self")

    scenario.check()
    assert scenario.placed == (
        Placed(at="window-close", role=Role.PRIMARY, until=1, nmi=Target.NONE),
        Placed(at="asm_exc_nmi+0x0", role=Role.SIBLING, phase=Phase.CLOSING, arrival=2),
    )


def test_a_mechanism_that_is_left_out_is_that_of_the_kernel_that_is_brought(tmp_path: Path) -> None:
    left_out = 'summary = "s"\nnmis = 3\n'
    assert parse_scenario(left_out, "f", "f", "stock-nmi").scenario == Scenario(mechanism="stock-nmi", nmis=3)
    assert parse_scenario(HEAD, "f", "f", "stock-nmi").scenario.mechanism != "stock-nmi"
    with pytest.raises(UsageError, match="only that of a kernel with one mechanism, which --kernel"):
        parse_scenario(left_out, "f", "f")
    path = tmp_path / "f.toml"
    path.write_text(left_out)
    assert make_scenario(Axes(scenario=path), None, "stock-nmi").mechanism == "stock-nmi"
    assert make_scenario(Axes(scenario=path), "nmi-self").mechanism == "nmi-self"
