# SPDX-License-Identifier: GPL-2.0-or-later
"""Writes a run as labs before 0.2 did: ``run.json`` and ``records.jsonl``, which today's lab still reads."""

from pathlib import Path

import msgspec

from lab.campaign.old_runs import RunInfo
from lab.campaign.run_folder import RECORDS, RUN
from lab.evidence.folder import RUN_MARKER
from lab.model.verdict import TrialRecord


class OldRun:
    """One run in a folder. A context manager, as the store of those labs was."""

    def __init__(self, folder: Path, info: RunInfo) -> None:
        self._folder = folder
        self._info = info

    def __enter__(self) -> "OldRun":
        self._folder.mkdir(parents=True, exist_ok=True)
        (self._folder / RUN_MARKER).touch()
        (self._folder / RECORDS).touch()
        self._write()
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def append(self, record: TrialRecord) -> None:
        with open(self._folder / RECORDS, "ab") as sink:
            sink.write(msgspec.json.encode(record) + b"\n")

    def finish(self, exit_status: int) -> None:
        self._info = msgspec.structs.replace(self._info, finished=True, exit_status=exit_status)
        self._write()

    def _write(self) -> None:
        (self._folder / RUN).write_bytes(msgspec.json.format(msgspec.json.encode(self._info)))
