# SPDX-License-Identifier: GPL-2.0-or-later
"""The campaign file: TOML in, checked key by key."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import msgspec

from lab.campaign.definition import MAX_EVIDENCE_MIB, MAX_TRIAL, CampaignSpec, Limits, Part
from lab.errors import UsageError, tell_nearest
from lab.guest.dump import MAX_DUMP_MIB
from lab.host.files import read_text
from lab.mechanisms.table import find_mechanism
from lab.model.placed import Placed
from lab.model.plan import MAX_SEED
from lab.model.scenario import Scenario
from lab.model.scenario_file import MAX_FILE_BYTES, load_toml, parse_scenario, read_scenario_table

MAX_PARTS: Final = 200
MAX_WEIGHT: Final = 1_000_000
MAX_HOURS: Final = 24.0 * 365
MAX_RETRIES: Final = 20
_NAME: Final = re.compile(r"[a-z0-9][a-z0-9.-]{0,39}", re.ASCII)

#: What each key may be, in words for whoever wrote it wrong.
ALLOWED: Final[Mapping[str, str]] = {
    "summary": "one line that says what the campaign is for",
    "seed": f"a whole number from 0 to {MAX_SEED} (left out: drawn, and kept in the store)",
    "scenarios": f"1 to {MAX_PARTS} tables [[scenarios]]",
    "limits": "a table",
}
PART_KEYS: Final[Mapping[str, str]] = {
    "file": "the path of a scenario file, from the campaign file's folder",
    "scenario": "a table with the keys of a scenario file, of which mechanism is needed",
    "sweep": "the folder of a sweep, from the campaign file's folder: each trial is one of the points that it tried",
    "name": "up to 40 of a-z, 0-9, '-' and '.', each scenario another (left out: that of its file or mechanism)",
    "weight": f"a whole number from 1 to {MAX_WEIGHT}",
    "retries": f"a whole number from 0 to {MAX_RETRIES}",
}
LIMIT_KEYS: Final[Mapping[str, str]] = {
    "trials": f"a whole number from 1 to {MAX_TRIAL}",
    "hours": f"a number above 0, up to {MAX_HOURS:g}",
    "until_failure": "a whole number from 1",
    "evidence_mib": f"a whole number from 0 to {MAX_EVIDENCE_MIB}",
    "keep_passes_one_in": "a whole number from 1, or 0 for no PASS at all",
    "trials_per_guest": "a whole number from 1",
    "retries": f"a whole number from 0 to {MAX_RETRIES}",
    "dump_memory_mib": f"a whole number from 0, for none, to {MAX_DUMP_MIB}",
}
_LIMIT_RANGES: Final[Mapping[str, tuple[int, int]]] = {
    "trials": (1, MAX_TRIAL),
    "until_failure": (1, MAX_TRIAL),
    "evidence_mib": (0, MAX_EVIDENCE_MIB),
    "keep_passes_one_in": (0, MAX_TRIAL),
    "trials_per_guest": (1, MAX_TRIAL),
    "retries": (0, MAX_RETRIES),
    "dump_memory_mib": (0, MAX_DUMP_MIB),
}


def read_campaign(path: Path, drawn_seed: int, mechanism: str = "") -> CampaignSpec:
    """Read a campaign file, and the scenario files that it names.

    :param drawn_seed: what its seed is where it has none
    :param mechanism: what it is where a scenario leaves it out, the one of a kernel that is brought; empty for none
    :raise UsageError: it is no such file; the error names file, key and what is allowed
    """
    what = f"campaign '{path}'"
    table = load_toml(read_text(path, MAX_FILE_BYTES, "campaign"), what)
    _check_keys(table, ALLOWED, what, ("summary", "scenarios"))
    summary = table["summary"]
    if not isinstance(summary, str) or not summary.strip() or not summary.isprintable():
        raise UsageError(f"{what}: key 'summary' is not {ALLOWED['summary']}")
    return CampaignSpec(
        summary=summary,
        seed=_read_whole(table.get("seed", drawn_seed), 0, MAX_SEED, f"{what}: key 'seed'", ALLOWED["seed"]),
        parts=_read_parts(table["scenarios"], path, what, mechanism),
        limits=_read_limits(table.get("limits", {}), what),
    )


def change_limits(limits: Limits, **given: float | None) -> Limits:
    """Return limits with those changed that a command line gave, which are of the same ranges.

    :raise UsageError: one is out of its range
    """
    changed = {key: value for key, value in given.items() if value is not None}
    return _read_limits(_to_table(limits) | changed, "command line")


def _to_table(limits: Limits) -> dict[str, Any]:
    table: dict[str, Any] = msgspec.to_builtins(limits)
    return {key: value for key, value in table.items() if value is not None}


def _check_keys(table: Mapping[str, Any], known: Mapping[str, str], what: str, needed: tuple[str, ...] = ()) -> None:
    for key in table:
        if key not in known:
            raise UsageError(
                f"{what}: key {_show(key)} is unknown: there are {', '.join(known)}{tell_nearest(key, known)}"
            )
    for key in needed:
        if key not in table:
            raise UsageError(f"{what}: key '{key}' is missing: {known[key]}")


def _read_whole(value: object, low: int, high: int, what: str, allowed: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise UsageError(f"{what} is {_show(value)}: allowed is {allowed}")
    return value


def _read_parts(value: object, path: Path, what: str, mechanism: str) -> tuple[Part, ...]:
    if not isinstance(value, list) or not 1 <= len(value) <= MAX_PARTS:
        raise UsageError(f"{what}: key 'scenarios' is {_show(value)}: allowed are {ALLOWED['scenarios']}")
    parts = tuple(_read_part(each, path, f"{what}: scenarios[{index}]", mechanism) for index, each in enumerate(value))
    seen: set[str] = set()
    for index, part in enumerate(parts):
        if part.name in seen:
            raise UsageError(
                f"{what}: scenarios[{index}]: name '{part.name}' is taken already: give it a key 'name' of its own"
            )
        seen.add(part.name)
    return parts


def _read_part(value: object, path: Path, what: str, mechanism: str) -> Part:
    if not isinstance(value, dict):
        raise UsageError(f"{what} is {_show(value)}: allowed is a table with the keys {', '.join(PART_KEYS)}")
    _check_keys(value, PART_KEYS, what)
    if sum(key in value for key in ("file", "scenario", "sweep")) != 1:
        raise UsageError(f"{what}: allowed is one of the keys 'file', 'scenario' and 'sweep', and one is needed")
    name, scenario, points = _read_scenario(value, path, what, mechanism)
    name = value.get("name", name)
    if not isinstance(name, str) or _NAME.fullmatch(name) is None:
        raise UsageError(f"{what}: key 'name' is {_show(name)}: allowed is {PART_KEYS['name']}")
    retries = value.get("retries")
    return Part(
        name=name,
        scenario=scenario,
        points=points.placed,
        kernel_sha256=points.kernel_sha256,
        weight=_read_whole(value.get("weight", 1), 1, MAX_WEIGHT, f"{what}: key 'weight'", PART_KEYS["weight"]),
        retries=None
        if retries is None
        else _read_whole(retries, 0, MAX_RETRIES, f"{what}: key 'retries'", PART_KEYS["retries"]),
    )


class _Points(msgspec.Struct, frozen=True):
    placed: tuple[tuple[Placed, ...], ...] = ()
    kernel_sha256: str = ""


def _read_scenario(value: Mapping[str, Any], path: Path, what: str, mechanism: str) -> tuple[str, Scenario, _Points]:
    """Return a scenario, what it is called where it has no name of its own, and its points where it has some."""
    if "scenario" in value:
        table = value["scenario"]
        if not isinstance(table, dict):
            raise UsageError(f"{what}: key 'scenario' is {_show(table)}: allowed is {PART_KEYS['scenario']}")
        # A scenario without a file of its own needs no summary: the campaign has one.
        keys = {"summary": "part of a campaign", **table}
        read = read_scenario_table(keys, f"{path}: {what.split(': ')[-1]}", "", mechanism)
        return find_mechanism(read.scenario.mechanism).name, read.scenario, _Points()
    if "sweep" in value:
        return _read_sweep(value["sweep"], path, what)
    name = value["file"]
    if not isinstance(name, str) or not name or not name.isprintable():
        raise UsageError(f"{what}: key 'file' is {_show(name)}: allowed is {PART_KEYS['file']}")
    file = path.parent / name
    text = read_text(file, MAX_FILE_BYTES, f"{what}: scenario")
    return file.stem, parse_scenario(text, str(file), file.stem, mechanism).scenario, _Points()


def _read_sweep(name: object, path: Path, what: str) -> tuple[str, Scenario, _Points]:
    """Return a sweep's points, as they were tried; those that could not be are none."""
    if not isinstance(name, str) or not name or not name.isprintable():
        raise UsageError(f"{what}: key 'sweep' is {_show(name)}: allowed is {PART_KEYS['sweep']}")
    # A campaign without a sweep, and a mistyped one, need not read journals.
    from lab.sweep.journal import Tried, read_begun, read_lines

    folder = path.parent / name
    begun = read_begun(folder)
    lines, _ = read_lines(folder)
    points = tuple(line.placed for line in lines if isinstance(line, Tried) and line.was_tried and line.placed)
    if not points:
        raise UsageError(f"{what}: sweep '{folder}' has tried no point: let lab sweep --resume go on with it first")
    for index, placed in enumerate(points):
        scenario = msgspec.structs.replace(begun.ask.scenario, placed=placed)
        try:
            scenario.check()
        except UsageError as error:
            raise UsageError(f"{what}: sweep '{folder}': point {index}: {error}") from None
    return f"{begun.ask.mechanism}-sweep", begun.ask.scenario, _Points(points, begun.kernel_sha256)


def _read_limits(value: object, what: str) -> Limits:
    if not isinstance(value, dict):
        raise UsageError(
            f"{what}: key 'limits' is {_show(value)}: allowed is a table with the keys {', '.join(LIMIT_KEYS)}"
        )
    _check_keys(value, LIMIT_KEYS, f"{what}: limits")
    found: dict[str, Any] = {
        key: _read_whole(value[key], low, high, f"{what}: limits: key '{key}'", LIMIT_KEYS[key])
        for key, (low, high) in _LIMIT_RANGES.items()
        if key in value
    }
    if "hours" in value:
        hours = value["hours"]
        fit = isinstance(hours, int | float) and not isinstance(hours, bool) and 0 < hours <= MAX_HOURS
        if not fit:
            raise UsageError(f"{what}: limits: key 'hours' is {_show(hours)}: allowed is {LIMIT_KEYS['hours']}")
        found["hours"] = float(hours)
    return Limits(**found)


def _show(value: object) -> str:
    try:
        shown = repr(value)
    except ValueError:
        return "a number with thousands of digits"
    return shown if len(shown) <= 60 else shown[:57] + "..."
