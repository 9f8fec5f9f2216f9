# SPDX-License-Identifier: GPL-2.0-or-later
"""The axes of a scenario as command-line options, the same for every command that runs trials."""

import functools
import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from lab.errors import UsageError, tell_nearest
from lab.host.files import read_text
from lab.host.paths import SCENARIOS
from lab.model.axes import AXES, PLACED_KEYS
from lab.model.placed import Placed
from lab.model.scenario import Scenario
from lab.model.scenario_file import MAX_FILE_BYTES, NamedScenario, parse_scenario, read_placed
from lab.model.topology import Topology

#: More than any number that is allowed; Python refuses to read those with thousands.
MAX_DIGITS = 20
_TRUTH = {"true": True, "false": False}
#: Of a value that is wrong, in characters.
MAX_SHOWN = 80
_BY_PARAMETER = {axis.parameter: axis for axis in AXES}


class Axes:
    """What was given on a command line: a scenario file, and values of axes by the names of their options."""

    def __init__(self, scenario: Path | None = None, **given: Any) -> None:
        """Take the options as typer reads them, None for what was not given.

        :raise TypeError: there is no such option
        """
        unknown = set(given) - _BY_PARAMETER.keys()
        if unknown:
            raise TypeError(f"no options of axes: {', '.join(sorted(unknown))}")
        self.scenario = scenario
        self.given = {name: value for name, value in given.items() if value not in (None, [])}


def takes_axes(command: Callable[..., None]) -> Callable[..., None]:
    """Let a command's parameter ``axes`` be filled from a scenario file and one option for each axis."""
    options = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)
        for name, annotation in _list_options()
    ]
    own = inspect.signature(command, eval_str=True)
    kept = [
        each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in own.parameters.values() if each.name != "axes"
    ]

    @functools.wraps(command)
    def run(**words: Any) -> None:
        axes = Axes(**{option.name: words.pop(option.name) for option in options})
        command(axes=axes, **words)

    # typer reads both of these.
    run.__signature__ = own.replace(parameters=[*kept, *options])  # type: ignore[attr-defined]
    run.__annotations__ = {each.name: each.annotation for each in (*kept, *options)}
    return run


def _list_options() -> Iterator[tuple[str, Any]]:
    """Yield the parameter of each option, and its type with what typer needs to know."""
    yield (
        "scenario",
        Annotated[
            Path | None,
            typer.Option(help="a scenario file, or a name of lab scenarios; options given beside it win over its keys"),
        ],
    )
    for axis in AXES:
        option = typer.Option(axis.option, metavar=axis.metavar, help=axis.help)
        takes: Any = list[axis.takes] if axis.repeats else axis.takes  # type: ignore[name-defined]
        yield axis.parameter, Annotated[takes | None, option]


def read_scenario(path: Path, mechanism: str = "") -> NamedScenario:
    """Read a scenario file, or the one of this project that has a name.

    :param mechanism: what it is where the file leaves it out, empty for none
    :raise UsageError: it cannot be read, or is no scenario
    """
    if not path.exists() and path.name == str(path):
        named = SCENARIOS / f"{path}.toml"
        near = tell_nearest(str(path), (each.stem for each in SCENARIOS.glob("*.toml")))
        if near and not named.is_file():
            raise UsageError(f"scenario '{path}' is neither a file nor a name of lab scenarios{near}")
        path = named if named.is_file() else path
    return parse_scenario(read_text(path, MAX_FILE_BYTES, "scenario"), str(path), path.stem, mechanism)


def make_scenario(given: Axes, mechanism: str | None, default: str = "") -> Scenario:
    """Return the scenario of a file, or the default one, with what was given in place of its own; not checked yet.

    :param mechanism: None takes that of the file
    :param default: what it is where the file leaves it out, too; empty for none
    :raise UsageError: neither names a mechanism, or an option is no value
    """
    if given.scenario is not None:
        scenario = read_scenario(given.scenario, mechanism or default).scenario
    elif mechanism is not None:
        scenario = Scenario(mechanism=mechanism)
    else:
        raise UsageError("a mechanism is needed: give --mechanism NAME or --scenario FILE")
    changes: dict[str, object] = {"mechanism": mechanism or scenario.mechanism}
    asked = given.given
    for parameter, value in asked.items():
        axis = _BY_PARAMETER[parameter]
        if axis.takes is not str:
            changes[axis.key] = value
    if "place" in asked:
        changes["placed"] = tuple(_parse_place(text) for text in asked["place"])
    stretched = "stretch_us" in asked or "stretch_range_us" in asked
    if asked.get("far_apart") and stretched:
        raise UsageError("far-apart draws each core's stretch: it cannot be given with a stretch of its own")
    # What is given wins over the file's other ways to say how long windows last.
    if stretched:
        changes["far_apart"] = False
    elif asked.get("far_apart"):
        changes["stretch_per_core_us"] = ()
    if "topology" in asked:
        changes["topology"] = Topology.parse(asked["topology"])
    if "stretch_range_us" in asked:
        low_high = _parse_us(asked["stretch_range_us"], "stretch-range-us")
        if len(low_high) != 2:
            raise UsageError(f"stretch-range-us '{asked['stretch_range_us']}' is not two numbers LOW,HIGH")
        changes |= {"stretch_us": low_high, "stretch_per_core_us": ()}
    scenario = msgspec.structs.replace(scenario, **changes)
    if "stretch_us" not in asked:
        return scenario
    per_core_us = _parse_us(asked["stretch_us"], "stretch-us")
    if len(per_core_us) == 1:
        per_core_us *= scenario.topology.total_cores
    return msgspec.structs.replace(scenario, stretch_per_core_us=per_core_us)


def _parse_place(text: str) -> Placed:
    table: dict[str, object] = {}
    what = f"place {text!r}" if len(text) <= MAX_SHOWN else f"place {text[:MAX_SHOWN]!r}..."
    for part in text.split(","):
        key, equals, value = part.partition("=")
        if not equals:
            raise UsageError(f"{what}: {part[:MAX_SHOWN]!r} is not KEY=VALUE with one of {', '.join(PLACED_KEYS)}")
        if key in table:
            raise UsageError(f"{what}: key '{key}' is given twice")
        is_number = value.removeprefix("-").isdecimal() and key != "at"
        table[key] = int(value) if is_number and len(value) < MAX_DIGITS else _TRUTH.get(value, value)
    return read_placed(table, what)


def _parse_us(text: str, option: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise UsageError(f"{option} '{text}' is not a whole number of microseconds, or several with commas") from None
