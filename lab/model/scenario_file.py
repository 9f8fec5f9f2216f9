# SPDX-License-Identifier: GPL-2.0-or-later
"""Scenarios as text: TOML in, checked key by key, and the command-line words that ask for the same one."""

import tomllib
from collections.abc import Collection, Mapping
from typing import Any

import msgspec

from lab.errors import UsageError, tell_nearest
from lab.mechanisms.table import MECHANISMS, STOCK_MECHANISMS
from lab.model.axes import AXES, PLACED, PLACED_KEYS
from lab.model.placed import Placed
from lab.model.scenario import Scenario
from lab.model.topology import Topology

#: More than any scenario needs; a file of another kind is not read to its end.
MAX_FILE_BYTES = 64 * 1024

#: What each key may be, in words for whoever wrote it wrong.
ALLOWED: Mapping[str, str] = {
    "summary": "one line that says what the scenario is for",
    "mechanism": "one of " + ", ".join(f'"{each.name}"' for each in MECHANISMS),
    **{axis.key: axis.allowed for axis in AXES},
}
#: The names that a key's value may have.
_NAMES: Mapping[str, tuple[str, ...]] = {
    "mechanism": tuple(each.name for each in MECHANISMS),
    **{axis.key: axis.names for axis in AXES},
}
_PLACED: Mapping[str, tuple[str, tuple[str, ...]]] = {each.key: (each.allowed, each.names) for each in PLACED}


class NamedScenario(msgspec.Struct, frozen=True):
    """A scenario that somebody wrote down.

    :param name: of its file, without the ending
    :param summary: what it is for
    """

    name: str
    summary: str
    scenario: Scenario


def parse_scenario(text: str, file: str, name: str, mechanism: str = "") -> NamedScenario:
    """Read a scenario; a key that is left out has the default of :class:`lab.model.scenario.Scenario`.

    :param file: what errors call it
    :param mechanism: what it is where the file leaves it out, the one of a kernel that is brought; empty for none
    :raise UsageError: it is no such text; the error names the file, the key and what is allowed
    """
    return read_scenario_table(load_toml(text, f"scenario '{file}'"), file, name, mechanism)


def read_scenario_table(table: Mapping[str, Any], file: str, name: str, mechanism: str = "") -> NamedScenario:
    """Read a scenario from its keys; takes and raises what :func:`parse_scenario` does."""
    _check_keys(table, ("summary",), file)
    if "mechanism" not in table:
        if not mechanism:
            raise UsageError(
                f"scenario '{file}': key 'mechanism' is missing: {ALLOWED['mechanism']}; only that of a kernel with one"
                " mechanism, which --kernel and --vmlinux bring, may be left out"
            )
        table = {**table, "mechanism": mechanism}
    summary = table["summary"]
    if not isinstance(summary, str) or not summary.strip() or not summary.isprintable():
        raise UsageError(f"scenario '{file}': key 'summary' is not {ALLOWED['summary']}")
    keys = {key: value for key, value in table.items() if key != "summary"}
    return NamedScenario(name=name, summary=summary, scenario=_make(keys, file))


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
            near = tell_nearest(key, ALLOWED)
            raise UsageError(f"scenario '{file}': key {_show(key)} is unknown: there are {', '.join(ALLOWED)}{near}")
    for key in required:
        if key not in table:
            raise UsageError(f"scenario '{file}': key '{key}' is missing: {ALLOWED[key]}")


def _make(table: Mapping[str, Any], file: str) -> Scenario:
    known = {each.name for each in (*MECHANISMS, *STOCK_MECHANISMS)}
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
    changed = [axis for axis in AXES if getattr(scenario, axis.key) != getattr(plain, axis.key)]
    return (
        *("--mechanism", scenario.mechanism, "--topology", str(scenario.topology)),
        *(word for axis in changed if axis.key != "topology" for word in axis.write(getattr(scenario, axis.key))),
    )


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
        near = tell_nearest(value, _NAMES[key])
        raise UsageError(f"scenario '{file}': key '{key}' is {_show(value)}: allowed is {ALLOWED[key]}{near}")
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
            near = tell_nearest(key, PLACED_KEYS)
            raise UsageError(f"{what}: key {_show(key)} is unknown: there are {', '.join(PLACED_KEYS)}{near}")
    for key in ("at", "role"):
        if key not in value:
            raise UsageError(f"{what}: key '{key}' is missing: {_PLACED[key][0]}")
    types = {field.name: field.type for field in msgspec.structs.fields(Placed)}
    for key, each in value.items():
        try:
            msgspec.msgpack.encode(msgspec.convert(each, types[key], strict=True))
        except (msgspec.ValidationError, OverflowError):
            allowed, names = _PLACED[key]
            near = tell_nearest(each, names)
            raise UsageError(f"{what}: key '{key}' is {_show(each)}: allowed is {allowed}{near}") from None
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
