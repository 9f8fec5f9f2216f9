# SPDX-License-Identifier: GPL-2.0-or-later
"""Where a guest's siblings are believed to be: never elsewhere than the guest itself said last."""

import pytest

from lab.errors import EvidenceError, GuestError
from lab.guest.shell import GuestShell, ShellResult
from lab.host.deadline import Deadline
from lab.model.topology import Topology
from lab.trial.guest_files import find_next_revision
from lab.trial.siblings import SiblingSwitch

TOPOLOGY = Topology(1, 2, 2)
ALL, PRIMARIES = b"0-3\n", b"0,2\n"


class SmtShell(GuestShell):
    """A guest's shell that answers what a test says, and keeps which way SMT was switched."""

    def __init__(self) -> None:
        self.online = ALL
        self.status = 0
        self.switched: list[str] = []

    def run(self, script: str, deadline: Deadline) -> ShellResult:
        deadline.check("the guest")
        if "smt/control" not in script:
            return ShellResult(0, self.online + b"==mclab==\n0x2\n0x2\n0x2\n0x2\n")
        self.switched.append("on" if "echo on" in script else "off")
        return ShellResult(self.status, self.online)


def make() -> tuple[SmtShell, SiblingSwitch, Deadline]:
    shell = SmtShell()
    return shell, SiblingSwitch(shell, TOPOLOGY), Deadline.after(60)


def test_what_is_there_already_is_not_asked_for() -> None:
    shell, switch, deadline = make()
    switch.put(True, deadline)
    assert shell.switched == []

    shell.online = PRIMARIES
    for _ in range(2):
        switch.put(False, deadline)
        switch.compare((0, 2))
    assert shell.switched == ["off"]

    shell.online = ALL
    assert switch.bring_back(deadline).online == (0, 1, 2, 3)
    switch.put(True, deadline)
    assert shell.switched == ["off", "on"]


@pytest.mark.parametrize(("online", "status"), [(ALL, 0), (b"0,2-3\n", 0), (b"nonsense\n", 0), (PRIMARIES, 1)])
def test_after_a_failure_it_is_asked_for_again(online: bytes, status: int) -> None:
    """A trial that died between two ways leaves a guest of which nobody knows."""
    shell, switch, deadline = make()
    shell.online, shell.status = online, status
    with pytest.raises((GuestError, EvidenceError)):
        switch.put(False, deadline)
    shell.online, shell.status = ALL, 0
    switch.put(True, deadline)
    assert shell.switched == ["off", "on"]


@pytest.mark.parametrize("left", [b"0,2\n", b"0-2\n", b"1-3\n"])
def test_siblings_that_did_not_all_return_are_taken_offline_before_the_next_load(left: bytes) -> None:
    shell, switch, deadline = make()
    shell.online = PRIMARIES
    switch.put(False, deadline)
    shell.online = left
    switch.bring_back(deadline)
    shell.online = PRIMARIES
    switch.put(False, deadline)
    assert shell.switched == ["off", "on", "off"]


@pytest.mark.parametrize("shown", [(0, 1, 2), (0, 2), ()])
def test_a_guest_that_shows_others_online_is_set_anew(shown: tuple[int, ...]) -> None:
    shell, switch, deadline = make()
    switch.compare((0, 1, 2, 3))
    switch.put(True, deadline)
    assert shell.switched == []
    switch.compare(shown)
    switch.put(True, deadline)
    assert shell.switched == ["on"]


def test_the_next_revision_is_newer_than_any_shown() -> None:
    assert find_next_revision((1, -1, 7, -1)) == 8
    assert find_next_revision((0,)) == 1
    assert find_next_revision((0xFFFF_FFFE, -1)) == 0xFFFF_FFFF


@pytest.mark.parametrize("revisions", [(-1, -1), (1, 0xFFFF_FFFF), (2**64,)])
def test_where_there_is_none_the_guest_is_to_blame(revisions: tuple[int, ...]) -> None:
    """Not the user: an update that cannot be made is wrong usage."""
    with pytest.raises(GuestError, match="no update is newer"):
        find_next_revision(revisions)
