# SPDX-License-Identifier: GPL-2.0-or-later
"""What a mechanism under test is: what it promises, and where in the kernel its landmarks are."""

import enum

import msgspec

from lab.mechanisms.code_places import Place, Stretch


class Expectation(enum.Enum):
    """What a run of a mechanism under NMIs must show for the lab itself to be trusted."""

    #: A negative control: the judge must catch it.
    CAUGHT = "caught"
    #: Held to be sound: the judge must not accuse it.
    CLEAN = "clean"
    #: A negative control in a scenario that may catch it and need not: broken may be what it is a control of.
    EITHER = "either"
    #: Known to let some through: nothing about siblings is required of it, and how much comes through is the result.
    MEASURED = "measured"


#: Of a mechanism that the lab shows to be broken.
CONTROLS = (Expectation.CAUGHT, Expectation.EITHER)


class Threads(enum.Enum):
    """Which threads something is true of."""

    NONE = "none"
    ALL = "all"
    SIBLINGS = "siblings"
    #: Those that are soft-offlined.
    OFFLINE = "offline"


class Landmarks(msgspec.Struct, frozen=True):
    """Places in the kernel that the observer reports, and the code that a waiting thread may execute.

    Functions are named as in the source: of a function that the compiler specialised, the clone is meant.

    :param load_begin: reached once at the start of a late load
    :param load_end: reached once when the late load is over
    :param call_in: reached by a thread that announces that it waits; the first time in a load counts; empty where the
        mechanism has no rendezvous
    :param primary_call_in: the same for primaries, where they wait elsewhere
    :param release: reached by a thread that has been let go; empty where the mechanism has no rendezvous
    :param primary_release: the same for primaries, where they are let go elsewhere
    :param self_nmi: reached just before a thread sends itself an NMI, or empty where the mechanism sends none
    :param self_nmi_by: which threads send one to themselves in each load
    :param ipi_nmi: reached just before a thread sends NMIs to others, or empty where the mechanism sends none
    :param ipi_nmi_to: whom they reach: all threads of the machine, the siblings of the sender, or all offline threads,
        each once from the first time in a load on
    :param lint1_masked_by: which threads mask LINT1 before their call-in and unmask it after their release, so that
        ``inject-nmi`` does not reach them meanwhile
    :param offline_call_in: reached by a soft-offlined sibling that announces that it waits, or empty where the
        mechanism leaves those alone
    :param update: the WRMSR 0x79, where a search of the kernel's code does not find it
    :param wait_loop: reached by a thread that starts to wait; optional, a broken mechanism may never get there
    :param wait_region: the mechanism's own code that a thread may execute between its call-in and its release test
    :param wait_calls: functions that this code calls to wait: they, and all that they call, belong to the region too
        (lab/kernelimage/closure.py); those that a kernel does not have were compiled into others
    :param parking: functions of the wait region that park a thread by MONITOR and MWAIT: an emulator whose MWAIT does
        not wait executes them over and over
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
        """Whether threads wait inside the NMI handler, so that the mechanism takes NMIs for its own."""
        return bool(self.self_nmi or self.ipi_nmi) or self.wait_loop != self.call_in


class Mechanism(msgspec.Struct, frozen=True):
    """One way to keep siblings quiet. A kernel that holds several knows it by this name (``microcode_lab/mechanism``).

    :param base: name of the :class:`lab.mechanisms.base.Base` that has it
    :param bit: index of its wait region in the observer's landmark file, 0 to 15
    :param siblings_absent: it takes its siblings offline in the load, and resets them: the rendezvous state has no
        times of theirs, and in a window they do not even execute their wait region
    :param unaimable: why no plan may aim NMIs at a sibling of it, empty where one may
    :param needs_monitor: it works on CPUs with MONITOR and MWAIT only
    :param unshown: names of invariants that it has nothing to show of, or nothing that shows under an emulator: not
        required where unseen, but seen broken they accuse it like any other
    :param stalled: the update itself holds the siblings: the observer stalls each at its next block in a window, and
        the block in flight when it opens is allowed
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


#: What a mechanism gives up that brings no threads together.
RENDEZVOUS = ("all-waiting-before-update", "released-after-update")

#: Where a soft-offlined thread waits, on every kernel there is (arch/x86/kernel/smpboot.c): the first two may have been
#: compiled into the third.
_PLAY_DEAD = ("hlt_play_dead", "mwait_play_dead", "native_play_dead")


def is_play_dead(symbol: str) -> bool:
    """Say whether ``symbol+0x..`` is where a soft-offlined thread waits to be brought up again."""
    return symbol.partition("+")[0].partition(".")[0] in _PLAY_DEAD
