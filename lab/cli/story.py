# SPDX-License-Identifier: GPL-2.0-or-later
"""The story of one trial for a terminal: threads as columns, then what became of each NMI. Nothing here prints."""

from collections.abc import Iterator

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from lab.cli.present import clean, make_table, tell_seed
from lab.model.evidence import Evidence
from lab.model.verdict import Finding, Verdict
from lab.report.nmi_rows import HEADINGS, MAX_NMIS, list_nmis, tell_account
from lab.report.story import LAB, Row, Story


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
        parts += [Text(""), _make_nmis(evidence, verdict)]
        if len(verdict.landings) > MAX_NMIS:
            parts.append(Text(f"{len(verdict.landings) - MAX_NMIS} more are left out: see --json"))
    if verdict.accounts:
        parts += [Text(""), *(Text(tell_account(each)) for each in verdict.accounts)]
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


def _make_nmis(evidence: Evidence, verdict: Verdict) -> Table:
    table = make_table(*HEADINGS)
    for row in list_nmis(evidence, verdict):
        table.add_row(*row.cells)
    return table
