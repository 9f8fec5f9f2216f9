# SPDX-License-Identifier: GPL-2.0-or-later
"""Evidence of real trials, kept in data/evidence, and what the judge has to say of each.

Run as a program, it takes a trial's folder in and prints its row of the table:

    python testcases/unit/kept_evidence.py DIR NAME
"""

import functools
import sys
from pathlib import Path

import msgspec

from lab.evidence.folder import read_evidence, write_evidence
from lab.judge import judge
from lab.model.evidence import Evidence
from lab.model.verdict import Finding, Outcome, Verdict

FOLDER = Path(__file__).parent / "data" / "evidence"

#: What shows by calls of the kernel's NMI handlers.
_WATCHED = ("nmis-passed-on",)

PASS, FAIL, INVALID = Outcome.PASS, Outcome.FAIL, Outcome.INVALID


class Kept(msgspec.Struct, frozen=True):
    """What the judge has to say of one folder; of the invariants that are not named, that they held.

    :param watched: where the kernel calls its NMI handlers was among the landmarks
    :param memory: QEMU showed the observer what each WRMSR 0x79 names
    """

    outcome: Outcome
    broken: tuple[str, ...] = ()
    unseen: tuple[str, ...] = ()
    watched: bool = False
    memory: bool = False

    def find(self, name: str) -> Finding:
        """Return what is to be found of one invariant."""
        if name in self.broken:
            return Finding.BROKEN
        unwatched = (name in _WATCHED and not self.watched) or (name in _OF_MEMORY and not self.memory)
        return Finding.UNSEEN if unwatched or name in self.unseen else Finding.HELD


#: What no trial without offline siblings can show.
_ONLINE = ("offline-siblings-return",)
#: What none shows that was kept with QEMU 7.2.
_OF_MEMORY = ("right-image",)
#: What a kernel without witnesses of ours does not show.
_PLAIN = ("counters-settled", "nmis-serviced")
#: What shows only where an update takes effect.
_NO_ENGINE = ("new-revision-everywhere", "load-repeatable", "errno-and-messages")
_ENTERED = ("quiet", "harmless", "no-nmi-entry-in-window", "still")

KEPT: dict[str, Kept] = {
    # One of each mechanism, on one core.
    "stop-machine": Kept(FAIL, _ENTERED, _ONLINE),
    "nmi-spin-as-posted": Kept(FAIL, _ENTERED, (*_ONLINE, "nmis-serviced")),
    "nmi-self": Kept(PASS, (), _ONLINE),
    "nmi-spin": Kept(PASS, ("quiet", "no-nmi-entry-in-window", "still"), _ONLINE),
    "nmi-broadcast": Kept(PASS, (), _ONLINE),
    "nmi-siblings": Kept(PASS, ("still",), _ONLINE),
    "park-hlt": Kept(PASS, (), _ONLINE),
    "park-mwait": Kept(PASS, (), ("harmless", *_ONLINE)),
    "init-sipi": Kept(PASS, (), _ONLINE),
    "uniform": Kept(PASS, (), ("all-waiting-before-update", "released-after-update", *_ONLINE)),
    "smi": Kept(PASS, (), _ONLINE),
    "upstream": Kept(PASS, ("still",), (*_PLAIN, *_ONLINE)),
    # What axes break, or do not.
    "nmi-spin-no-fsgsbase": Kept(PASS, _ENTERED, _ONLINE),
    "park-hlt-aimed": Kept(FAIL, _ENTERED, _ONLINE),
    "stop-machine-offline": Kept(FAIL, ("all-waiting-before-update",)),
    "upstream-returning": Kept(PASS, (), _PLAIN),
    "upstream-let-go-in-window": Kept(FAIL, ("quiet", "harmless", "still", "released-after-update"), _PLAIN),
    "upstream-let-go-before-update": Kept(FAIL, ("all-waiting-before-update",), ("released-after-update", *_PLAIN)),
    # A trial that shows nothing: the one NMI came before any window.
    "nmi-self-no-nmi-in-window": Kept(INVALID, (), _ONLINE),
    # Kernels that were broken on purpose (images/mutants), for what no mechanism breaks; the ledger is only a witness.
    "mutant-sibling-keeps-revision": Kept(FAIL, ("new-revision-everywhere",), _ONLINE),
    "mutant-updates-twice": Kept(FAIL, ("still", "one-update-per-core"), _ONLINE),
    "mutant-leaves-counter": Kept(FAIL, ("still", "counters-settled"), _ONLINE),
    "mutant-offline-not-released": Kept(
        FAIL, ("offline-siblings-return", "nmis-delivered"), ("released-after-update", *_PLAIN)
    ),
    "mutant-same-again": Kept(FAIL, ("still", "load-repeatable"), (*_ONLINE, "witnesses-agree")),
    "mutant-returns-unhandled": Kept(FAIL, ("dmesg-clean",), (*_PLAIN, *_ONLINE)),
    "mutant-misreports": Kept(FAIL, ("still", "errno-and-messages"), _ONLINE),
    "mutant-sends-two": Kept(FAIL, ("still", "nmis-delivered"), _ONLINE),
    "mutant-releases-nobody": Kept(
        FAIL,
        ("still", "within-deadline"),
        (
            "released-after-update",
            "new-revision-everywhere",
            "counters-settled",
            *_ONLINE,
            "load-repeatable",
            "dmesg-clean",
            "errno-and-messages",
            "nmis-delivered",
            "nmis-serviced",
            "witnesses-agree",
        ),
    ),
    "mutant-ledger-counts-twice": Kept(INVALID, ("witnesses-agree",), (*_ONLINE, "nmis-delivered", "nmis-serviced")),
    "mutant-one-stays-out": Kept(
        FAIL,
        ("all-waiting-before-update", "quiet", "still"),
        (
            "harmless",
            "no-nmi-entry-in-window",
            "released-after-update",
            "new-revision-everywhere",
            *_ONLINE,
            "witnesses-agree",
        ),
    ),
    "mutant-claims-all": Kept(
        FAIL, ("nmis-passed-on", "witnesses-agree"), (*_ONLINE, "nmis-delivered", "nmis-serviced"), watched=True
    ),
    "mutant-mainline-one-stays-out": Kept(
        FAIL,
        ("all-waiting-before-update", "quiet", "still", "new-revision-everywhere"),
        ("harmless", "no-nmi-entry-in-window", "released-after-update", "counters-settled", *_ONLINE),
        watched=True,
    ),
    "mutant-mainline-claims-all": Kept(
        FAIL, ("still", "nmis-passed-on", "nmis-serviced"), ("counters-settled", *_ONLINE), watched=True
    ),
    # Kernels with nothing of ours inside.
    "mutant-mainline-siblings-write-again": Kept(
        FAIL, ("one-update-per-core",), (*_NO_ENGINE, "counters-settled", *_ONLINE), watched=True
    ),
    "mutant-siblings-write-again": Kept(
        FAIL, ("still", "one-update-per-core"), (*_NO_ENGINE, "counters-settled", *_ONLINE), watched=True
    ),
    "stock-rendezvous-aimed-at-primary": Kept(PASS, ("still",), (*_NO_ENGINE, *_PLAIN, *_ONLINE)),
    "stock-nmi": Kept(PASS, (), (*_NO_ENGINE, *_PLAIN, *_ONLINE)),
    # By QEMU 11.1: an operand that is the header's, and an unmodified kernel with the engine in the observer.
    "mutant-names-header": Kept(FAIL, ("right-image",), ("counters-settled", *_ONLINE), watched=True, memory=True),
    "stock-nmi-taken": Kept(PASS, (), ("counters-settled", *_ONLINE), watched=True, memory=True),
    "stock-nmi-faults": Kept(PASS, (), ("counters-settled", "load-repeatable", *_ONLINE), watched=True, memory=True),
}


@functools.cache
def read_kept(name: str) -> Evidence:
    """Read one folder."""
    return read_evidence(FOLDER / name)


def tell(verdict: Verdict) -> Kept:
    """Return what the judge says, in the table's form."""
    found = {
        finding: tuple(one.name for one in verdict.invariants if one.finding is finding)
        for finding in (Finding.BROKEN, Finding.UNSEEN)
    }
    return Kept(verdict.outcome, found[Finding.BROKEN], found[Finding.UNSEEN])


def keep(source: Path, name: str) -> Kept:
    """Keep a trial's evidence without the raw files that reading it does not need."""
    evidence = read_evidence(source)
    write_evidence(FOLDER / name, evidence, {})
    return tell(judge(evidence))


if __name__ == "__main__":
    folder, new = sys.argv[1:]
    row = keep(Path(folder), new)
    sys.stdout.write(f'    "{new}": Kept({row.outcome.name}, {row.broken}, {row.unseen}),\n')
