# SPDX-License-Identifier: GPL-2.0-or-later
"""Which evidence a campaign keeps, and for how much room, in its own folder or on a path that all hosts share.

Evidence is written before its trial is stored, and evicted evidence removed after: a campaign that is killed leaves at
worst folders that the store does not name, which the next sitting removes.
"""

import shutil
from collections import OrderedDict
from pathlib import Path
from typing import Final

import msgspec

from lab.campaign.night.share import clear_incoming, drop_staged, take_staged
from lab.campaign.night.store import CampaignStore, Kept
from lab.campaign.night.trial import TrialDone, unpack_evidence
from lab.guest.dump import DUMPS
from lab.spec.verdict import Outcome
from lab.trial.folder import is_raw_name, read_evidence, read_verdict, write_evidence, write_verdict
from lab.trial.stall import drop_dump

TRIALS: Final = "trials"
_BYTES_PER_MIB: Final = 1_024 * 1_024


class Retention:
    """Writes and evicts the evidence of one campaign, whose lock the caller holds.

    :param limit_mib: how much is kept at most
    """

    def __init__(self, store: CampaignStore, limit_mib: int) -> None:
        self._store = store
        self._folder = store.evidence
        self._limit = limit_mib * _BYTES_PER_MIB
        self._passes: OrderedDict[int, tuple[str, int]] = OrderedDict()
        self._size = 0
        kept = store.list_evidence()
        for number, name, size, passed in kept:
            self._size += size
            if passed:
                self._passes[number] = (name, size)
        self._sweep({name for _, name, _, _ in kept})
        if self._folder != store.folder:
            clear_incoming(self._folder)

    def keep(self, done: TrialDone, ran_s: float) -> bool:
        """Write a trial's evidence if there is room, and store the trial; False when it was there already.

        What is not a PASS takes the room of passes, the oldest first.

        :raise HostError: no space, or not writable
        :raise EvidenceError: what a worker sent is no evidence
        """
        archives = {index: each.archive for index, each in enumerate(done.attempts, 1) if each.archive}
        if self._store.has(done.number):
            if done.staged:
                drop_staged(self._folder, done.staged)
            return False
        if not archives and not done.staged:
            return self._store.add(done, Kept(), ran_s)
        name = f"{TRIALS}/{done.number:05}-{done.part}"
        folder = self._folder / name
        if done.staged:
            take_staged(self._folder, done.staged, folder, done.host)
        else:
            self._write(folder, archives)
        size = _measure(folder)
        evicted = self._find_room(size, done.record.outcome is Outcome.PASS)
        if evicted is None:
            # A guest's memory is the largest part, and the rest says more than nothing.
            _drop_dumps(folder)
            size = _measure(folder)
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

    def _write(self, folder: Path, archives: dict[int, bytes]) -> None:
        """Write each attempt's evidence into a folder of its own."""
        shutil.rmtree(folder, ignore_errors=True)
        for index, archive in archives.items():
            kept, verdict = unpack_evidence(archive)
            attempt = folder / f"attempt-{index}"
            write_evidence(attempt, kept.evidence, kept.raw)
            write_verdict(attempt, verdict)

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


def _measure(folder: Path) -> int:
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file())


def _drop_dumps(folder: Path) -> None:
    """Write each attempt's evidence again without the dump of a guest's memory that it may have."""
    for attempt in sorted(folder.glob("attempt-*")):
        if any((attempt / name).is_file() for name in DUMPS):
            evidence, verdict = read_evidence(attempt), read_verdict(attempt)
            kept = {path.name: path.read_bytes() for path in attempt.iterdir() if is_raw_name(path.name)}
            stall, raw = drop_dump(evidence.stall, kept, "there was no room for it")
            write_evidence(attempt, msgspec.structs.replace(evidence, stall=stall), raw)
            write_verdict(attempt, verdict)
