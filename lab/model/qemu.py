# SPDX-License-Identifier: GPL-2.0-or-later
"""A QEMU as the lab knows it: which one it is, and what follows from that."""

import re
from pathlib import Path
from typing import Final

import msgspec

#: Of the plugin interface: what images/observer is written for.
MIN_LEVEL: Final = 1
MAX_LEVEL: Final = 7

_RELEASE: Final = re.compile(r"(\d+)\.(\d+)")
#: What the observer sees by each interface, and by all later ones (images/observer/interface.c).
_SIGHTS: Final = (
    (1, "blocks, instructions and halts"),
    (2, "the register that names an MSR"),
    (4, "the update that a WRMSR names"),
)
#: The interface since which a plugin can write registers and let a vCPU go on elsewhere.
_ENGINE_LEVEL: Final = 6
#: QEMU 10.2 gives what is new in interface 6 to plugins of 5.
_INTERRUPTS: Final = "interrupts, with the address that each left"
_INTERRUPTS_LEVEL: Final = 6
_INTERRUPTS_RELEASE: Final = (10, 2)
#: The release since which QEMU warns of -mon.
_MONITORS_ARE_OBJECTS: Final = (11, 1)
#: Releases with a known defect, and what that may do to a trial.
_CAUTIONS: Final = {(8, 0): "8.0 can hang as two vCPUs translate code of one page, which 8.1 mends"}


class Qemu(msgspec.Struct, frozen=True, kw_only=True):
    """A QEMU that guests can run on.

    :param path: absolute, as it is started
    :param version: such as ``7.2.22 (Debian 1:7.2+dfsg-7)``
    :param interface_min: the lowest plugin interface that it takes
    :param interface_max: the highest one
    :param sha256: of the program's file, also where ``path`` is a script that executes it
    """

    path: Path
    version: str
    interface_min: int
    interface_max: int
    sha256: str

    @property
    def release(self) -> tuple[int, int]:
        """Its first two numbers."""
        return read_release(self.version)

    @property
    def level(self) -> int:
        """The plugin interface that the observer is built for: the newest that both know."""
        return min(self.interface_max, MAX_LEVEL)

    @property
    def sees(self) -> tuple[str, ...]:
        """What the observer sees there, in a few words each."""
        found = tuple(what for least, what in _SIGHTS if self.level >= least)
        interrupts = self.level >= _INTERRUPTS_LEVEL or self.release >= _INTERRUPTS_RELEASE
        return (*found, _INTERRUPTS) if interrupts else found

    @property
    def can_be_engine(self) -> bool:
        """Whether the observer can answer for the engine there, so that updates take effect in any kernel."""
        return self.level >= _ENGINE_LEVEL

    @property
    def caution(self) -> str:
        """What is known to go wrong with it, empty for nothing."""
        return _CAUTIONS.get(self.release, "")

    @property
    def identity(self) -> str:
        """What tells it from others on any host, for a person."""
        return f"{self.version}, plugin interface {self.level}, SHA-256 {self.sha256[:12]}"


def read_release(version: str) -> tuple[int, int]:
    """Return the first two numbers of a version, zeros where it has none."""
    match = _RELEASE.match(version)
    return (int(match[1]), int(match[2])) if match else (0, 0)


def name_monitor(release: tuple[int, int], chardev: str) -> tuple[str, ...]:
    """Return the words by which a release makes a QMP monitor of a character device."""
    if release >= _MONITORS_ARE_OBJECTS:
        return ("-object", f"monitor-qmp,id={chardev}-qmp,chardev={chardev}")
    return ("-mon", f"chardev={chardev},mode=control")
