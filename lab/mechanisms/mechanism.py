# SPDX-License-Identifier: GPL-2.0-or-later
"""Describes a mechanism under test: its promises, and its landmarks in the kernel."""

import enum

import msgspec

from lab.mechanisms.code_places import Place, Stretch


class Expectation(enum.Enum):
    """What a run of a mechanism under NMIs must show before a reader can trust the lab."""

    #: A negative control: the judge must catch the mechanism.
    CAUGHT = "caught"
    #: Expected sound: the judge must not accuse the mechanism.
    CLEAN = "clean"
    #: A negative control in a scenario that may or may not catch the mechanism. Only the invariants of the control may
    #: be broken.
    EITHER = "either"
    #: Known to be imperfect. Checks on siblings are recorded but do not decide the verdict. The number of breaks is the
    #: result.
    MEASURED = "measured"


#: The expectations of a mechanism that the lab shows to be broken.
CONTROLS = (Expectation.CAUGHT, Expectation.EITHER)


class Threads(enum.Enum):
    """Selects the threads for which a statement is true."""

    NONE = "none"
    ALL = "all"
    SIBLINGS = "siblings"
    #: The soft-offlined threads.
    OFFLINE = "offline"


class Landmarks(msgspec.Struct, frozen=True):
    """Places in the kernel that the observer reports, and the code that a waiting thread may execute.

    Functions have the names of the source. If the compiler specialised a function, the name means the clone.

    :param load_begin: reached once at the start of a late load
    :param load_end: reached once at the end of the late load
    :param call_in: reached by a thread that announces that it waits; the first visit in a load counts; empty where the
        mechanism has no rendezvous
    :param primary_call_in: the same for primaries, where primaries wait at another place
    :param release: reached by a released thread; empty where the mechanism has no rendezvous
    :param primary_release: the same for primaries, where primaries are released at another place
    :param self_nmi: reached just before a thread sends itself an NMI; empty where the mechanism sends no such NMI
    :param self_nmi_by: the threads that send themselves an NMI in each load
    :param ipi_nmi: reached just before a thread sends NMIs to others; empty where the mechanism sends no such NMI
    :param ipi_nmi_to: the receivers: all threads of the machine, the siblings of the sender, or all offline threads;
        each thread receives one NMI, from the first visit in a load on
    :param lint1_masked_by: the threads that mask LINT1 before their call-in and unmask LINT1 after their release;
        ``inject-nmi`` does not reach these threads meanwhile
    :param offline_call_in: reached by a soft-offlined sibling that announces that it waits; empty where the mechanism
        ignores soft-offlined siblings
    :param update: the WRMSR 0x79, where a search of the kernel's code does not find it
    :param wait_loop: reached by a thread that starts to wait; optional, because a broken mechanism may never reach this
        place
    :param wait_region: the mechanism's own code that a thread may execute between its call-in and its release test
    :param wait_calls: functions that the wait region calls to wait; these functions and all their callees also belong
        to the region (lab/kernelimage/closure.py); if a kernel lacks such a function, the compiler inlined the function
    :param parking: functions of the wait region that park a thread by MONITOR and MWAIT; an emulator whose MWAIT does
        not wait executes them again and again
    """

    load_begin: Place
    load_end: Place
    call_in: Place = ""
    release: Place = ""
    self_nmi: Place = ""
    wait_loop: Place = ""
    wait_region: tuple[Stretch, ...] = ()
    wait_calls: tuple[str, ...] = ()
    self_nmi_by: Threads = Threads.NONE
    ipi_nmi: Place = ""
    ipi_nmi_to: Threads = Threads.NONE
    lint1_masked_by: Threads = Threads.NONE
    primary_call_in: Place = ""
    primary_release: Place = ""
    offline_call_in: Place = ""
    parking: tuple[str, ...] = ()
    update: Place = ""

    @property
    def takes_nmis(self) -> bool:
        """Whether threads wait inside the NMI handler. Such a mechanism uses NMIs for its own purpose."""
        return bool(self.self_nmi or self.ipi_nmi) or self.wait_loop != self.call_in


class Mechanism(msgspec.Struct, frozen=True):
    """One way to keep siblings quiet. A kernel with several mechanisms knows the name (``microcode_lab/mechanism``).

    :param base: name of the :class:`lab.mechanisms.base.Base` that has this mechanism
    :param bit: index of the wait region in the observer's landmark file, 0 to 15
    :param siblings_absent: the mechanism takes its siblings offline in the load and resets them; the rendezvous state
        has no times of these siblings; the siblings do not execute their wait region in a window
    :param unaimable: why no plan may aim NMIs at a sibling of this mechanism; empty where a plan may
    :param needs_monitor: the mechanism works only on CPUs with MONITOR and MWAIT
    :param unshown: names of invariants that the mechanism cannot show, or cannot show under an emulator; unseen ones
        are not required, but broken ones accuse the mechanism as usual
    :param stalled: the update itself stops the siblings; the observer stalls each sibling at its next block in a
        window; the block in flight at the window's opening is allowed
    """

    name: str
    summary: str
    base: str
    bit: int
    expectation: Expectation
    landmarks: Landmarks
    needs_monitor: bool = False
    unshown: tuple[str, ...] = ()
    siblings_absent: bool = False
    unaimable: str = ""
    stalled: bool = False


#: Invariants that do not apply to a mechanism without a rendezvous.
RENDEZVOUS = ("all-waiting-before-update", "released-after-update")

#: A soft-offlined thread waits in these functions, in every kernel (arch/x86/kernel/smpboot.c). The compiler may inline
#: the first two functions into the third.
_PLAY_DEAD = ("hlt_play_dead", "mwait_play_dead", "native_play_dead")


def is_play_dead(symbol: str) -> bool:
    """Say whether ``symbol+0x..`` is a place where a soft-offlined thread waits for its next bring-up."""
    return symbol.partition("+")[0].partition(".")[0] in _PLAY_DEAD
