# SPDX-License-Identifier: GPL-2.0-or-later
"""Whether a guest's siblings are online or offline, and bringing them where a trial needs them."""

from lab.guest.shell import GuestShell
from lab.host.deadline import Deadline
from lab.model.evidence import Returned
from lab.model.topology import Topology
from lab.trial import guest_side


class SiblingSwitch:
    """Takes all siblings of a booted guest offline, and back.

    What it was not told by the guest it does not believe: after a failure, or when the guest shows other CPUs online,
    the next trial's siblings are set anew.
    """

    def __init__(self, shell: GuestShell, topology: Topology) -> None:
        self._shell = shell
        self._topology = topology
        self._online: bool | None = True

    def put(self, online: bool, deadline: Deadline) -> None:
        """Take the siblings offline, or bring them back, unless they are.

        :raise GuestError: the guest does not do it
        """
        if online is self._online:
            return
        self._online = None
        guest_side.set_siblings(self._shell, self._topology, online, deadline)
        self._online = online

    def bring_back(self, deadline: Deadline) -> Returned:
        """Bring the siblings back, and say what came of it.

        :raise EvidenceError: the guest shows something else than a list of CPUs and revisions
        """
        self._online = None
        returned = guest_side.return_siblings(self._shell, self._topology, deadline)
        if returned.online == tuple(range(self._topology.vcpus)):
            self._online = True
        return returned

    def compare(self, shown: tuple[int, ...]) -> None:
        """Forget where the siblings are when the guest shows other CPUs online."""
        if shown != (self._topology.primaries if self._online is False else tuple(range(self._topology.vcpus))):
            self._online = None
