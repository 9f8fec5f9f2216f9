# SPDX-License-Identifier: GPL-2.0-or-later
"""The kernels under test: which witnesses each has inside the guest, and what it answers."""

import enum
import errno

import msgspec

from lab.errors import UsageError


class Witness(enum.Enum):
    """What a kernel tells of itself in ``microcode_lab/``, beside sysfs, dmesg and ``/proc/interrupts``."""

    STATE = "the rendezvous state"
    LEDGER = "the NMI ledger"


class Base(msgspec.Struct, frozen=True, kw_only=True):
    """One kernel of images/kernels.

    :param witnesses: what it has of ours; all else it has as every kernel does
    :param several: it holds several mechanisms, and is told in ``microcode_lab/mechanism`` which to use
    :param repeat_errno: what a write to ``reload`` returns when there is nothing newer to load
    :param has_min_revision: it can be told to refuse updates that name no least revision (``force_minrev``)
    """

    name: str
    witnesses: tuple[Witness, ...]
    several: bool
    repeat_errno: int
    has_min_revision: bool = False

    @property
    def version(self) -> str:
        """Its version without its stable updates, such as ``6.12``."""
        return self.name.removeprefix("linux-")


BASES = (
    Base(name="linux-6.1", witnesses=(Witness.STATE, Witness.LEDGER), several=True, repeat_errno=0),
    Base(name="linux-6.12", witnesses=(), several=False, repeat_errno=errno.ENOENT, has_min_revision=True),
)

_BY_NAME = {base.name: base for base in BASES}


def find_base(name: str) -> Base:
    """Return the base of that name.

    :raise UsageError: there is none; the text lists those there are
    """
    try:
        return _BY_NAME[name]
    except KeyError:
        raise UsageError(f"kernel '{name}' is unknown: there are {', '.join(_BY_NAME)}") from None
