# SPDX-License-Identifier: GPL-2.0-or-later
"""The names of the invariants, which of them a PASS needs, and how one finding is put into words."""

from collections.abc import Sequence

from lab.mechanisms.base import Base, Witness
from lab.model.verdict import Finding, Invariant, Proof

#: Reported for every trial, needed by none: mainline itself does not hold them.
REPORTED_ONLY = frozenset({"still", "nmis-serviced"})

#: What can only be seen where siblings are offline.
OF_OFFLINE = frozenset({"offline-siblings-return"})

#: What only a witness of ours can show: on a kernel without it nobody can see it, so no PASS needs it.
SHOWN_BY = {"counters-settled": Witness.STATE}

#: What shows only where an update takes effect: an emulator ignores WRMSR 0x79, and nothing of ours answers for it.
NEEDS_ENGINE = frozenset({"new-revision-everywhere", "errno-and-messages", "load-repeatable"})
NO_ENGINE = "this kernel has no engine, so the update cannot take effect under the emulator"

#: A page and a store hold thousands of trials; the first events of each tell the story.
MAX_PROOFS = 20

#: Longer than any line of the kernel's that matters here, short enough for a table; a hostile guest may print more.
MAX_TEXT = 200


#: What shows only where the observer reads guest memory.
NEEDS_MEMORY = frozenset({"right-image"})
#: What there is only where the update takes effect: where it does not, the second load is like the first.
NEEDS_EFFECT = frozenset({"load-repeatable"})


def find_unneeded(base: Base, *, offline: bool, engine: bool, takes: bool, memory: bool) -> frozenset[str]:
    """Return the invariants that no PASS needs.

    :param offline: siblings are offline
    :param engine: updates can take effect, by the kernel or by the observer
    :param takes: and the scenario's does
    :param memory: the observer reads guest memory
    """
    unshown = {name for name, witness in SHOWN_BY.items() if witness not in base.witnesses}
    return frozenset(
        {
            *REPORTED_ONLY,
            *unshown,
            *(() if offline else OF_OFFLINE),
            *(() if engine else NEEDS_ENGINE),
            *(() if takes else NEEDS_EFFECT),
            *(() if memory else NEEDS_MEMORY),
        }
    )


def clean(text: str) -> str:
    """Return foreign text as one bounded, printable line."""
    shown = "".join(char if char.isprintable() else " " for char in text[: MAX_TEXT + 1]).strip()
    return shown if len(text) <= MAX_TEXT else shown[: MAX_TEXT - 3] + "..."


def held(name: str, reason: str, proofs: Sequence[Proof] = ()) -> Invariant:
    """Say that an invariant was seen to hold; ``proofs`` are what came close to breaking it and may."""
    return _invariant(name, Finding.HELD, reason, proofs)


def unseen(name: str, reason: str, proofs: Sequence[Proof] = ()) -> Invariant:
    """Say that the evidence shows neither; ``proofs`` are what spoke for one side without being enough."""
    return _invariant(name, Finding.UNSEEN, reason, proofs)


def broken(name: str, proofs: Sequence[Proof], reason: str = "") -> Invariant:
    """Say that an invariant was seen broken; without a reason of its own the first proof gives it."""
    more = f" (and {len(proofs) - 1} more)" if len(proofs) > 1 else ""
    return _invariant(name, Finding.BROKEN, reason or proofs[0].text + more, proofs)


def broken_unless(name: str, proofs: Sequence[Proof], excuse: str) -> Invariant:
    """Say that an invariant was seen broken; with an excuse, that who broke it is not known."""
    return unseen(name, f"{proofs[0].text}; but {excuse}", proofs) if excuse else broken(name, proofs)


def _invariant(name: str, finding: Finding, reason: str, proofs: Sequence[Proof]) -> Invariant:
    return Invariant(
        name=name,
        finding=finding,
        required=name not in REPORTED_ONLY,
        reason=reason,
        proofs=tuple(proofs[:MAX_PROOFS]),
    )
