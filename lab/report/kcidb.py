# SPDX-License-Identifier: GPL-2.0-or-later
"""Trials as KCIDB JSON, version 5.3 (https://docs.kernelci.org/kcidb). Pure: records in, values out.

A kernel release is a checkout, a bzImage is a build, a trial is a test. A scenario is a test, too: it says whether the
scenario did what is expected of it. As in the other formats, a control that FAILs as it must passes. An INVALID trial
is SKIP, since the status of the kernel is unknown. An ERROR is MISS: the lab or the host failed, not the test.
"""

import datetime
import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from lab.errors import UsageError
from lab.expected.expect import Expected
from lab.model.evidence import Images
from lab.model.verdict import TrialRecord
from lab.report.exchange import Case, Status, Suite, clean_line, make_suites

VERSION: Final = {"major": 5, "minor": 3}
DEFAULT_ORIGIN: Final = "microcode_nmi_lab"
ROOT_PATH: Final = "microcode-nmi-lab"
#: Stands for a kernel that no record names, since no guest booted.
UNKNOWN: Final = "unknown"

_ORIGIN: Final = re.compile(r"[a-z0-9_]{1,100}")
_NOT_IN_PATH: Final = re.compile(r"[^a-zA-Z0-9_-]+")
_STATUS: Final = {Status.PASSED: "PASS", Status.FAILED: "FAIL", Status.SKIPPED: "SKIP", Status.ERROR: "MISS"}
_ID_DIGITS: Final = 16
_US_PER_S: Final = 1_000_000


def make_kcidb(
    trials: Mapping[str, tuple[Expected, Sequence[TrialRecord]]],
    images: Sequence[Images],
    run: str,
    started: str,
    origin: str = DEFAULT_ORIGIN,
) -> dict[str, Any]:
    """Return what a CI system submits to KCIDB.

    :param images: of each kernel that was booted, as far as that is noted
    :param run: tells the trials of this run or campaign from those of all others
    :param started: wall-clock time, ISO 8601
    :param origin: what KCIDB calls the CI system that submits
    :raise UsageError: KCIDB does not take such an origin
    """
    if not _ORIGIN.fullmatch(origin):
        raise UsageError(f"--origin '{origin}' is no name of a CI system in KCIDB: allowed are a-z, 0-9 and _")
    suites = make_suites(trials)
    known = {clean_line(each.kernel_sha256): each for each in images}
    records = [record for _, found in trials.values() for record in found]
    kernels = dict.fromkeys([*known, *(_name_kernel(record) for record in records if record.kernel_sha256)])
    # A trial without a guest names no kernel. Where there is one kernel, the trial was meant for that.
    fallback = next(iter(kernels)) if len(kernels) == 1 else UNKNOWN
    builds = [*kernels] if fallback in kernels else [*kernels, UNKNOWN]
    releases = {kernel: _name_release(known.get(kernel)) for kernel in builds}
    run_id = hashlib.sha256(run.encode(errors="surrogateescape")).hexdigest()[:_ID_DIGITS]
    return {
        "version": VERSION,
        "checkouts": [
            {"id": f"{origin}:{release}", "origin": origin, "valid": True, "comment": release}
            for release in dict.fromkeys(releases.values())
        ],
        "builds": [
            {
                "id": f"{origin}:{kernel}",
                "origin": origin,
                "checkout_id": f"{origin}:{release}",
                "architecture": "x86_64",
                "status": "PASS",
                "misc": _describe(known.get(kernel)),
            }
            for kernel, release in releases.items()
        ],
        "tests": [
            test
            for number, suite in enumerate(suites)
            for test in _list_tests(suite, f"{origin}:{run_id}.{number}", origin, fallback, _check_time(started))
        ],
    }


def _name_release(images: Images | None) -> str:
    return clean_line(images.kernel_release) or UNKNOWN if images is not None else UNKNOWN


def _describe(images: Images | None) -> dict[str, str]:
    if images is None:
        return {}
    return {
        "build_id": images.build_id or images.guest_build_id,
        "vmlinux_sha256": images.vmlinux_sha256,
        "qemu": clean_line(images.qemu_version),
    }


def _list_tests(suite: Suite, prefix: str, origin: str, fallback: str, started: dict[str, str]) -> Iterator[Any]:
    path = f"{ROOT_PATH}.{_NOT_IN_PATH.sub('-', suite.name) or UNKNOWN}"
    kernels = _list_kernels(suite.cases)
    for number, case in enumerate(suite.cases):
        kernel = _name_kernel(case.record) if case.record is not None else next(iter(kernels), "")
        yield {
            "id": f"{prefix}.{number}",
            "origin": origin,
            "build_id": f"{origin}:{kernel or fallback}",
            "path": f"{path}.trial" if case.record is not None else path,
            "comment": f"{case.name}: {case.said}",
            "status": _STATUS[case.status],
            **(_describe_trial(case.record) if case.record is not None else started),
        }


def _list_kernels(cases: Iterable[Case]) -> dict[str, None]:
    records = (case.record for case in cases)
    return dict.fromkeys(_name_kernel(each) for each in records if each is not None and each.kernel_sha256)


def _name_kernel(record: TrialRecord) -> str:
    return clean_line(record.kernel_sha256)


def _describe_trial(record: TrialRecord) -> dict[str, Any]:
    load_us = record.durations.host_load_us
    return {
        **({"duration": load_us / _US_PER_S} if load_us is not None else {}),
        "misc": {
            "trial": record.trial,
            "seed": record.seed,
            "outcome": record.outcome.value,
            "mechanism": clean_line(record.mechanism),
            "topology": clean_line(record.topology),
            "bucket": clean_line(record.bucket),
            "evidence": clean_line(record.evidence),
            "invariants": {clean_line(name): finding.value for name, finding in record.invariants.items()},
            "nmis_sent": record.nmis.sent,
            "nmis_proven_in_window": record.nmis.proven_in_window,
        },
    }


def _check_time(text: str) -> dict[str, str]:
    """Return the start of a test, where the store has a time with its zone."""
    try:
        time = datetime.datetime.fromisoformat(text)
    except ValueError:
        return {}
    return {"start_time": time.isoformat()} if time.tzinfo is not None else {}
