# SPDX-License-Identifier: GPL-2.0-or-later
"""Has a warm guest read one microcode file: what the kernel said of it, and what came of it."""

from typing import Final

import msgspec

from lab.errors import EvidenceError, GuestError
from lab.host.deadline import Deadline
from lab.judge.dmesg import message_of
from lab.kernelimage.vmlinux import Kernel
from lab.mechanisms.mechanism import Mechanism
from lab.microcode.files import UcodeCpu
from lab.microcode.update import firmware_name
from lab.model.evidence import EventKind, ObserverEvidence, Sent
from lab.trial import guest_files, guest_side
from lab.trial.sentinels import send_sentinels
from lab.trial.session import TRIAL_S, Session

#: What the kernel keeps its taint flags in, an unsigned long (kernel/panic.c).
TAINTED_MASK: Final = "tainted_mask"
#: Of all that the kernel logs, what its loader does: its own lines, and those about the file that it asks for.
_LOADER: Final = "microcode"


class FileTried(msgspec.Struct, frozen=True, kw_only=True):
    """What one write to ``reload`` did with one file, in a guest whose kernel was not tainted before.

    :param load_errno: what the write returned, 0 for success
    :param said: the kernel's lines about microcode, without level and time
    :param tainted: the kernel's taint flags after it
    :param revisions_before: per CPU, from sysfs
    :param windows: cores whose first WRMSR 0x79 of the load the observer saw, in order of their numbers
    :param strays: how many WRMSRs 0x79 it saw beside those: later ones of a core, and ones outside any load
    """

    load_errno: int
    said: tuple[str, ...]
    tainted: int
    revisions_before: tuple[int, ...]
    revisions_after: tuple[int, ...]
    windows: tuple[int, ...]
    strays: int


def read_cpu(session: Session) -> UcodeCpu:
    """Return the CPU that a file for this guest is to be made for, as it is now.

    :raise GuestError: the guest does not show it
    :raise EvidenceError: it shows something else
    """
    agent, deadline = session.machine.agent, Deadline.after(TRIAL_S)
    signature, platform = guest_side.read_signature(agent, deadline)
    readings = guest_files.take_readings(agent, session.topology, session.base, deadline)
    return UcodeCpu(signature=signature, platform=platform, revision=max(readings.revisions))


def try_file(
    session: Session, kernel: Kernel, mechanism: Mechanism, data: bytes | None, *, min_revision: bool = False
) -> FileTried:
    """Put a file where the kernel asks for it, write to ``reload`` once, and say what came of it.

    :param kernel: the one that the guest runs
    :param mechanism: what a load is done by, where the file leads to one
    :param data: None where there is to be no file
    :param min_revision: the kernel is told to refuse updates that it may not load over its revision
    :raise GuestError: the guest did not do what was asked of it, or ended
    :raise EvidenceError: a witness failed, so that what it did not see may have been
    """
    agent, deadline = session.machine.agent, Deadline.after(TRIAL_S)
    base = session.base
    signature, _ = guest_side.read_signature(agent, deadline)
    steps = [guest_files.put_update(firmware_name(signature), data)]
    if session.switches_min_revision:
        steps.append(guest_files.set_min_revision(min_revision))
    elif min_revision:
        raise GuestError("the guest's kernel can be told to insist on least revisions by its command line only")
    agent.ask_all(steps, deadline)
    _clear_tainted(session, kernel, deadline)
    before = guest_files.take_readings(agent, session.topology, base, deadline)
    guest_files.choose_mechanism(agent, mechanism, base, deadline)
    link = session.arm_observer(mechanism, (0,) * session.topology.total_cores)
    try:
        load_errno = guest_files.load_late(agent, deadline)
        dmesg = guest_files.read_dmesg(agent, deadline)
        tainted = guest_files.read_tainted(agent, deadline)
        after = guest_files.take_readings(agent, session.topology, base, deadline)
        # Last: a kernel that does not know the lab's NMIs complains of them.
        sentinels = send_sentinels(session.machine, link, session.topology.vcpus, deadline)
    finally:
        link.disarm()
    observer = session.collect_observer()
    check_watched(observer, sentinels)
    return FileTried(
        load_errno=load_errno,
        said=tuple(message for line in dmesg if _LOADER in (message := message_of(line))),
        tainted=tainted,
        revisions_before=before.revisions,
        revisions_after=after.revisions,
        windows=tuple(sorted(window.core for window in observer.windows)),
        strays=sum(event.kind in (EventKind.RETRY, EventKind.EARLY) for event in observer.events),
    )


def check_watched(observer: ObserverEvidence, sentinels: tuple[Sent, ...]) -> None:
    """See that the observer kept all that it recorded, and recorded the NMI that each vCPU was sent in the end.

    :raise EvidenceError: it did not: that it saw no WRMSR then means nothing
    """
    if observer.records_lost or observer.windows_lost:
        raise EvidenceError(f"the observer lost {observer.records_lost} records and {observer.windows_lost} windows")
    for sent in sentinels:
        own = (event for event in observer.events if event.vcpu == sent.vcpu and event.kind is EventKind.NMI_ENTRY)
        if not any(event.mono_ns >= sent.send_ns for event in own):
            raise EvidenceError(f"the observer did not see the NMI that vCPU {sent.vcpu} was sent")


def _clear_tainted(session: Session, kernel: Kernel, deadline: Deadline) -> None:
    """Make the kernel forget that it is tainted, from outside: a guest can only add flags."""
    flags = kernel.find_object(TAINTED_MASK)
    session.machine.memory.write_kernel(flags.start, 0, flags.size, deadline)
    left = guest_files.read_tainted(session.machine.agent, deadline)
    if left:
        raise GuestError(f"the guest's taint flags are {left} after they were cleared")
