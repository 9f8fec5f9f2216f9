# SPDX-License-Identifier: GPL-2.0-or-later
"""The axes of a scenario as command-line options, the same for every command that runs trials."""

from pathlib import Path
from typing import Annotated

import msgspec
import typer

from lab.errors import UsageError
from lab.host.files import read_text
from lab.spec.scenario import Aim, Parking, Scenario, Siblings
from lab.spec.scenario_file import MAX_FILE_BYTES, NamedScenario, parse_scenario
from lab.spec.topology import Topology

TopologyOption = Annotated[str | None, typer.Option(help="SOCKETSxCORESxTHREADS (default: 1x2x2)")]
NmisOption = Annotated[int | None, typer.Option(help="how many NMIs each trial sends, 0 for none (default: 12)")]
AimOption = Annotated[Aim | None, typer.Option(help="whom the NMIs are sent to (default: broadcast)")]
StretchOption = Annotated[
    str | None,
    typer.Option(help="hold windows open for this long, one number or one per core (default: drawn per core)"),
]
StretchRangeOption = Annotated[
    str | None, typer.Option(help="range LOW,HIGH that each core's window is drawn from (default: 10000,50000)")
]
FarApartOption = Annotated[
    bool | None, typer.Option("--far-apart", help="draw 1 ms or 50 ms for each core, and both in each trial")
]
SiblingsOption = Annotated[
    Siblings | None,
    typer.Option(help="where siblings are at the load; returning: offline, and back afterwards (default: online)"),
]
FsgsbaseOption = Annotated[
    bool | None, typer.Option("--fsgsbase/--no-fsgsbase", help="whether the kernel uses RDGSBASE and WRGSBASE")
]
ParkingOption = Annotated[Parking | None, typer.Option(help="what offline threads wait in (default: hlt)")]
MinRevisionOption = Annotated[
    bool | None, typer.Option("--min-revision", help="have the kernel insist on least revisions (6.12)")
]
ScenarioOption = Annotated[
    Path | None, typer.Option("--scenario", help="a scenario file; options given beside it win over its keys")
]


class Axes(msgspec.Struct, frozen=True, kw_only=True):
    """What was given on a command line, None for what was not."""

    topology: str | None = None
    nmis: int | None = None
    aim: Aim | None = None
    stretch_us: str | None = None
    stretch_range_us: str | None = None
    far_apart: bool | None = None
    siblings: Siblings | None = None
    fsgsbase: bool | None = None
    parking: Parking | None = None
    min_revision: bool | None = None


def read_scenario(path: Path) -> NamedScenario:
    """Read a scenario file.

    :raise UsageError: it cannot be read, or is no scenario
    """
    return parse_scenario(read_text(path, MAX_FILE_BYTES, "scenario"), str(path), path.stem)


def make_scenario(given: Axes, mechanism: str | None, file: Path | None) -> Scenario:
    """Return the scenario of a file, or the default one, with what was given in place of its own; not checked yet.

    :param mechanism: None takes that of the file
    :raise UsageError: neither names a mechanism, or an option is no value
    """
    if file is not None:
        scenario = read_scenario(file).scenario
    elif mechanism is not None:
        scenario = Scenario(mechanism=mechanism)
    else:
        raise UsageError("a mechanism is needed: give --mechanism NAME or --scenario FILE")
    changes: dict[str, object] = {"mechanism": mechanism or scenario.mechanism}
    for name in ("nmis", "aim", "far_apart", "siblings", "fsgsbase", "parking", "min_revision"):
        if getattr(given, name) is not None:
            changes[name] = getattr(given, name)
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


def _parse_us(text: str, option: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise UsageError(f"{option} '{text}' is not a whole number of microseconds, or several with commas") from None
