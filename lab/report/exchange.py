# SPDX-License-Identifier: GPL-2.0-or-later
"""Trials in the formats that other programs read: JUnit XML, KTAP and CSV. Pure: records in, text out.

A scenario is a suite. Its first case says whether the scenario did what is expected of it; a case for each trial
follows. A control that is caught FAILs as it must, so its case passes: a program that counts failures must not call a
run bad that is as expected. INVALID is a skipped case, since it says nothing about the kernel.
"""

import csv
import enum
import io
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import msgspec

from lab.expected.expect import Expected
from lab.expected.tally import count_outcomes, is_caught, weigh_counts
from lab.mechanisms.mechanism import CONTROLS
from lab.model.verdict import Outcome, TrialRecord
from lab.report.text import clean

#: What a reason may add to a line.
MAX_REASON_CHARS: Final = 500
_US_PER_S: Final = 1_000_000
#: A text that begins with one of these is a formula to a spreadsheet.
_FORMULA: Final = ("=", "+", "-", "@")


class Status(enum.Enum):
    """How a case ends, in the words of JUnit."""

    PASSED = "passed"
    FAILED = "failed"
    SKIPPED = "skipped"
    ERROR = "error"


class Case(msgspec.Struct, frozen=True, kw_only=True):
    """One case of a suite.

    :param said: why, in one line without control characters
    :param record: None for the case that sums a scenario up
    """

    name: str
    status: Status
    said: str
    record: TrialRecord | None = None


class Suite(msgspec.Struct, frozen=True, kw_only=True):
    """One scenario with its trials."""

    name: str
    cases: tuple[Case, ...]


def make_suites(trials: Mapping[str, tuple[Expected, Sequence[TrialRecord]]]) -> tuple[Suite, ...]:
    """Return a suite for each scenario, with what is expected of it and its records."""
    return tuple(
        Suite(
            name=clean_line(name), cases=(_sum_up(expected, records), *(_make_case(expected, each) for each in records))
        )
        for name, (expected, records) in trials.items()
    )


def _sum_up(expected: Expected, records: Sequence[TrialRecord]) -> Case:
    caught = sum(is_caught(expected, record) for record in records)
    met, reason = weigh_counts(expected, count_outcomes(records), caught)
    return Case(name="as expected", status=Status.PASSED if met else Status.FAILED, said=clean_line(reason))


def _make_case(expected: Expected, record: TrialRecord) -> Case:
    as_it_must = expected.kind in CONTROLS and is_caught(expected, record)
    status = {
        Outcome.PASS: Status.PASSED,
        Outcome.FAIL: Status.PASSED if as_it_must else Status.FAILED,
        Outcome.INVALID: Status.SKIPPED,
        Outcome.ERROR: Status.ERROR,
    }[record.outcome]
    said = f"{record.outcome.value}: {record.reason}" if record.outcome is not Outcome.PASS else record.reason
    return Case(name=f"trial {record.trial} seed {record.seed}", status=status, said=clean_line(said), record=record)


def format_junit(suites: Iterable[Suite]) -> str:
    """Return JUnit XML, as Jenkins and GitLab read it."""
    root = ET.Element("testsuites", name="microcode-nmi-lab")
    for suite in suites:
        counts = {status: sum(case.status is status for case in suite.cases) for status in Status}
        node = ET.SubElement(
            root,
            "testsuite",
            name=suite.name,
            tests=str(len(suite.cases)),
            failures=str(counts[Status.FAILED]),
            errors=str(counts[Status.ERROR]),
            skipped=str(counts[Status.SKIPPED]),
        )
        for case in suite.cases:
            _add_case(node, suite.name, case)
    ET.indent(root)
    return f"<?xml version='1.0' encoding='utf-8'?>\n{ET.tostring(root, encoding='unicode')}\n"


def _add_case(suite: ET.Element, name: str, case: Case) -> None:
    load_us = case.record.durations.host_load_us if case.record is not None else None
    node = ET.SubElement(suite, "testcase", classname=name, name=case.name, time=f"{(load_us or 0) / _US_PER_S:.6f}")
    if case.record is not None:
        properties = ET.SubElement(node, "properties")
        told = {
            "outcome": case.record.outcome.value,
            "seed": str(case.record.seed),
            "bucket": clean_line(case.record.bucket),
            "evidence": clean_line(case.record.evidence),
        }
        for key, value in told.items():
            ET.SubElement(properties, "property", name=key, value=value)
    if case.status is Status.FAILED:
        ET.SubElement(node, "failure", message=case.said)
    elif case.status is Status.ERROR:
        ET.SubElement(node, "error", message=case.said)
    elif case.status is Status.SKIPPED:
        ET.SubElement(node, "skipped", message=case.said)
    else:
        ET.SubElement(node, "system-out").text = case.said


def format_ktap(suites: Sequence[Suite]) -> str:
    """Return KTAP version 1 (Documentation/dev-tools/ktap.rst): a subtest for each scenario."""
    lines = ["KTAP version 1", f"1..{len(suites)}"]
    for number, suite in enumerate(suites, 1):
        lines += ["  KTAP version 1", f"  # Subtest: {_plain(suite.name)}", f"  1..{len(suite.cases)}"]
        lines += [f"  {_format_result(case, index)}" for index, case in enumerate(suite.cases, 1)]
        bad = any(case.status in (Status.FAILED, Status.ERROR) for case in suite.cases)
        lines.append(f"{'not ok' if bad else 'ok'} {number} {_plain(suite.name)}")
    return "\n".join(lines) + "\n"


def _format_result(case: Case, number: int) -> str:
    result = "not ok" if case.status in (Status.FAILED, Status.ERROR) else "ok"
    skip = " # SKIP" if case.status is Status.SKIPPED else " #"
    return f"{result} {number} {_plain(case.name)}{skip} {_plain(case.said)}"


def _plain(text: str) -> str:
    """Return text in which no number sign begins a directive."""
    return text.replace("#", "no. ")


def format_csv(trials: Mapping[str, tuple[Expected, Sequence[TrialRecord]]]) -> str:
    """Return a row for each trial, with a title line. Times are microseconds of the host's clock."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    names = sorted({name for _, records in trials.values() for record in records for name in record.invariants})
    writer.writerow(
        (
            *("scenario", "trial", "mechanism", "topology", "seed", "outcome", "reason", "bucket", "evidence"),
            *("nmis_sent", "nmis_proven_in_window", "nmi_entries"),
            *("load_us", "rendezvous_us", "longest_window_us"),
            *names,
        )
    )
    for name, (_, records) in trials.items():
        for record in records:
            writer.writerow(_make_row(name, record, names))
    return out.getvalue()


def _make_row(scenario: str, record: TrialRecord, names: Sequence[str]) -> tuple[object, ...]:
    durations = record.durations
    windows_us = [span.us for span in durations.host_windows_us]
    texts = (scenario, record.mechanism, record.topology, record.reason, record.bucket, record.evidence)
    name, mechanism, topology, reason, bucket, evidence = (_for_spreadsheet(clean_line(text)) for text in texts)
    return (
        *(name, record.trial, mechanism, topology, record.seed, record.outcome.value, reason, bucket, evidence),
        *(record.nmis.sent, record.nmis.proven_in_window, record.nmis.entries),
        *(durations.host_load_us, durations.host_rendezvous_us, max(windows_us, default=None)),
        *(record.invariants[each].value if each in record.invariants else "" for each in names),
    )


def _for_spreadsheet(text: str) -> str:
    return f"'{text}" if text.startswith(_FORMULA) else text


def clean_line(text: str) -> str:
    """Return one short line without what a terminal, XML or KTAP takes for its own."""
    line = " ".join(clean(text).split())
    return line if len(line) <= MAX_REASON_CHARS else f"{line[: MAX_REASON_CHARS - 3]}..."
