# SPDX-License-Identifier: GPL-2.0-or-later
"""Ways to name a place or a stretch in a kernel's code, so that vmlinux alone shows the addresses."""

import enum

import msgspec


class Turn(enum.Enum):
    """Selects one of several calls to the same function. The control flow between the calls decides."""

    #: The function has no other call.
    ONLY = "only"
    #: No other call leads to this call.
    FIRST = "first"
    #: This call leads to no other call.
    LAST = "last"


class Call(msgspec.Struct, frozen=True):
    """The instruction in one function that calls another function.

    :param callee: the called function; empty for the only call through a pointer
    :param within: functions that may contain the call after inlining, the innermost first; the first function that
        exists counts
    :param turn: selects the call, where the function makes several calls
    """

    callee: str
    within: tuple[str, ...]
    turn: Turn = Turn.ONLY


class Return(msgspec.Struct, frozen=True):
    """The instruction behind a call: the first instruction that executes after the return."""

    call: Call


class Locked(msgspec.Struct, frozen=True):
    """The only instruction of a function with a LOCK prefix. This instruction tells other CPUs.

    :param within: the function
    """

    within: str


class Exits(msgspec.Struct, frozen=True):
    """All return instructions of a function.

    :param within: the function
    """

    within: str


class Path(msgspec.Struct, frozen=True):
    """All instructions of one function between the return of one call and another call. The second call is included."""

    begin: Return
    end: Call


class Copies(msgspec.Struct, frozen=True):
    """Code that the kernel treats as data and copies to the place of execution. All names are symbols of vmlinux.

    :param template: the object that the kernel copies
    :param first: the value of this symbol is the address of the first copy
    :param step: the value of this symbol is the distance between two copies, in bytes
    :param count: the value of this symbol is the number of copies
    """

    template: str
    first: str
    step: str
    count: str


class Copied(msgspec.Struct, frozen=True):
    """One instruction in every copy.

    :param label: the symbol of the instruction in the template
    """

    label: str
    copies: Copies


class CopiedStretch(msgspec.Struct, frozen=True):
    """All instructions from one label to right before another label, in every copy."""

    begin: str
    end: str
    copies: Copies


#: A place in the kernel's code. A plain name means the entry of that function.
Place = str | Call | Return | Locked | Exits | Copied
#: Code in which a thread may be. A plain name means the whole function.
Stretch = str | Path | CopiedStretch
