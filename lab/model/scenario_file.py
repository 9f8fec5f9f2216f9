# SPDX-License-Identifier: GPL-2.0-or-later
"""Scenarios as text: TOML in, checked key by key, and the command-line words that ask for the same one."""

import tomllib
from collections.abc import Collection, Mapping
from typing import Any

import msgspec

from lab.errors import UsageError
from lab.mechanisms.table import MECHANISMS, STOCK_MECHANISMS
from lab.model.boot import Granularity
from lab.model.engine import Engine
from lab.model.hold import ANY_BLOCK, LANDMARKS, MAX_ARRIVAL, MAX_HELD_US
from lab.model.phase import Phase, Role
from lab.model.placed import Placed, Target
from lab.model.scenario import MAX_NMIS, MAX_STRETCH_US, Aim, Parking, Scenario, Siblings
from lab.model.topology import Topology

#: More than any scenario needs; a file of another kind is not read to its end.
MAX_FILE_BYTES = 64 * 1024

_STRETCH = f"whole numbers of microseconds from 0 to {MAX_STRETCH_US}"


def _names(values: type[Aim | Siblings | Parking | Phase | Role | Target | Granularity | Engine]) -> str:
    return "one of " + ", ".join(f'"{each.value}"' for each in values)


#: What each key of a placed NMI may be.
PLACED_KEYS: Mapping[str, str] = {
    "at": f"a landmark ({', '.join(LANDMARKS)}), {ANY_BLOCK}, function+0x.. or 0x..",
    "role": _names(Role),
    "core": "the number of a core",
    "phase": _names(Phase),
    "arrival": f"a whole number from 1 to {MAX_ARRIVAL}",
    "nmi": _names(Target),
    "bound_us": f"a whole number of microseconds from 1 to {MAX_HELD_US}, of all together",
    "until": "the number of another placed NMI, counted from 0",
    "early": "true or false",
}


#: What each key may be, in words for whoever wrote it wrong.
ALLOWED: Mapping[str, str] = {
    "summary": "one line that says what the scenario is for",
    "mechanism": "one of " + ", ".join(f'"{each.name}"' for each in MECHANISMS),
    "topology": 'SOCKETSxCORESxTHREADS, such as "1x2x2"',
    "aim": _names(Aim),
    "nmis": f"a whole number from 0 to {MAX_NMIS}",
    "stretch_us": f"a range of two {_STRETCH}, such as [10000, 50000]",
    "stretch_per_core_us": f"one number for each core: {_STRETCH}",
    "far_apart": "true or false",
    "siblings": _names(Siblings),
    "fsgsbase": "true or false",
    "parking": _names(Parking),
    "min_revision": "true or false",
    "phase": _names(Phase),
    "role": _names(Role),
    "granularity": _names(Granularity),
    "engine": _names(Engine),
    "placed": f"tables with the keys {', '.join(PLACED_KEYS)}",
}


class NamedScenario(msgspec.Struct, frozen=True):
    """A scenario that somebody wrote down.

    :param name: of its file, without the ending
    :param summary: what it is for
    """

    name: str
    summary: str
    scenario: Scenario


def parse_scenario(text: str, file: str, name: str, *, stock: bool = False) -> NamedScenario:
    """Read a scenario; a key that is left out has the default of :class:`lab.model.scenario.Scenario`.

    :param file: what errors call it
    :param stock: the mechanism may also be that of a kernel with nothing of the lab's inside
    :raise UsageError: it is no such text; the error names the file, the key and what is allowed
    """
    return read_scenario_table(load_toml(text, f"scenario '{file}'"), file, name, stock=stock)


def read_scenario_table(table: Mapping[str, Any], file: str, name: str, *, stock: bool = False) -> NamedScenario:
    """Read a scenario from its keys; raises as :func:`parse_scenario` does."""
    _check_keys(table, ("summary", "mechanism"), file)
    summary = table["summary"]
    if not isinstance(summary, str) or not summary.strip() or not summary.isprintable():
        raise UsageError(f"scenario '{file}': key 'summary' is not {ALLOWED['summary']}")
    keys = {key: value for key, value in table.items() if key != "summary"}
    return NamedScenario(name=name, summary=summary, scenario=_make(keys, file, stock))


def parse_axes(mechanism: str, axes: str, file: str) -> Scenario:
    """Read a scenario whose axes are keys in TOML's inline form, such as ``topology = "1x1x2", nmis = 0``.

    :param axes: without the mechanism and the braces; empty for the defaults
    :param file: what errors call it
    :raise UsageError: as :func:`parse_scenario`
    """
    table = load_toml(f"axes = {{ {axes} }}", f"scenario '{file}'")
    if list(table) != ["axes"] or not isinstance(table["axes"], dict):
        raise UsageError(f"scenario '{file}' is no TOML: the axes are not one line of keys and values")
    keys: dict[str, Any] = table["axes"]
    _check_keys(keys, (), file)
    for key in ("summary", "mechanism"):
        if key in keys:
            raise UsageError(f"scenario '{file}': key '{key}' is no axis")
    return _make({"mechanism": mechanism} | keys, file)


def load_toml(text: str, what: str) -> dict[str, Any]:
    """Read TOML.

    :param what: errors call it so
    :raise UsageError: it is none
    """
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise UsageError(f"{what} is no TOML: its values are nested too deeply") from None
    except ValueError as error:
        # TOMLDecodeError is one; of a number with thousands of digits it is Python's own.
        raise UsageError(f"{what} is no TOML: {error}") from None


def _check_keys(table: Mapping[str, Any], required: tuple[str, ...], file: str) -> None:
    for key in table:
        if key not in ALLOWED:
            raise UsageError(f"scenario '{file}': key {_show(key)} is unknown: there are {', '.join(ALLOWED)}")
    for key in required:
        if key not in table:
            raise UsageError(f"scenario '{file}': key '{key}' is missing: {ALLOWED[key]}")


def _make(table: Mapping[str, Any], file: str, stock: bool = False) -> Scenario:
    mechanisms = (*MECHANISMS, *STOCK_MECHANISMS) if stock else MECHANISMS
    known = {each.name for each in mechanisms}
    scenario = Scenario(**{key: _read_field(file, key, value, known) for key, value in table.items()})
    try:
        scenario.check()
    except UsageError as error:
        raise UsageError(f"scenario '{file}': {error}") from None
    return scenario


def to_words(scenario: Scenario) -> tuple[str, ...]:
    """Return the options of ``lab trial`` and ``lab run`` that ask for a scenario, without those of its defaults.

    A range that nothing is drawn from is left out: the command line refuses two ways to say how long windows last.
    """
    plain = Scenario(mechanism=scenario.mechanism)
    if scenario.far_apart:
        scenario = msgspec.structs.replace(scenario, stretch_us=plain.stretch_us)
    low_us, high_us = scenario.stretch_us
    words: dict[str, tuple[str, ...]] = {
        "nmis": ("--nmis", str(scenario.nmis)),
        "aim": ("--aim", scenario.aim.value),
        "stretch_us": ("--stretch-range-us", f"{low_us},{high_us}"),
        "stretch_per_core_us": ("--stretch-us", ",".join(map(str, scenario.stretch_per_core_us))),
        "far_apart": ("--far-apart",),
        "siblings": ("--siblings", scenario.siblings.value),
        "fsgsbase": ("--no-fsgsbase",),
        "parking": ("--parking", scenario.parking.value),
        "min_revision": ("--min-revision",),
        "phase": ("--phase", scenario.phase.value if scenario.phase else ""),
        "role": ("--role", scenario.role.value if scenario.role else ""),
        "granularity": ("--granularity", scenario.granularity.value),
        "engine": ("--engine", scenario.engine.value),
        "placed": tuple(word for each in scenario.placed for word in ("--place", _to_word(each))),
    }
    changed = [option for name, option in words.items() if getattr(scenario, name) != getattr(plain, name)]
    return (
        *("--mechanism", scenario.mechanism, "--topology", str(scenario.topology)),
        *(word for option in changed for word in option),
    )


def _to_word(placed: Placed) -> str:
    plain = Placed(at=placed.at, role=placed.role)
    fields = {
        name: getattr(placed, name)
        for name in Placed.__struct_fields__
        if name in ("at", "role") or getattr(placed, name) != getattr(plain, name)
    }
    return ",".join(f"{name}={getattr(value, 'value', value)}" for name, value in fields.items())


def _read_field(file: str, key: str, value: object, mechanisms: Collection[str]) -> Any:
    if key == "topology":
        return _read_topology(file, value)
    if key == "placed":
        return _read_placed(file, value)
    wanted = {field.name: field.type for field in msgspec.structs.fields(Scenario)}[key]
    try:
        found = msgspec.convert(value, wanted, strict=True)
        # Done for its check alone: Python refuses to print a number that is much longer than 64 bits.
        msgspec.msgpack.encode(found)
    except (msgspec.ValidationError, OverflowError):
        found = None
    if found is None or (key == "mechanism" and found not in mechanisms):
        raise UsageError(f"scenario '{file}': key '{key}' is {_show(value)}: allowed is {ALLOWED[key]}")
    return found


def _read_placed(file: str, value: object) -> tuple[Placed, ...]:
    tables = value if isinstance(value, list) else [value]
    return tuple(read_placed(each, f"scenario '{file}': placed[{index}]") for index, each in enumerate(tables))


def read_placed(value: object, what: str) -> Placed:
    """Read one placed NMI.

    :param value: a table of PLACED_KEYS
    :param what: errors call it so
    :raise UsageError: it is no such table; the error names the key and what is allowed
    """
    if not isinstance(value, dict):
        raise UsageError(f"{what} is {_show(value)}: allowed is a table with the keys {', '.join(PLACED_KEYS)}")
    for key in value:
        if key not in PLACED_KEYS:
            raise UsageError(f"{what}: key {_show(key)} is unknown: there are {', '.join(PLACED_KEYS)}")
    for key in ("at", "role"):
        if key not in value:
            raise UsageError(f"{what}: key '{key}' is missing: {PLACED_KEYS[key]}")
    types = {field.name: field.type for field in msgspec.structs.fields(Placed)}
    for key, each in value.items():
        try:
            msgspec.msgpack.encode(msgspec.convert(each, types[key], strict=True))
        except (msgspec.ValidationError, OverflowError):
            raise UsageError(f"{what}: key '{key}' is {_show(each)}: allowed is {PLACED_KEYS[key]}") from None
    return msgspec.convert(value, Placed)


def _read_topology(file: str, value: object) -> Topology:
    if not isinstance(value, str) or not value.isprintable():
        raise UsageError(f"scenario '{file}': key 'topology' is {_show(value)}: allowed is {ALLOWED['topology']}")
    try:
        return Topology.parse(value)
    except UsageError as error:
        raise UsageError(f"scenario '{file}': key 'topology': {error}") from None


def _show(value: object) -> str:
    try:
        shown = repr(value)
    except ValueError:
        return "a number with thousands of digits"
    return shown if len(shown) <= 60 else shown[:57] + "..."
