# SPDX-License-Identifier: GPL-2.0-or-later
"""What the command line shows: tables for a person, plain values for a machine. Nothing here prints."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from lab.campaign.old_runs import Run
from lab.campaign.soundness import Soundness, add_up
from lab.expected.hunt import Kill
from lab.expected.tally import MechanismResult, OutcomeCounts, run_met
from lab.model.verdict import NO_NMIS_ASKED, Finding, Outcome, TrialRecord, Verdict
from lab.report.answer import answer
from lab.report.buckets import count_buckets
from lab.report.figures import measure_price
from lab.report.landings import list_columns, measure_uniformity, tally_coverage
from lab.report.latency import Added, measure_added
from lab.report.text import clean, format_us

if TYPE_CHECKING:
    from lab.build.doctor import Check, QemuFound
    from lab.build.own_kernel import OwnKernel
    from lab.campaign.bench import Figure

__all__ = ["clean"]

_OUTCOME_STYLE = {
    Outcome.PASS: "green",
    Outcome.FAIL: "bold red",
    Outcome.INVALID: "yellow",
    Outcome.ERROR: "bold magenta",
}
#: Of a PASS without NMIs, which is nothing to be glad of.
_UNASKED_STYLE = "default"
_FINDING_STYLE = {Finding.HELD: "green", Finding.BROKEN: "bold red", Finding.UNSEEN: "yellow"}
#: How many proofs of one invariant a person is shown; the verdict's file has all.
_SHOWN_PROOFS = 3


def make_table(*columns: str) -> Table:
    """Return an empty table of the lab's looks."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def make_check_table(checks: "Iterable[Check]") -> RenderableType:
    """Return what ``lab doctor`` shows."""
    table = make_table("", "what", "found", "mend with")
    for check in checks:
        mark = Text("ok", "green") if check.ok else Text("lacks", "bold red")
        table.add_row(mark, check.name, Text(clean(check.found)), Text(check.mend))
    return table


def make_qemu_table(qemus: "Iterable[QemuFound]") -> RenderableType:
    """Return the QEMUs that ``lab doctor`` shows."""
    table = make_table("", "QEMU", "version", "plugin interface", "the observer sees", "runs as")
    for qemu in qemus:
        if not qemu.usable:
            table.add_row(Text("no", "bold red"), Text(clean(qemu.path)), "", "", Text(clean(qemu.problem)), "")
            continue
        interface = f"{qemu.interface_min} to {qemu.interface_max}, used: {qemu.level}"
        version = Text(clean(qemu.version) + (f"; caution: {qemu.caution}" if qemu.caution else ""))
        mark = Text("ok", "yellow" if qemu.caution else "green")
        table.add_row(mark, Text(clean(qemu.path)), version, interface, "; ".join(qemu.sees), qemu.runs_as)
    return table


def describe_own_kernel(own: "OwnKernel") -> dict[str, object]:
    """Return what ``lab build kernel --tree`` says of what it has built."""
    return {
        "kernel": str(own.kernel.image),
        "vmlinux": str(own.kernel.vmlinux),
        "release": own.kernel.release,
        "commit": own.origin.commit,
        "dirty": own.origin.dirty,
        "source_sha256": own.origin.source_sha256,
        "left_out": list(own.left_out),
    }


def describe_trial(verdict: Verdict, record: TrialRecord) -> dict[str, object]:
    """Return a trial as ``--json`` prints it."""
    return {
        "outcome": record.outcome,
        "label": record.label,
        "without_nmis": record.without_nmis,
        "reason": record.reason,
        "mechanism": record.mechanism,
        "topology": record.topology,
        "seed": record.seed,
        "invariants": record.invariants,
        "nmis": record.nmis,
        "window_us": {str(span.who): span.us for span in record.durations.host_windows_us},
        "windows_judged": record.windows_judged,
        "windows_unseen": record.windows_unseen,
        "durations": record.durations,
        "bucket": record.bucket,
        "stall": verdict.stall,
        "proofs": {
            invariant.name: [proof.text for proof in invariant.proofs]
            for invariant in verdict.invariants
            if invariant.finding is Finding.BROKEN
        },
        "evidence": record.evidence,
        "vmlinux_match": record.match,
        "wait_region": record.wait_region,
        "first_load": record.first_load,
        "matched": verdict.matched,
    }


def tell_seed(seed: int, *, first_load: bool) -> str:
    """Name the seed, but not as that of a plan that was never begun."""
    return f"first load, before the plan of seed {seed}" if first_load else f"seed {seed}"


def make_trial_view(verdict: Verdict, record: TrialRecord) -> RenderableType:
    """Return one trial's verdict for a terminal."""
    seed = tell_seed(record.seed, first_load=record.first_load)
    head = Text.assemble(
        (record.label, _UNASKED_STYLE if record.without_nmis else _OUTCOME_STYLE[verdict.outcome]),
        f"  {record.mechanism} {record.topology} {seed}: {clean(verdict.reason)}",
    )
    table = make_table("invariant", "finding", "why")
    for invariant in verdict.invariants:
        why = Text(clean(invariant.reason))
        for proof in invariant.proofs[:_SHOWN_PROOFS] if invariant.finding is Finding.BROKEN else ():
            why.append(f"\n- {clean(proof.text)}")
        if len(invariant.proofs) > _SHOWN_PROOFS and invariant.finding is Finding.BROKEN:
            why.append(f"\n- and {len(invariant.proofs) - _SHOWN_PROOFS} more")
        name = invariant.name if invariant.required else f"({invariant.name})"
        table.add_row(name, Text(invariant.finding.value, _FINDING_STYLE[invariant.finding]), why)
    nmis = record.nmis
    windows = ", ".join(f"core {span.who} {format_us(span.us)}" for span in record.durations.host_windows_us)
    proven = f"{nmis.proven_in_window} proven in a window, {record.nmis_on_siblings} of them on a sibling"
    counts = f"{nmis.sent} sent, {proven}, {nmis.entries} entries"
    facts = (
        f"NMIs: {counts}, {nmis.handled} handled",
        f"windows: {windows or 'none'}; {record.windows_judged} judged, {record.windows_unseen} unseen",
        *_tell_clock(record),
        *((f"bucket: {clean(record.bucket)}",) if record.bucket else ()),
        *(f"when it stopped answering: {clean(line)}" for line in verdict.stall),
        f"landmarks: {verdict.matched}",
        f"evidence: {record.evidence}",
    )
    return Group(head, Text(""), table, Text(""), *(Text(fact) for fact in facts))


def _tell_clock(record: TrialRecord) -> tuple[str, ...]:
    claimed, measured = record.durations.tsc_claimed_khz, record.durations.tsc_measured_khz
    if claimed is None or measured is None:
        return ()
    return (f"the guest's TSC: {claimed / 1_000:.3f} MHz by the guest, {measured / 1_000:.3f} MHz measured",)


def describe_run(run: Run, results: Iterable[MechanismResult], page: Path) -> dict[str, object]:
    """Return a run as ``--json`` prints it."""
    results = tuple(results)
    return {
        "met": run.info.exit_status == 0 and run_met(results),
        "finished": run.info.finished,
        "trials": len(run.records),
        "mechanisms": [
            {
                "name": result.name,
                "expectation": result.expectation,
                "met": result.met,
                "reason": result.reason,
                "headline": answer(result)[0],
                "answer": answer(result)[1],
                "outcomes": result.outcomes,
                "trials_with_an_nmi_on_a_sibling": result.struck.trials,
                "quiet": result.quiet,
                "harmless": result.harmless,
                "added": measure_added(run.records, result.name),
            }
            for result in results
        ],
        "coverage": tally_coverage(run.records),
        "uniformity": [
            {**msgspec.structs.asdict(each), "sentence": each.sentence} for each in measure_uniformity(run.records)
        ],
        "buckets": count_buckets(run.records),
        "report": str(page),
    }


def make_run_table(run: Run, results: Iterable[MechanismResult]) -> RenderableType:
    """Return a run's table for a terminal."""
    outcomes = [outcome.value for outcome in reversed(Outcome)]
    table = make_table(
        "mechanism",
        "expected",
        "met",
        "quiet",
        "harmless",
        *outcomes,
        "NMIs",
        "on a sibling",
        "window",
        "load",
        "added",
    )
    for result in results:
        records = [record for record in run.records if record.mechanism == result.name]
        price = measure_price(records)
        sent = sum(record.nmis.sent for record in records)
        proven = sum(record.nmis.proven_in_window for record in records)
        table.add_row(
            result.name,
            result.expectation.value,
            Text("yes", "green") if result.met else Text("NO", "bold red"),
            f"{result.quiet.held} of {result.quiet.trials}",
            f"{result.harmless.held} of {result.harmless.trials}",
            _format_passed(result.outcomes),
            str(result.outcomes.invalid),
            str(result.outcomes.failed),
            str(result.outcomes.error),
            f"{sent}, {proven} in windows",
            f"{result.struck.trials} of {result.quiet.trials}",
            format_us(price.window.p50_us),
            format_us(price.load.p50_us),
            _format_added(measure_added(run.records, result.name)),
        )
    return table


def make_coverage_view(run: Run) -> RenderableType:
    """Return where a run's NMIs landed, for a terminal; nothing where none did."""
    rows = tally_coverage(run.records)
    if not rows:
        return Group()
    phases = list_columns(rows)
    table = make_table("NMIs pending", "on", *phases)
    for row in rows:
        table.add_row(clean(row.mechanism), clean(row.role), *(str(row.nmis.get(phase, 0)) for phase in phases))
    sentences = (Text(clean(each.sentence)) for each in measure_uniformity(run.records))
    return Group(table, *sentences)


def make_bucket_table(run: Run) -> Table | None:
    """Return what went wrong in a run, equal failures together and the most frequent first; None when nothing did."""
    buckets = count_buckets(run.records)
    table = make_table("trials", "mechanisms", "what went wrong", "first", "seed")
    for bucket in buckets:
        names = ", ".join(bucket.mechanisms)
        table.add_row(str(bucket.count), names, Text(clean(bucket.title)), str(bucket.first), str(bucket.seed))
    return table if buckets else None


def _format_passed(counts: OutcomeCounts) -> str:
    """Return how many passed, and how many of them without an NMI: those are no protection."""
    without = counts.passed_without_nmis
    if not without:
        return str(counts.passed)
    return f"{counts.passed} ({NO_NMIS_ASKED}{f' in {without}' if without < counts.passed else ''})"


def _format_added(added: Added | None) -> str:
    if added is None:
        return ""
    return f"{format_us(added.median_us)} ({format_us(added.low_us)} to {format_us(added.high_us)})"


def describe_soundness(ran: Soundness) -> dict[str, object]:
    """Return what came of all cells as ``--json`` prints it."""
    return {
        "met": ran.exit_status == 0,
        "problems": ran.problems,
        "outcomes": add_up(one.outcomes for one in ran.results),
        "host_cores": ran.host_cores,
        "outcomes_where_vcpus_fit": ran.fitting,
        "cells": [
            {
                "mechanism": one.cell.mechanism,
                "axes": one.cell.axes,
                "held": one.cell.kind,
                "line": one.cell.line,
                "met": one.met,
                "outcomes": one.outcomes,
                "passes_needed": one.needed,
                "caught": one.caught,
                "failed_by_known_defect": one.by_defect,
                "invalid": dict(one.invalid),
            }
            for one in ran.results
        ],
    }


def make_soundness_table(ran: Soundness) -> RenderableType:
    """Return what ``lab sound`` shows: each cell, its outcomes, and why trials of it were INVALID."""
    outcomes = [outcome.value for outcome in reversed(Outcome)]
    table = make_table("mechanism", "axes", "held", "met", *outcomes, "because")
    for one in ran.results:
        counts = one.outcomes
        notes = [f"{count} x {clean(reason)}" for reason, count in one.invalid]
        if one.by_defect and one.cell.defect is not None:
            notes.insert(0, f"FAIL of {one.by_defect}: {one.cell.defect.name}, a known defect")
        because = Text("\n".join(notes))
        met = Text("yes", "green") if one.met else Text("NO", "bold red")
        met = met if one.outcomes.trials else Text("no trial yet", "dim")
        numbers = (_format_passed(counts), counts.invalid, counts.failed, counts.error)
        table.add_row(one.cell.mechanism, one.cell.axes, one.cell.kind.value, met, *map(str, numbers), because)
    total = add_up(one.outcomes for one in ran.results)
    numbers = (_format_passed(total), total.invalid, total.failed, total.error)
    table.add_row("all", "", "", "", *map(str, numbers), "")
    return table


def make_bench_table(figures: "Iterable[Figure]") -> RenderableType:
    """Return what ``lab bench`` shows."""
    table = make_table("figure", "median", "min", "max", "n")
    for figure in figures:
        low, high = (f"{value:.2f} {figure.unit}" for value in (min(figure.values), max(figure.values)))
        table.add_row(figure.name, f"{figure.median:.2f} {figure.unit}", low, high, str(len(figure.values)))
    return table


def make_kill_table(kills: Sequence[Kill]) -> RenderableType:
    """Return the kill table for a terminal."""
    table = make_table("mutant", "of", "fate", "caught by", "also broken", "trials")
    for kill in kills:
        table.add_row(
            kill.mutant,
            kill.subject.value,
            kill.fate.value,
            ", ".join(kill.by) or clean(kill.reason),
            ", ".join(kill.also),
            str(kill.trials),
        )
    return table
