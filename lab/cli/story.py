# SPDX-License-Identifier: GPL-2.0-or-later
"""The story of one trial for a terminal: threads as columns, then what became of each NMI. Nothing here prints."""

from collections.abc import Iterator

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from lab.cli.present import clean, make_table, tell_seed
from lab.model.evidence import Evidence
from lab.model.verdict import Finding, Landing, NmiAccount, Verdict
from lab.report.story import LAB, Row, Story
from lab.report.text import format_us

#: NMIs and vCPUs, of which a storm has thousands.
MAX_NMIS = 100


def describe_story(story: Story, verdict: Verdict) -> dict[str, object]:
    """Return the story as ``--json`` prints it."""
    return {
        "outcome": verdict.outcome,
        "label": verdict.label,
        "reason": clean(verdict.reason),
        "threads": story.threads,
        "rows": story.rows,
        "left_out": story.left_out,
        "elsewhere": story.elsewhere,
        "nmis": verdict.landings,
        "accounts": verdict.accounts,
    }


def make_story_view(story: Story, evidence: Evidence, verdict: Verdict) -> RenderableType:
    """Return the story for a terminal of 80 columns or more."""
    scenario = evidence.scenario
    seed = tell_seed(evidence.plan.seed, first_load=evidence.plan.first_load)
    head = f"{verdict.label}  {scenario.mechanism} {scenario.topology} {seed}"
    parts: list[RenderableType] = [Text(f"{head}: {clean(verdict.reason)}"), Text("")]
    parts.append(_make_rows(story, evidence))
    if story.elsewhere:
        parts.append(Text(f"{story.elsewhere} records of other threads are not told: see --core"))
    if story.left_out:
        parts.append(Text(f"{story.left_out} rows are left out: see --rows"))
    broken = [one for one in verdict.invariants if one.finding is Finding.BROKEN]
    for one in broken:
        parts += [Text("")] if one is broken[0] else []
        name = one.name if one.required else f"({one.name})"
        seqs = [str(proof.seq) for proof in one.proofs if proof.seq]
        told = f" [records {', '.join(seqs[:5])}{', ...' if len(seqs) > 5 else ''}]" if seqs else ""
        parts.append(Text(f"{name} broken: {clean(one.reason)}{told}", "bold red" if one.required else ""))
    if verdict.landings:
        parts += [Text(""), _make_nmis(evidence, verdict.landings)]
        if len(verdict.landings) > MAX_NMIS:
            parts.append(Text(f"{len(verdict.landings) - MAX_NMIS} more are left out: see --json"))
    if verdict.accounts:
        parts += [Text(""), *(Text(_tell_account(each)) for each in verdict.accounts)]
    return Group(*parts)


def _make_rows(story: Story, evidence: Evidence) -> Table:
    topology = evidence.scenario.topology
    names = (
        f"vCPU {vcpu} " + ("primary" if vcpu == topology.primary_of(topology.core_of(vcpu)) else "sibling")
        for vcpu in story.threads
    )
    table = make_table("us", "the lab", *names)
    table.columns[0].justify = "right"
    for column in table.columns[1:]:
        column.ratio = 1
    table.expand = True
    columns = (LAB, *story.threads)
    for cells in _list_cells(story, columns):
        table.add_row(*cells)
    return table


def _list_cells(story: Story, columns: tuple[int, ...]) -> Iterator[tuple[Text, ...]]:
    if -1 in story.gaps:
        yield _tell_gap(story.gaps[-1], columns)
    for number, row in enumerate(story.rows):
        yield (Text(f"{row.at_us:.1f}"), *(_tell_row(row) if row.who == who else Text("") for who in columns))
        if number in story.gaps:
            yield _tell_gap(story.gaps[number], columns)


def _tell_gap(count: int, columns: tuple[int, ...]) -> tuple[Text, ...]:
    return (Text("..."), Text(f"({count} left out)"), *(Text("") for _ in columns[1:]))


def _tell_row(row: Row) -> Text:
    text = Text(row.text)
    if row.broke:
        text.append(f" !! breaks {', '.join(row.broke)} [{row.seq}]", "bold red")
    return text


def _make_nmis(evidence: Evidence, landings: tuple[Landing, ...]) -> Table:
    log = evidence.injections
    sent = {each.index: each for each in log.sent} if log is not None else {}
    table = make_table("NMI", "to", "pending in", "acknowledged", "entered in", "after", "handled by", "shared with")
    for each in landings[:MAX_NMIS]:
        how = "broadcast" if each.nmi in sent and sent[each.nmi].vcpu < 0 else "aimed"
        took_us = (sent[each.nmi].reply_ns - sent[each.nmi].send_ns) / 1_000 if each.nmi in sent else None
        pending = each.pending.value if each.pending is not None else "one of two phases"
        own = each.entered.value if each.entered is not None else "another's entry" if each.shared_seq else "never"
        table.add_row(
            str(each.nmi),
            f"vCPU {each.vcpu} {each.role.value}, {how}",
            pending + (f", hold {each.hold}" if each.hold >= 0 else ""),
            f"in {format_us(took_us)}",
            own,
            format_us(each.delay_us),
            each.by.value if each.by is not None else "unknown",
            ", ".join(each.shared_with[:8]) + (", ..." if len(each.shared_with) > 8 else ""),
        )
    return table


def _tell_account(account: NmiAccount) -> str:
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
