# SPDX-License-Identifier: GPL-2.0-or-later
"""Every error the lab raises on purpose.

Split by what a caller can do about it::

    LabError
    +-- UsageError      the user asked for something that cannot be: mend the input (exit 2)
    +-- HostError       this machine lacks something, or has run out of it (exit 2: no trial was judged by it)
    |   +-- BuildError      a recipe of images/ did not build
    |   +-- ProcessError    a program the lab ran failed
    +-- GuestError      the guest did not do what the lab asked; evidence, not a verdict
    |   +-- GuestGone       QEMU ended, or the guest panicked or reset
    |   +-- DeadlineError   a wait reached its deadline
    +-- EvidenceError   an evidence folder is foreign, truncated or of another schema
    +-- Withdrawn       what was being waited for is no longer wanted
"""

from collections.abc import Iterable

#: No name of the lab is longer; comparing takes the product of both lengths.
_MAX_NAME = 100


class LabError(Exception):
    """Root of all errors raised on purpose; its text is one clear sentence for a person."""


class UsageError(LabError):
    """The input names something impossible; the text names the field, file or flag and what is allowed."""


class HostError(LabError):
    """The host lacks a tool, space or a permission; the text says which command mends it, where one does."""


class BuildError(HostError):
    """A recipe did not build; the text names the step and the log."""


class ProcessError(HostError):
    """A program failed.

    :param command: what was run
    :param status: its exit status, negative for a signal
    :param output: the end of what it printed
    """

    def __init__(self, command: tuple[str, ...], status: int, output: str) -> None:
        self.command = command
        self.status = status
        self.output = output
        tail = output.strip().splitlines()[-1:] or ["no output"]
        super().__init__(f"'{command[0]}' ended with status {status}: {tail[0]}")


class GuestError(LabError):
    """The guest did not do what was asked of it."""


class GuestUnfit(GuestError):
    """The guest is not the machine that a trial needs, by an accident of its boot: another one may be."""


class GuestGone(GuestError):
    """QEMU ended, or the guest panicked or reset; the text says what was seen."""


class DeadlineError(GuestError):
    """A wait reached its deadline; the text names what was waited for."""


class EvidenceError(LabError):
    """An evidence folder cannot be read as one; the text names what is missing or foreign."""


class Withdrawn(LabError):
    """A wait was given up, since nobody wants what it was for any more; nothing has begun."""


def tell_nearest(name: object, known: Iterable[str]) -> str:
    """Return the end of a sentence that refuses a name: which known one was meant, or nothing where none is near."""
    if not isinstance(name, str):
        return ""
    # An error is rare, and nothing else of the lab compares texts.
    from difflib import get_close_matches

    near = get_close_matches(name[:_MAX_NAME], tuple(known), n=1)
    return f"; did you mean '{near[0]}'?" if near else ""
