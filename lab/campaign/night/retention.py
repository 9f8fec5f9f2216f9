# SPDX-License-Identifier: GPL-2.0-or-later
"""Which evidence a campaign keeps, and for how much room.

Evidence is written before its trial is stored, and evicted evidence removed after: a campaign that is killed leaves at
worst folders that the store does not name, which the next sitting removes.
"""

import shutil
from collections import OrderedDict
from pathlib import Path
from typing import Final

import msgspec

from lab.campaign.night.store import CampaignStore, Kept
from lab.campaign.night.trial import TrialDone, unpack_evidence
from lab.spec.verdict import Outcome
from lab.trial.folder import write_evidence, write_verdict
from lab.trial.stall import drop_dump

TRIALS: Final = "trials"
_BYTES_PER_MIB: Final = 1_024 * 1_024


class Retention:
    """Writes and evicts the evidence of one campaign, whose lock the caller holds.

    :param limit_mib: how much is kept at most
    """

    def __init__(self, store: CampaignStore, limit_mib: int) -> None:
        self._store = store
        self._folder = store.folder
        self._limit = limit_mib * _BYTES_PER_MIB
        self._passes: OrderedDict[int, tuple[str, int]] = OrderedDict()
        self._size = 0
        kept = store.list_evidence()
        for number, name, size, passed in kept:
            self._size += size
            if passed:
                self._passes[number] = (name, size)
        self._sweep({name for _, name, _, _ in kept})

    def keep(self, done: TrialDone, ran_s: float) -> bool:
        """Write a trial's evidence if there is room, and store the trial; False when it was there already.

        What is not a PASS takes the room of passes, the oldest first.

        :raise HostError: no space, or not writable
        :raise EvidenceError: what a worker sent is no evidence
        """
        archives = {index: each.archive for index, each in enumerate(done.attempts, 1) if each.archive}
        if not archives:
            return self._store.add(done, Kept(), ran_s)
        name = f"{TRIALS}/{done.number:05}-{done.part}"
        folder = self._folder / name
        size = self._write(folder, archives)
        evicted = self._find_room(size, done.record.outcome is Outcome.PASS)
        if evicted is None:
            # A guest's memory is the largest part, and the rest says more than nothing.
            size = self._write(folder, archives, dumps=False)
            evicted = self._find_room(size, done.record.outcome is Outcome.PASS)
        if evicted is None:
            shutil.rmtree(folder, ignore_errors=True)
            return self._store.add(done, Kept(state="dropped"), ran_s)
        if not self._store.add(done, Kept(folder=name, size=size, state="kept", evicted=evicted), ran_s):
            return False
        self._size += size
        for number in evicted:
            gone, freed = self._passes.pop(number)
            self._size -= freed
            shutil.rmtree(self._folder / gone, ignore_errors=True)
        if done.record.outcome is Outcome.PASS:
            self._passes[done.number] = (name, size)
        return True

    @property
    def size(self) -> int:
        """How many bytes of evidence are kept."""
        return self._size

    def _write(self, folder: Path, archives: dict[int, bytes], *, dumps: bool = True) -> int:
        """Write each attempt's evidence into a folder of its own, and return how large all of it is."""
        shutil.rmtree(folder, ignore_errors=True)
        for index, archive in archives.items():
            kept, verdict = unpack_evidence(archive)
            attempt = folder / f"attempt-{index}"
            evidence, raw = kept.evidence, kept.raw
            if not dumps:
                stall, raw = drop_dump(evidence.stall, raw, "there was no room for it")
                evidence = msgspec.structs.replace(evidence, stall=stall)
            write_evidence(attempt, evidence, raw)
            write_verdict(attempt, verdict)
        return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())

    def _find_room(self, size: int, passed: bool) -> tuple[int, ...] | None:
        """Return whose evidence has to go for so many bytes, None when not even that would do."""
        over = self._size + size - self._limit
        evicted = []
        for number, (_, freed) in self._passes.items():
            if over <= 0 or passed:
                break
            evicted.append(number)
            over -= freed
        return tuple(evicted) if over <= 0 else None

    def _sweep(self, known: set[str]) -> None:
        trials = self._folder / TRIALS
        if not trials.is_dir():
            return
        for entry in trials.iterdir():
            if f"{TRIALS}/{entry.name}" not in known and entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry, ignore_errors=True)
