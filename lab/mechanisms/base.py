# SPDX-License-Identifier: GPL-2.0-or-later
"""The kernels under test: which witnesses each has inside the guest, and what it answers."""

import enum
import errno

import msgspec

from lab.errors import UsageError, tell_nearest

#: What the lab writes to a kernel's log right before a load that the kernel may begin without a word.
LOAD_MARK = "microcode-nmi-lab: a load begins"


class Witness(enum.Enum):
    """What a kernel tells of itself in ``microcode_lab/``, beside sysfs, dmesg and ``/proc/interrupts``."""

    STATE = "the rendezvous state"
    LEDGER = "the NMI ledger"


class Loader(enum.Enum):
    """Generations of the kernel's late loader: each has words and errno of its own."""

    #: The rendezvous in stop_machine() alone.
    BEFORE_6_7 = "before 6.7"
    #: The rendezvous in the NMI handler.
    SINCE_6_7 = "since 6.7"


class Base(msgspec.Struct, frozen=True, kw_only=True):
    """One kind of kernel: one of images/kernels, or any that a user brings.

    :param loader: whose words and errno it speaks
    :param engine: it has our engine, so that an update takes effect under every emulator
    :param witnesses: what it has of ours; all else it has as every kernel does
    :param several: it holds several mechanisms, and is told in ``microcode_lab/mechanism`` which to use
    :param repeat_errno: what a write to ``reload`` returns when there is nothing newer to load
    :param failed_errno: what it returns when the update did not take effect everywhere
    :param has_min_revision: it can be told to refuse updates that name no least revision (``force_minrev``)
    """

    name: str
    loader: Loader
    engine: bool
    witnesses: tuple[Witness, ...]
    several: bool
    repeat_errno: int
    failed_errno: int
    has_min_revision: bool = False

    @property
    def needs_mark(self) -> bool:
        """Whether it may begin a load without a word, as before 5.19: then the lab marks its log."""
        return self.loader is Loader.BEFORE_6_7 and not self.engine

    @property
    def version(self) -> str:
        """Its version without its stable updates, such as ``6.12``; empty where it may be any."""
        return self.name.removeprefix("linux-") if self.engine else ""


#: Those of images/kernels.
BASES = (
    Base(
        name="linux-6.1",
        loader=Loader.BEFORE_6_7,
        engine=True,
        witnesses=(Witness.STATE, Witness.LEDGER),
        several=True,
        repeat_errno=0,
        failed_errno=errno.EPERM,
    ),
    Base(
        name="linux-6.12",
        loader=Loader.SINCE_6_7,
        engine=True,
        witnesses=(),
        several=False,
        repeat_errno=errno.ENOENT,
        failed_errno=errno.EIO,
        has_min_revision=True,
    ),
)

#: Those that a user brings, with nothing of ours inside.
STOCK_BASES = (
    Base(
        name="stock-before-6.7",
        loader=Loader.BEFORE_6_7,
        engine=False,
        witnesses=(),
        several=False,
        repeat_errno=0,
        failed_errno=errno.EPERM,
    ),
    Base(
        name="stock-since-6.7",
        loader=Loader.SINCE_6_7,
        engine=False,
        witnesses=(),
        several=False,
        repeat_errno=errno.ENOENT,
        failed_errno=errno.EIO,
        has_min_revision=True,
    ),
)

_BY_NAME = {base.name: base for base in (*BASES, *STOCK_BASES)}


def find_base(name: str) -> Base:
    """Return the base of that name.

    :raise UsageError: there is none; the text lists those that the lab builds
    """
    try:
        return _BY_NAME[name]
    except KeyError:
        known = [base.name for base in BASES]
        near = tell_nearest(name, known)
        raise UsageError(f"kernel '{name}' is unknown: there are {', '.join(known)}{near}") from None
