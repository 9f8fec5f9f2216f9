# SPDX-License-Identifier: GPL-2.0-or-later
"""Ways to name a place in a kernel's code, or a stretch of it, so that vmlinux alone says where that is."""

import enum

import msgspec


class Turn(enum.Enum):
    """Which of several calls to the same function is meant, by the ways that lead from one to another."""

    #: There is no other.
    ONLY = "only"
    #: No other leads to it.
    FIRST = "first"
    #: It leads to no other.
    LAST = "last"


class Call(msgspec.Struct, frozen=True):
    """The instruction that calls a function, in another one.

    :param callee: the function called, or empty for the only call through a pointer that there is
    :param within: functions that the call may have been compiled into, the innermost first; the first there is counts
    :param turn: which call, where the function makes several
    """

    callee: str
    within: tuple[str, ...]
    turn: Turn = Turn.ONLY


class Return(msgspec.Struct, frozen=True):
    """The instruction behind a call: what is executed first when it has returned."""

    call: Call


class Locked(msgspec.Struct, frozen=True):
    """The only instruction of a function that has a LOCK prefix: what other CPUs are told by.

    :param within: the function
    """

    within: str


class Exits(msgspec.Struct, frozen=True):
    """All instructions by which a function returns.

    :param within: the function
    """

    within: str


class Path(msgspec.Struct, frozen=True):
    """All instructions of one function that lie on a way from the return of one call to another call, that included."""

    begin: Return
    end: Call


class Copies(msgspec.Struct, frozen=True):
    """Code that is data to the kernel, which copies it to where it is executed. All names are symbols of vmlinux.

    :param template: the object that is copied
    :param first: its value is the address of the first copy
    :param step: its value is how far each copy is from the one before, in bytes
    :param count: its value is how many copies there are
    """

    template: str
    first: str
    step: str
    count: str


class Copied(msgspec.Struct, frozen=True):
    """One instruction, in every copy.

    :param label: the symbol of that instruction in the template
    """

    label: str
    copies: Copies


class CopiedStretch(msgspec.Struct, frozen=True):
    """All instructions from one label to right before another, in every copy."""

    begin: str
    end: str
    copies: Copies


#: A place in the kernel's code; a name alone stands for the function's entry.
Place = str | Call | Return | Locked | Exits | Copied
#: Where a thread may be; a name alone stands for the whole function.
Stretch = str | Path | CopiedStretch
