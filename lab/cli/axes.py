# SPDX-License-Identifier: GPL-2.0-or-later
"""The axes of a scenario as command-line options, the same for every command that runs trials."""

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import msgspec
import typer

from lab.errors import UsageError
from lab.host.files import read_text
from lab.host.paths import SCENARIOS
from lab.model.boot import Granularity
from lab.model.engine import Engine
from lab.model.phase import Phase, Role
from lab.model.placed import Placed
from lab.model.scenario import Aim, Parking, Scenario, Siblings
from lab.model.scenario_file import MAX_FILE_BYTES, PLACED_KEYS, NamedScenario, parse_scenario, read_placed
from lab.model.topology import Topology

#: More than any number that is allowed; Python refuses to read those with thousands.
MAX_DIGITS = 20
_TRUTH = {"true": True, "false": False}
#: Of a value that is wrong, in characters.
MAX_SHOWN = 80


class Axes(msgspec.Struct, frozen=True, kw_only=True):
    """What was given on a command line, None for what was not. Each field is an option of that name."""

    scenario: Annotated[
        Path | None,
        typer.Option(help="a scenario file, or a name of lab scenarios; options given beside it win over its keys"),
    ] = None
    topology: Annotated[str | None, typer.Option(help="SOCKETSxCORESxTHREADS (default: 1x2x2)")] = None
    nmis: Annotated[int | None, typer.Option(help="how many NMIs each trial sends, 0 for none (default: 12)")] = None
    aim: Annotated[Aim | None, typer.Option(help="whom the NMIs are sent to (default: broadcast)")] = None
    stretch_us: Annotated[
        str | None,
        typer.Option(help="hold windows open for this long, one number or one per core (default: drawn per core)"),
    ] = None
    stretch_range_us: Annotated[
        str | None, typer.Option(help="range LOW,HIGH that each core's window is drawn from (default: 10000,50000)")
    ] = None
    far_apart: Annotated[
        bool | None, typer.Option("--far-apart", help="draw 1 ms or 50 ms for each core, and both in each trial")
    ] = None
    siblings: Annotated[
        Siblings | None,
        typer.Option(help="where siblings are at the load; returning: offline, and back afterwards (default: online)"),
    ] = None
    fsgsbase: Annotated[
        bool | None, typer.Option("--fsgsbase/--no-fsgsbase", help="whether the kernel uses RDGSBASE and WRGSBASE")
    ] = None
    parking: Annotated[Parking | None, typer.Option(help="what offline threads wait in (default: hlt)")] = None
    min_revision: Annotated[
        bool | None, typer.Option("--min-revision", help="have the kernel insist on least revisions (6.12)")
    ] = None
    phase: Annotated[
        Phase | None, typer.Option(help="send the NMIs in this phase of each core's load (default: all over it)")
    ] = None
    role: Annotated[Role | None, typer.Option(help="with --phase: for this thread of each core (default: all)")] = None
    granularity: Annotated[
        Granularity | None, typer.Option(help="at which instructions NMIs can enter (default: block)")
    ] = None
    engine: Annotated[
        Engine | None, typer.Option(help="what the CPU does with the update (default: takes; else from QEMU 11.0 on)")
    ] = None
    place: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=VALUE,..",
            help=f"hold a thread at a place and send an NMI meanwhile, may be given again: {', '.join(PLACED_KEYS)}",
        ),
    ] = None


def takes_axes(command: Callable[..., None]) -> Callable[..., None]:
    """Let a command's parameter ``axes`` be filled from one option for each of its fields."""
    hints = get_type_hints(Axes, include_extras=True)
    options = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=hints[name])
        for name in Axes.__struct_fields__
    ]
    own = inspect.signature(command, eval_str=True)
    kept = [
        each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in own.parameters.values() if each.name != "axes"
    ]

    @functools.wraps(command)
    def run(**words: Any) -> None:
        axes = Axes(**{name: words.pop(name) for name in Axes.__struct_fields__})
        command(axes=axes, **words)

    # typer reads both of these.
    run.__signature__ = own.replace(parameters=[*kept, *options])  # type: ignore[attr-defined]
    run.__annotations__ = {each.name: each.annotation for each in (*kept, *options)}
    return run


def read_scenario(path: Path) -> NamedScenario:
    """Read a scenario file, or the one of this project that has a name.

    :raise UsageError: it cannot be read, or is no scenario
    """
    if not path.exists() and path.name == str(path):
        named = SCENARIOS / f"{path}.toml"
        path = named if named.is_file() else path
    return parse_scenario(read_text(path, MAX_FILE_BYTES, "scenario"), str(path), path.stem)


def make_scenario(given: Axes, mechanism: str | None) -> Scenario:
    """Return the scenario of a file, or the default one, with what was given in place of its own; not checked yet.

    :param mechanism: None takes that of the file
    :raise UsageError: neither names a mechanism, or an option is no value
    """
    if given.scenario is not None:
        scenario = read_scenario(given.scenario).scenario
    elif mechanism is not None:
        scenario = Scenario(mechanism=mechanism)
    else:
        raise UsageError("a mechanism is needed: give --mechanism NAME or --scenario FILE")
    changes: dict[str, object] = {"mechanism": mechanism or scenario.mechanism}
    plain = (
        "nmis",
        "aim",
        "far_apart",
        "siblings",
        "fsgsbase",
        "parking",
        "min_revision",
        "phase",
        "role",
        "granularity",
        "engine",
    )
    for name in plain:
        if getattr(given, name) is not None:
            changes[name] = getattr(given, name)
    if given.place:
        changes["placed"] = tuple(_parse_place(text) for text in given.place)
    stretched = given.stretch_us is not None or given.stretch_range_us is not None
    if given.far_apart and stretched:
        raise UsageError("far-apart draws each core's stretch: it cannot be given with a stretch of its own")
    # What is given wins over the file's other ways to say how long windows last.
    if stretched:
        changes["far_apart"] = False
    elif given.far_apart:
        changes["stretch_per_core_us"] = ()
    if given.topology is not None:
        changes["topology"] = Topology.parse(given.topology)
    if given.stretch_range_us is not None:
        low_high = _parse_us(given.stretch_range_us, "stretch-range-us")
        if len(low_high) != 2:
            raise UsageError(f"stretch-range-us '{given.stretch_range_us}' is not two numbers LOW,HIGH")
        changes |= {"stretch_us": low_high, "stretch_per_core_us": ()}
    scenario = msgspec.structs.replace(scenario, **changes)
    if given.stretch_us is None:
        return scenario
    per_core_us = _parse_us(given.stretch_us, "stretch-us")
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
