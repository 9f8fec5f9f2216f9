# SPDX-License-Identifier: GPL-2.0-or-later
"""Which evidence a campaign keeps, and for how much room, in its own folder or on a path that all hosts share.

Evidence is written before its trial is stored, and evicted evidence removed after: a campaign that is killed leaves at
worst folders that the store does not name, which the next sitting removes. So evidence that loses its dump is written
again, under another name, which the store takes over with the trial that needs the room.
"""

import shutil
from collections import OrderedDict
from pathlib import Path
from typing import Final

import msgspec

from lab.campaign.database import TRIALS
from lab.campaign.job import TrialDone, unpack_evidence
from lab.campaign.shared_evidence import clear_incoming, drop_staged, take_staged
from lab.campaign.store import CampaignStore, Kept, Slimmed
from lab.errors import EvidenceError
from lab.evidence.folder import (
    holds_only_evidence,
    is_raw_name,
    read_evidence,
    read_verdict,
    write_evidence,
    write_verdict,
)
from lab.guest.dump import DUMPS
from lab.judge.stall import describe_stall
from lab.model.verdict import Outcome
from lab.trial.stall import drop_dump

#: Ends the name of evidence that has lost its dump.
_SLIM: Final = "-without-dump"
#: What is said of a dump in its place.
_NO_ROOM: Final = "there was no room for it"
_BYTES_PER_MIB: Final = 1_024 * 1_024


class _Held(msgspec.Struct, frozen=True):
    """A trial's evidence that may have to go, or part of it.

    :param dumps: how many bytes of it are dumps
    """

    name: str
    size: int
    dumps: int = 0


class Retention:
    """Writes and evicts the evidence of one campaign, whose lock the caller holds.

    :param limit_mib: how much is kept at most
    """

    def __init__(self, store: CampaignStore, limit_mib: int) -> None:
        self._store = store
        self._folder = store.evidence
        self._limit = limit_mib * _BYTES_PER_MIB
        self._passes: OrderedDict[int, _Held] = OrderedDict()
        self._dumps: OrderedDict[int, _Held] = OrderedDict()
        self._size = 0
        kept = store.list_evidence()
        for number, name, size, passed in kept:
            # A trial that passed has no guest that stopped answering.
            dumps = 0 if passed else _measure_dumps(self._folder / name)
            self._note(number, _Held(name, size, dumps), passed)
        self._sweep({name for _, name, _, _ in kept})
        if self._folder != store.folder:
            clear_incoming(self._folder)

    def keep(self, done: TrialDone, ran_s: float) -> bool:
        """Write a trial's evidence if there is room, and store the trial; False when it was there already.

        Its own dump is the first to go where there is no room. What is not a PASS then takes the room of earlier
        dumps, and after them of passes, the oldest first.

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
        passed = done.record.outcome is Outcome.PASS
        held = _Held(name, _measure(folder), _measure_dumps(folder))
        if held.dumps and self._size + held.size > self._limit:
            # A guest's memory is the largest part, and the rest says more than nothing.
            _copy_without_dumps(folder, folder)
            held = _Held(name, _measure(folder))
        room = self._make_room(held.size, passed)
        if room is None:
            shutil.rmtree(folder, ignore_errors=True)
            return self._store.add(done, Kept(state="dropped"), ran_s)
        slimmed, evicted = room
        kept = Kept(folder=name, size=held.size, state="kept", slimmed=slimmed, evicted=evicted)
        if not self._store.add(done, kept, ran_s):
            return False
        self._note(done.number, held, passed)
        gone = [self._dumps.pop(each.number) for each in slimmed] + [self._passes.pop(number) for number in evicted]
        self._size += sum(each.size for each in slimmed) - sum(each.size for each in gone)
        for each in gone:
            shutil.rmtree(self._folder / each.name, ignore_errors=True)
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

    def _note(self, number: int, held: _Held, passed: bool) -> None:
        self._size += held.size
        if passed:
            self._passes[number] = held
        elif held.dumps:
            self._dumps[number] = held

    def _make_room(self, size: int, passed: bool) -> tuple[tuple[Slimmed, ...], tuple[int, ...]] | None:
        """Return whose dumps and whose evidence have to go for so many bytes, None when not even that would do.

        Evidence without its dump is written already.
        """
        over = self._size + size - self._limit
        spare = sum(held.dumps for held in self._dumps.values()) + sum(held.size for held in self._passes.values())
        if over > (0 if passed else spare):
            return None
        slimmed, evicted = [], []
        for number, held in tuple(self._dumps.items()):
            if over <= 0:
                break
            slim = self._slim(number, held)
            if slim is not None:
                slimmed.append(slim)
                over -= held.size - slim.size
        for number, held in self._passes.items():
            if over <= 0:
                break
            evicted.append(number)
            over -= held.size
        if over <= 0:
            return tuple(slimmed), tuple(evicted)
        for slim in slimmed:
            shutil.rmtree(self._folder / slim.folder, ignore_errors=True)
        return None

    def _slim(self, number: int, held: _Held) -> Slimmed | None:
        """Write a trial's evidence once more, without its dump; None when it is not as it was, and has to stay."""
        folder = self._folder / held.name
        name = f"{held.name}{_SLIM}"
        target = self._folder / name
        shutil.rmtree(target, ignore_errors=True)
        try:
            if not folder.is_dir() or not all(holds_only_evidence(each) for each in folder.iterdir()):
                raise EvidenceError(f"'{folder}' holds something other than evidence")
            _copy_without_dumps(folder, target)
        except EvidenceError:
            # Somebody has altered it since: one trial's evidence is no reason to end a campaign.
            shutil.rmtree(target, ignore_errors=True)
            del self._dumps[number]
            return None
        return Slimmed(number=number, folder=name, size=_measure(target))

    def _sweep(self, known: set[str]) -> None:
        trials = self._folder / TRIALS
        if not trials.is_dir():
            return
        for entry in trials.iterdir():
            if f"{TRIALS}/{entry.name}" not in known and entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry, ignore_errors=True)


def _measure(folder: Path) -> int:
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file())


def _measure_dumps(folder: Path) -> int:
    return sum(path.lstat().st_size for path in folder.glob("attempt-*/*") if path.name in DUMPS and path.is_file())


def _copy_without_dumps(folder: Path, target: Path) -> None:
    """Write each attempt's evidence again, with the reason in place of the dump that it may have.

    :param target: where to, which may be the same folder
    :raise EvidenceError: it was altered
    """
    for attempt in sorted(folder.glob("attempt-*")):
        evidence, verdict = read_evidence(attempt), read_verdict(attempt)
        # A dump's name is all that is needed of it.
        kept = {
            path.name: b"" if path.name in DUMPS else path.read_bytes()
            for path in attempt.iterdir()
            if is_raw_name(path.name)
        }
        stall, raw = drop_dump(evidence.stall, kept, _NO_ROOM)
        evidence = msgspec.structs.replace(evidence, stall=stall)
        write_evidence(target / attempt.name, evidence, raw)
        write_verdict(target / attempt.name, msgspec.structs.replace(verdict, stall=describe_stall(evidence)))
