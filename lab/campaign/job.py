# SPDX-License-Identifier: GPL-2.0-or-later
"""What goes to a worker for one trial, and what comes back: values alone, so that any host can run any trial."""

import zlib
from collections.abc import Mapping
from typing import Final

import msgspec

from lab.build.images import ImageSet
from lab.campaign.definition import CampaignSpec
from lab.errors import EvidenceError
from lab.model.verdict import Outcome, TrialRecord, Verdict
from lab.trial.session import Kept

#: Fast: evidence is mostly numbers as text, and shrinks to a tenth by the cheapest level.
_LEVEL: Final = 1
#: A ring and tables that are full, and raw files as large as they may be, stay below.
MAX_ARCHIVE_BYTES: Final = 512 * 1024 * 1024


class Job(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """One trial to run.

    :param campaign: the campaign's uid, by which workers tell guests of one from those of another
    :param images: those of the trial, by name; a worker takes them from there, or from its host's cache, by hash
    :param evidence: the campaign's folder on a path that all hosts share, to which evidence goes; empty where it comes
        back with the record
    """

    campaign: str
    spec: CampaignSpec
    number: int
    images: Mapping[str, ImageSet]
    evidence: str = ""


class Attempt(msgspec.Struct, frozen=True, kw_only=True):
    """One try of a trial.

    :param guest_trial: as which one its guest served it, from 1; 0 where there was none
    :param archive: evidence and verdict, as :func:`pack_evidence` makes it; empty where it is not to be kept
    """

    outcome: Outcome
    reason: str
    took_s: float
    guest_trial: int
    archive: bytes = b""


class TrialDone(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """One trial that has ended.

    :param record: of the first attempt; its evidence is for the store to name
    :param attempts: the first, then those on fresh guests where it had failed
    :param reproduces: its plan places all NMIs by holds
    :param began: wall-clock time, ISO 8601
    :param took_s: over all attempts, waits for the host's vCPUs included
    :param host: the name of the host it ran on
    :param load_1m: that host's load average, seen as the trial ended
    :param steal_ppm: of the host's time that its own hypervisor kept from it, in parts per million
    :param worker: which process ran it
    :param guests: how many guests that process keeps now
    :param booted: False when no guest was to be had
    :param staged: the word by which evidence was written to the shared path, empty where it was not
    """

    number: int
    part: str
    record: TrialRecord
    attempts: tuple[Attempt, ...]
    reproduces: bool
    began: str
    took_s: float
    host: str
    load_1m: float
    steal_ppm: int
    lab_version: str
    worker: str = ""
    guests: int = 0
    booted: bool = True
    staged: str = ""

    @property
    def failed(self) -> int:
        """How many of its attempts ended in FAIL."""
        return sum(each.outcome is Outcome.FAIL for each in self.attempts)


class Missing(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """In place of a trial: the worker's host lacks files.

    :param worker: that can be sent them
    :param cache: where they would be kept, told from those of all other hosts
    :param digests: SHA-256 of each
    """

    number: int
    worker: str
    cache: str
    digests: tuple[str, ...]


class Broken(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """In place of a trial: it cannot be run, or whatever ran it died again and again.

    :param reason: one sentence
    """

    number: int
    reason: str


class Unstarted(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """In place of a trial: it still waited for the host's vCPUs, and was withdrawn."""

    number: int


class _Packed(msgspec.Struct, frozen=True):
    kept: Kept
    verdict: Verdict


def pack_evidence(kept: Kept, verdict: Verdict) -> bytes:
    """Return a trial's evidence as one piece."""
    return zlib.compress(msgspec.msgpack.encode(_Packed(kept, verdict)), _LEVEL)


def unpack_evidence(archive: bytes) -> tuple[Kept, Verdict]:
    """Return what was packed.

    :raise EvidenceError: it is none of ours, or too large
    """
    try:
        inflate = zlib.decompressobj()
        data = inflate.decompress(archive, MAX_ARCHIVE_BYTES)
        if inflate.unconsumed_tail or not inflate.eof:
            raise EvidenceError(f"evidence that came back has more than {MAX_ARCHIVE_BYTES} bytes, or is cut short")
        packed = msgspec.msgpack.decode(data, type=_Packed)
    except (zlib.error, msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise EvidenceError(f"evidence that came back cannot be read: {error}") from error
    return packed.kept, packed.verdict
