# SPDX-License-Identifier: GPL-2.0-or-later
"""Describes a QEMU: its identity, and what follows from its version."""

import re
from pathlib import Path
from typing import Final

import msgspec

#: The plugin interface that images/observer is written for.
MIN_LEVEL: Final = 1
MAX_LEVEL: Final = 7

_RELEASE: Final = re.compile(r"(\d+)\.(\d+)")
#: What the observer sees with each interface and with all later interfaces (images/observer/interface.c).
_SIGHTS: Final = (
    (1, "blocks, instructions and halts"),
    (2, "the register that names an MSR"),
    (4, "the update that a WRMSR names"),
)
#: From this interface on a plugin can write registers and send a vCPU to another instruction.
_ENGINE_LEVEL: Final = 6
#: QEMU 10.2 gives the new part of interface 6 to plugins of interface 5.
_INTERRUPTS: Final = "interrupts, with the address that each left"
_INTERRUPTS_LEVEL: Final = 6
_INTERRUPTS_RELEASE: Final = (10, 2)
#: From this release on QEMU warns about -mon.
_MONITORS_ARE_OBJECTS: Final = (11, 1)
#: Releases with a known defect, and the effect of the defect on a trial.
_CAUTIONS: Final = {(8, 0): "8.0 can hang as two vCPUs translate code of one page, which 8.1 mends"}


class Qemu(msgspec.Struct, frozen=True, kw_only=True):
    """A QEMU that can run guests.

    :param path: the absolute path with which the lab starts QEMU
    :param version: such as ``7.2.22 (Debian 1:7.2+dfsg-7)``
    :param interface_min: the lowest plugin interface that this QEMU accepts
    :param interface_max: the highest plugin interface that this QEMU accepts
    :param sha256: of the program's file; if ``path`` is a script, of the program that the script executes
    """

    path: Path
    version: str
    interface_min: int
    interface_max: int
    sha256: str

    @property
    def release(self) -> tuple[int, int]:
        """The first two numbers of the version."""
        return read_release(self.version)

    @property
    def level(self) -> int:
        """The newest plugin interface that QEMU and the observer both know.

        The observer is built for this interface.
        """
        return min(self.interface_max, MAX_LEVEL)

    @property
    def sees(self) -> tuple[str, ...]:
        """What the observer sees with this QEMU, each part in a few words."""
        found = tuple(what for least, what in _SIGHTS if self.level >= least)
        interrupts = self.level >= _INTERRUPTS_LEVEL or self.release >= _INTERRUPTS_RELEASE
        return (*found, _INTERRUPTS) if interrupts else found

    @property
    def can_be_engine(self) -> bool:
        """Whether the observer can answer for the engine there, so that updates take effect in any kernel."""
        return self.level >= _ENGINE_LEVEL

    @property
    def caution(self) -> str:
        """A known defect of this QEMU; empty where the lab knows of no defect."""
        return _CAUTIONS.get(self.release, "")

    @property
    def identity(self) -> str:
        """Text for a person that identifies this QEMU on any host."""
        return f"{self.version}, plugin interface {self.level}, SHA-256 {self.sha256[:12]}"


def read_release(version: str) -> tuple[int, int]:
    """Return the first two numbers of a version, or zeros where the version has no numbers."""
    match = _RELEASE.match(version)
    return (int(match[1]), int(match[2])) if match else (0, 0)


def name_monitor(release: tuple[int, int], chardev: str) -> tuple[str, ...]:
    """Return the command-line words with which a release makes a QMP monitor of a character device."""
    if release >= _MONITORS_ARE_OBJECTS:
        return ("-object", f"monitor-qmp,id={chardev}-qmp,chardev={chardev}")
    return ("-mon", f"chardev={chardev},mode=control")
