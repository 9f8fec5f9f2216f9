# SPDX-License-Identifier: GPL-2.0-or-later
"""The one table of a scenario's axes: keys of a file, options of a command, words that ask for the same, and help.

An axis is added here and as a field of :class:`lab.model.scenario.Scenario`. The command line (lab.cli.axes), scenario
files (lab.model.scenario_file) and the page docs/reference/scenario.md (lab.model.axes_page) follow.
"""

import enum
from collections.abc import Callable
from typing import Any, Final

import msgspec

from lab.model.boot import Granularity
from lab.model.engine import Engine
from lab.model.hold import ANY_BLOCK, DEFAULT_BOUND_US, LANDMARKS, MAX_ARRIVAL, MAX_HELD_US
from lab.model.phase import Phase, Role
from lab.model.placed import Placed, Target
from lab.model.scenario import (
    DEFAULT_NMIS,
    DEFAULT_STRETCH_US,
    MAX_NMIS,
    MAX_STRETCH_US,
    Aim,
    Parking,
    Siblings,
)
from lab.model.topology import Topology


class Axis(msgspec.Struct, frozen=True, kw_only=True):
    """One axis of a scenario.

    :param key: of a scenario file; the field of :class:`lab.model.scenario.Scenario`
    :param option: of the command line, as typer declares it; ``--on/--off`` for a switch that can be given either way
    :param takes: what the option reads; ``str`` for text that has a form of its own, and a switch's is ``bool``
    :param what: what the axis changes
    :param allowed: what the key may be, in words for whoever wrote it wrong
    :param default: what is taken where neither key nor option is given; empty where ``what`` says it
    :param write: the option's words for a value that is not the default
    :param metavar: what the help calls the option's value, where typer would not know
    :param repeats: the option may be given again
    """

    key: str
    option: str
    takes: type
    what: str
    allowed: str
    default: str
    write: Callable[[Any], tuple[str, ...]]
    metavar: str | None = None
    repeats: bool = False

    @property
    def parameter(self) -> str:
        """What a command's function calls it."""
        return self.option.partition("/")[0].removeprefix("--").replace("-", "_")

    @property
    def help(self) -> str:
        """What the help of a command says of it."""
        return f"{self.what} (default: {self.default})" if self.default else self.what

    @property
    def names(self) -> tuple[str, ...]:
        """The values that have names, and so can be mistyped."""
        return tuple(each.value for each in self.takes) if issubclass(self.takes, enum.Enum) else ()


class PlacedKey(msgspec.Struct, frozen=True, kw_only=True):
    """One key of a placed NMI.

    :param what: what it says
    :param allowed: as of :class:`Axis`
    :param default: what is taken where it is not given; empty where it must be
    :param names: as of :class:`Axis`
    """

    key: str
    what: str
    allowed: str
    default: str = ""
    names: tuple[str, ...] = ()


def _quote(values: type[enum.Enum]) -> str:
    return "one of " + ", ".join(f'"{each.value}"' for each in values)


def _list_names(values: type[enum.Enum]) -> tuple[str, ...]:
    return tuple(each.value for each in values)


def _write_placed(placed: Placed) -> str:
    plain = Placed(at=placed.at, role=placed.role)
    fields = {
        name: getattr(placed, name)
        for name in Placed.__struct_fields__
        if name in ("at", "role") or getattr(placed, name) != getattr(plain, name)
    }
    return ",".join(f"{name}={getattr(value, 'value', value)}" for name, value in fields.items())


_STRETCH: Final = f"whole numbers of microseconds from 0 to {MAX_STRETCH_US}"
_TRUTH: Final = "true or false"
_DEFAULT_RANGE: Final = ",".join(map(str, DEFAULT_STRETCH_US))

#: In the order in which a placed NMI is written.
PLACED: Final = (
    PlacedKey(
        key="at",
        what="the place: that of a block's first instruction",
        allowed=f"a landmark ({', '.join(LANDMARKS)}), {ANY_BLOCK}, function+0x.. or 0x..",
    ),
    PlacedKey(
        key="role",
        what="which thread of the core is stopped there",
        allowed=_quote(Role),
        names=_list_names(Role),
    ),
    PlacedKey(key="core", what="which core", allowed="the number of a core", default="0"),
    PlacedKey(
        key="phase",
        what="count only visits in this phase of the core's load",
        allowed=_quote(Phase),
        default="all phases",
        names=_list_names(Phase),
    ),
    PlacedKey(
        key="arrival",
        what="which visit to the place",
        allowed=f"a whole number from 1 to {MAX_ARRIVAL}",
        default="1",
    ),
    PlacedKey(
        key="nmi",
        what="who receives an NMI during the hold",
        allowed=_quote(Target),
        default=Target.HELD.value,
        names=_list_names(Target),
    ),
    PlacedKey(
        key="bound_us",
        what="end the hold after this long, whatever happens",
        allowed=f"a whole number of microseconds from 1 to {MAX_HELD_US}, of all together",
        default=str(DEFAULT_BOUND_US),
    ),
    PlacedKey(
        key="until",
        what="end the hold only after the hold of another placed NMI",
        allowed="the number of another placed NMI, counted from 0",
        default="none",
    ),
    PlacedKey(
        key="early",
        what="take visits before the phase, too: the thread then waits at the place for the phase",
        allowed=_TRUTH,
        default="false",
    ),
)
PLACED_KEYS: Final = tuple(each.key for each in PLACED)

#: In the order in which help, files and pages name them.
AXES: Final = (
    Axis(
        key="topology",
        option="--topology",
        takes=str,
        what="SOCKETSxCORESxTHREADS",
        allowed='SOCKETSxCORESxTHREADS, such as "1x2x2"',
        default=str(Topology(1, 2, 2)),
        write=lambda topology: ("--topology", str(topology)),
    ),
    Axis(
        key="nmis",
        option="--nmis",
        takes=int,
        what="how many NMIs each trial sends, 0 for none",
        allowed=f"a whole number from 0 to {MAX_NMIS}",
        default=str(DEFAULT_NMIS),
        write=lambda nmis: ("--nmis", str(nmis)),
    ),
    Axis(
        key="aim",
        option="--aim",
        takes=Aim,
        what="whom the NMIs are sent to",
        allowed=_quote(Aim),
        default=Aim.BROADCAST.value,
        write=lambda aim: ("--aim", aim.value),
    ),
    Axis(
        key="stretch_per_core_us",
        option="--stretch-us",
        takes=str,
        what="hold windows open for this long, one number or one per core",
        allowed=f"one number for each core: {_STRETCH}",
        default="drawn per core",
        write=lambda stretch_us: ("--stretch-us", ",".join(map(str, stretch_us))),
    ),
    Axis(
        key="stretch_us",
        option="--stretch-range-us",
        takes=str,
        what="range LOW,HIGH that each core's window is drawn from",
        allowed=f"a range of two {_STRETCH}, such as [10000, 50000]",
        default=_DEFAULT_RANGE,
        write=lambda low_high_us: ("--stretch-range-us", ",".join(map(str, low_high_us))),
    ),
    Axis(
        key="far_apart",
        option="--far-apart",
        takes=bool,
        what="draw 1 ms or 50 ms for each core, and both in each trial",
        allowed=_TRUTH,
        default="",
        write=lambda _: ("--far-apart",),
    ),
    Axis(
        key="siblings",
        option="--siblings",
        takes=Siblings,
        what="where siblings are at the load; returning: offline, and back afterwards",
        allowed=_quote(Siblings),
        default=Siblings.ONLINE.value,
        write=lambda siblings: ("--siblings", siblings.value),
    ),
    Axis(
        key="fsgsbase",
        option="--fsgsbase/--no-fsgsbase",
        takes=bool,
        what="whether the kernel uses RDGSBASE and WRGSBASE",
        allowed=_TRUTH,
        default="",
        write=lambda _: ("--no-fsgsbase",),
    ),
    Axis(
        key="parking",
        option="--parking",
        takes=Parking,
        what="what offline threads wait in",
        allowed=_quote(Parking),
        default=Parking.HLT.value,
        write=lambda parking: ("--parking", parking.value),
    ),
    Axis(
        key="min_revision",
        option="--min-revision",
        takes=bool,
        what="have the kernel insist on least revisions (since 6.7)",
        allowed=_TRUTH,
        default="",
        write=lambda _: ("--min-revision",),
    ),
    Axis(
        key="phase",
        option="--phase",
        takes=Phase,
        what="send the NMIs in this phase of each core's load",
        allowed=_quote(Phase),
        default="all over it",
        write=lambda phase: ("--phase", phase.value),
    ),
    Axis(
        key="role",
        option="--role",
        takes=Role,
        what="with --phase: for this thread of each core",
        allowed=_quote(Role),
        default="all",
        write=lambda role: ("--role", role.value),
    ),
    Axis(
        key="granularity",
        option="--granularity",
        takes=Granularity,
        what="at which instructions NMIs can enter",
        allowed=_quote(Granularity),
        default=Granularity.BLOCK.value,
        write=lambda granularity: ("--granularity", granularity.value),
    ),
    Axis(
        key="engine",
        option="--engine",
        takes=Engine,
        what="what the CPU does with the update; all but takes and refuses need QEMU 11.0 or newer",
        allowed=_quote(Engine),
        default=Engine.TAKES.value,
        write=lambda engine: ("--engine", engine.value),
    ),
    Axis(
        key="placed",
        option="--place",
        takes=str,
        metavar="KEY=VALUE,..",
        repeats=True,
        what=f"hold a thread at a place and send an NMI meanwhile, may be given again: {', '.join(PLACED_KEYS)}",
        allowed=f"tables with the keys {', '.join(PLACED_KEYS)}",
        default="",
        write=lambda placed: tuple(word for each in placed for word in ("--place", _write_placed(each))),
    ),
)
