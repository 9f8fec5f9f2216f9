# SPDX-License-Identifier: GPL-2.0-or-later
"""What became of the NMIs of one trial, in words: one row for each NMI of the plan, one line for each vCPU. Pure."""

from collections.abc import Iterator
from dataclasses import dataclass

from lab.model.evidence import Evidence
from lab.model.verdict import Landing, NmiAccount, Verdict
from lab.report.text import format_us

#: NMIs of a trial, of which a storm has thousands.
MAX_NMIS = 100
_MAX_SHARED = 8
_NS_PER_US = 1_000


@dataclass(frozen=True, slots=True, kw_only=True)
class NmiRow:
    """One NMI of the plan on one vCPU.

    :param acknowledged: time from its sending to QEMU's reply
    :param after: time from its sending to its entry
    :param shared: what else its entry took
    """

    nmi: int
    to: str
    pending: str
    acknowledged: str
    entered: str
    after: str
    handled_by: str
    shared: str

    @property
    def cells(self) -> tuple[str, ...]:
        """All fields in the order of :data:`HEADINGS`."""
        numbered = (str(self.nmi), self.to, self.pending, self.acknowledged)
        return (*numbered, self.entered, self.after, self.handled_by, self.shared)


HEADINGS = ("NMI", "to", "pending in", "acknowledged", "entered in", "after", "handled by", "shared with")


def list_nmis(evidence: Evidence, verdict: Verdict) -> Iterator[NmiRow]:
    """Yield the first MAX_NMIS rows."""
    log = evidence.injections
    sent = {each.index: each for each in log.sent} if log is not None else {}
    for each in verdict.landings[:MAX_NMIS]:
        mine = sent.get(each.nmi)
        how = "broadcast" if mine is not None and mine.vcpu < 0 else "aimed"
        pending = each.pending.value if each.pending is not None else "one of two phases"
        yield NmiRow(
            nmi=each.nmi,
            to=f"vCPU {each.vcpu} {each.role.value}, {how}",
            pending=pending + (f", hold {each.hold}" if each.hold >= 0 else ""),
            acknowledged=f"in {format_us((mine.reply_ns - mine.send_ns) / _NS_PER_US if mine is not None else None)}",
            entered=_tell_entry(each),
            after=format_us(each.delay_us),
            handled_by=each.by.value if each.by is not None else "unknown",
            shared=", ".join(each.shared_with[:_MAX_SHARED]) + (", ..." if len(each.shared_with) > _MAX_SHARED else ""),
        )


def tell_account(account: NmiAccount) -> str:
    """Return the sum of one vCPU's NMIs in one line."""
    causes = [
        f"{account.sent} of the lab's",
        f"{account.sentinels} sentinels",
        f"{account.self_nmis} self-NMIs",
        f"{account.ipis} IPIs of the guest's",
    ]
    causes += [f"{account.backtraces} for its backtraces"] if account.backtraces else []
    less = f" - {account.merged} merged" + (f" - {account.never} never entered" if account.never else "")
    more = f" + {account.unexplained} that nothing known sent" if account.unexplained else ""
    counted = "tells nothing" if account.counted is None else f"counts {account.counted}"
    masked = f"; {account.unreachable} more met a masked LINT1" if account.unreachable else ""
    verb = "not to be checked" if account.counted is None else "closes" if account.closes else "does NOT close"
    return (
        f"vCPU {account.vcpu}: {' + '.join(causes)}{less}{more} = {account.entries} entries,"
        f" the guest {counted}: {verb}{masked}"
    )


def _tell_entry(landing: Landing) -> str:
    if landing.entered is not None:
        return landing.entered.value
    return "another's entry" if landing.shared_seq else "never"
