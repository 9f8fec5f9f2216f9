# SPDX-License-Identifier: GPL-2.0-or-later
"""The kernels under test: which witnesses each kernel has in the guest, and what each kernel answers."""

import enum
import errno

import msgspec

from lab.errors import UsageError, tell_nearest

#: The lab writes this line to a kernel's log right before a load that the kernel may begin without a message.
LOAD_MARK = "microcode-nmi-lab: a load begins"


class Witness(enum.Enum):
    """What a kernel shows of itself in ``microcode_lab/``.

    Every kernel also has sysfs, dmesg and ``/proc/interrupts``.
    """

    STATE = "the rendezvous state"
    LEDGER = "the NMI ledger"


class Loader(enum.Enum):
    """Generations of the kernel's late loader. Each generation has its own messages and errno values."""

    #: The rendezvous is in stop_machine() alone.
    BEFORE_6_7 = "before 6.7"
    #: The rendezvous is in the NMI handler.
    SINCE_6_7 = "since 6.7"


class Base(msgspec.Struct, frozen=True, kw_only=True):
    """One kind of kernel: a kernel of images/kernels, or a kernel that a user brings.

    :param loader: the loader whose messages and errno values the kernel uses
    :param engine: the kernel has the lab's engine, so that an update takes effect under an emulator
    :param witnesses: the lab's own witnesses in this kernel; the other witnesses exist in every kernel
    :param several: the kernel has several mechanisms; the lab selects the mechanism in ``microcode_lab/mechanism``
    :param repeat_errno: the result of a write to ``reload`` when there is no newer update to load
    :param failed_errno: the result of a write to ``reload`` when the update did not take effect everywhere
    :param has_min_revision: the kernel can refuse updates that name no minimum revision (``force_minrev``)
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
        """Whether the kernel may begin a load without a message, as before 5.19.

        The lab then marks the kernel's log.
        """
        return self.loader is Loader.BEFORE_6_7 and not self.engine

    @property
    def version(self) -> str:
        """The version without its stable updates, such as ``6.12``; empty where the kernel may have any version."""
        return self.name.removeprefix("linux-") if self.engine else ""


#: The kernels of images/kernels.
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

#: The kernels that a user brings. Nothing of the lab is inside them.
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
    """Return the base of a given name.

    :raise UsageError: no base has this name; the text lists the bases that the lab builds
    """
    try:
        return _BY_NAME[name]
    except KeyError:
        known = [base.name for base in BASES]
        near = tell_nearest(name, known)
        raise UsageError(f"kernel '{name}' is unknown: there are {', '.join(known)}{near}") from None
