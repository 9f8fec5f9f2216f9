# SPDX-License-Identifier: GPL-2.0-or-later
"""One NMI to each vCPU once all is over: what was pending before shows itself by then, and that the observer sees."""

import time
from typing import Final

from lab.guest.machine import Machine
from lab.host.deadline import Deadline
from lab.model.evidence import Sent
from lab.observer.link import ObserverLink

SETTLE_STEP_S: Final = 0.001
SETTLE_BOUND_S: Final = 1.0


def send_sentinels(machine: Machine, link: ObserverLink, vcpus: int, deadline: Deadline) -> tuple[Sent, ...]:
    """Send each vCPU an NMI, and wait until so many have been entered, but no longer than SETTLE_BOUND_S.

    :raise GuestError: one could not be sent
    """
    entered = link.entries() + vcpus
    sentinels = []
    for vcpu in range(vcpus):
        send_ns, reply_ns = machine.aimed.inject(vcpu, deadline)
        sentinels.append(Sent(index=-1, vcpu=vcpu, send_ns=send_ns, reply_ns=reply_ns))
    bound = deadline.within(SETTLE_BOUND_S)
    while link.entries() < entered and not bound.expired:
        time.sleep(SETTLE_STEP_S)
    return tuple(sentinels)
