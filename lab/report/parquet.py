# SPDX-License-Identifier: GPL-2.0-or-later
"""Trials as one table of Parquet, for data frames: a row for each trial. Times are microseconds of the host's clock."""

import io
from collections.abc import Mapping, Sequence
from typing import Any, Final

from lab.errors import UsageError
from lab.expected.expect import Expected
from lab.model.verdict import TrialRecord
from lab.report.exchange import clean_line

#: The extra of the project that brings pyarrow.
EXTRA: Final = "parquet"


def format_parquet(trials: Mapping[str, tuple[Expected, Sequence[TrialRecord]]]) -> bytes:
    """Return a Parquet file. A finding of an invariant that a trial did not have is null.

    :raise UsageError: pyarrow is not installed
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ModuleNotFoundError:
        raise UsageError(
            f"--format parquet needs pyarrow: install it with pip install 'microcode-nmi-lab[{EXTRA}]'"
        ) from None
    pairs = [(name, record) for name, (_, records) in trials.items() for record in records]
    names = sorted({name for _, record in pairs for name in record.invariants})
    text, whole, real = pyarrow.string(), pyarrow.int64(), pyarrow.float64()
    kinds: dict[str, Any] = {
        **dict.fromkeys(("scenario", "mechanism", "topology", "outcome", "reason", "bucket", "evidence"), text),
        "kernel_sha256": text,
        **dict.fromkeys(("trial", "seed", "windows_judged", "windows_unseen"), whole),
        **dict.fromkeys(("nmis_sent", "nmis_handled", "nmi_entries", "nmis_proven_in_window"), whole),
        "nmis_on_siblings": whole,
        "first_load": pyarrow.bool_(),
        **dict.fromkeys(("load_us", "rendezvous_us"), real),
        **dict.fromkeys(("windows_us", "holds_us", "nmi_delays_us"), pyarrow.list_(real)),
    }
    rows = [_make_row(scenario, record) for scenario, record in pairs]
    columns = {key: pyarrow.array([row[key] for row in rows], type=kind) for key, kind in kinds.items()}
    for name in names:
        found = [each.value if (each := record.invariants.get(name)) else None for _, record in pairs]
        columns[f"invariant {clean_line(name)}"] = pyarrow.array(found, type=text)
    sink = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table(columns), sink, compression="zstd")
    return sink.getvalue()


def _make_row(scenario: str, record: TrialRecord) -> dict[str, Any]:
    nmis, durations = record.nmis, record.durations
    return {
        "scenario": clean_line(scenario),
        "mechanism": clean_line(record.mechanism),
        "topology": clean_line(record.topology),
        "outcome": record.outcome.value,
        "reason": clean_line(record.reason),
        "bucket": clean_line(record.bucket),
        "evidence": clean_line(record.evidence),
        "kernel_sha256": clean_line(record.kernel_sha256),
        "trial": record.trial,
        "seed": record.seed,
        "windows_judged": record.windows_judged,
        "windows_unseen": record.windows_unseen,
        "nmis_sent": nmis.sent,
        "nmis_handled": nmis.handled,
        "nmi_entries": nmis.entries,
        "nmis_proven_in_window": nmis.proven_in_window,
        "nmis_on_siblings": record.nmis_on_siblings,
        "first_load": record.first_load,
        "load_us": durations.host_load_us,
        "rendezvous_us": durations.host_rendezvous_us,
        "windows_us": [span.us for span in durations.host_windows_us],
        "holds_us": [span.us for span in durations.host_holds_us],
        "nmi_delays_us": [span.us for span in durations.host_nmi_delay_us],
    }
