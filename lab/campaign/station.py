# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs a campaign's trials in one process, on guests that it keeps warm from one to the next."""

import contextlib
import datetime
import os
import socket
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import msgspec
import psutil

from lab import __version__
from lab.build.images import ImageSet
from lab.campaign.definition import Chosen, Part, choose_trial, count_retries, keeps_pass
from lab.campaign.image_transfer import ImagesMissing, find_images
from lab.campaign.job import Attempt, Broken, Job, Missing, TrialDone, Unstarted, pack_evidence
from lab.campaign.shared_evidence import Staging
from lab.errors import HostError, UsageError, Withdrawn
from lab.expected.mutant import Tampering
from lab.guest.machine import kill_guests
from lab.host.paths import find_cache
from lab.judge import judge
from lab.kernelimage.vmlinux import Kernel, read_kernel
from lab.model.boot import Boot
from lab.model.evidence import Ending, Evidence
from lab.model.verdict import Finding, Outcome, TrialRecord, Verdict
from lab.trial.pool import WarmGuest
from lab.trial.record import make_record
from lab.trial.session import Kept
from lab.trial.tampering import find_preparation

#: A process keeps so many guests at most, the least recently used going first: each takes some 250 MiB. A campaign
#: over all mechanisms has four machines; with room for three, one trial in 25 would wait for a boot of some seconds.
MAX_GUESTS: Final = 8
#: What the host has to have left, beside the guest that is to boot, for one more to be kept.
SPARE_BYTES: Final = 1_024 * 1_024 * 1_024
#: A cache is cleared, and filled by another worker, while a guest boots: hardly ever once.
MAX_MOVES: Final = 3
#: What a guest's next trials cannot be trusted with, once it was broken.
_DIRTY: Final = ("dmesg-clean", "witnesses-agree")

Tell = Callable[[str], None]


class _Served:
    """A warm guest and how many trials it has served since its boot."""

    def __init__(self, guest: WarmGuest, images: ImageSet) -> None:
        self.guest = guest
        self.images = images
        self.trials = 0

    def retire(self) -> None:
        self.guest.retire()
        self.trials = 0


class _Keep(msgspec.Struct, frozen=True, kw_only=True):
    """Where an attempt's evidence goes.

    :param index: of the attempt, from 1
    :param passes: that of a PASS is kept, too
    :param staging: where it goes, None where it comes back with the record
    """

    index: int
    passes: bool
    staging: Staging | None

    def put(self, kept: Kept, verdict: Verdict) -> bytes:
        """Return what comes back with the record of evidence.

        :raise HostError: it could not be written
        """
        if verdict.outcome is Outcome.PASS and not self.passes:
            return b""
        if self.staging is None:
            return pack_evidence(kept, verdict)
        self.staging.write(self.index, kept, verdict)
        return b""


class Station:
    """Runs one trial at a time, whichever thread asks. A context manager.

    :param tell: told, in a few words, what is being waited for
    :param unwanted: whether a trial that waits for the host's vCPUs is to be given up
    """

    def __init__(self, tell: Tell = lambda _: None, unwanted: Callable[[], bool] = lambda: False) -> None:
        self._tell = tell
        self._unwanted = unwanted
        self._campaign = ""
        self._withdrawn = False
        self._lock = threading.Lock()
        self._guests: OrderedDict[tuple[str, str, str, Tampering | None, Boot], _Served] = OrderedDict()
        self._kernels: dict[tuple[str, ...], tuple[ImageSet, Kernel]] = {}
        self._used_at = time.monotonic()
        self._aborted = False

    def __enter__(self) -> "Station":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def run(self, job: Job) -> TrialDone | Missing | Broken | Unstarted:
        """Run a trial, and again on fresh guests if it fails.

        What its kernel does not have, such as the place of a hold, breaks that trial and not the campaign.

        :raise HostError: this host cannot run trials
        """
        with self._lock:
            self._campaign, self._withdrawn = job.campaign, False
            try:
                for _ in range(MAX_MOVES):
                    ended = self._run_once(job)
                    if ended is not None:
                        return ended
                raise HostError(f"images of this host were removed {MAX_MOVES} times in a row")
            except Withdrawn:
                return Unstarted(number=job.number)
            except UsageError as error:
                return Broken(number=job.number, reason=str(error))
            finally:
                self._used_at = time.monotonic()

    def _run_once(self, job: Job) -> TrialDone | Missing | None:
        """Run a trial, or say why it could not be: images are missing, or None when they went and are back elsewhere.

        :raise HostError: this host cannot run trials
        """
        try:
            with self._open_staging(job) as staging:
                done = self._run(job, staging)
                if done.booted:
                    return done
                # A guest that did not boot, since its images went just then, says nothing of them.
                missing = self._find_missing(job)
                if missing is None and not self._have_moved(job):
                    return done
                if staging is not None:
                    staging.drop()
                return missing
        except ImagesMissing as error:
            return _tell_missing(job, error)
        except HostError:
            missing = self._find_missing(job)
            if missing is None and not self._have_moved(job):
                raise
            return missing

    def close(self) -> None:
        """End all guests, after the trial that runs."""
        with self._lock:
            self._drop_all()

    def close_idle(self, idle_s: float) -> None:
        """End all guests when no trial has run for so long."""
        if self._lock.acquire(blocking=False):
            try:
                if time.monotonic() - self._used_at >= idle_s:
                    self._drop_all()
            finally:
                self._lock.release()

    def withdraw(self, campaign: str) -> None:
        """Have the trial that runs end if it is this campaign's and waits for the host's vCPUs, from another thread."""
        if self._campaign == campaign:
            self._withdrawn = True

    def abort(self) -> None:
        """Have the trial that runs end now, by killing all guests of this process."""
        self._aborted = True
        kill_guests()

    def _find_missing(self, job: Job) -> Missing | None:
        """Say what this host lacks by now of a trial's images."""
        part = choose_trial(job.spec, job.number).part
        try:
            find_images(job.images[part.image_key])
        except ImagesMissing as error:
            return _tell_missing(job, error)
        return None

    def _have_moved(self, job: Job) -> bool:
        """Say whether a trial's images are not where they were taken from any more: another worker was sent them."""
        part = choose_trial(job.spec, job.number).part
        known = self._kernels.get(_key(job.images[part.image_key]))
        return known is not None and not _are_there(known[0])

    def _drop_all(self) -> None:
        for served in self._guests.values():
            served.retire()
        self._guests.clear()

    @staticmethod
    @contextlib.contextmanager
    def _open_staging(job: Job) -> Iterator[Staging | None]:
        """Make sure, before a trial, that its evidence can be written where it is to be written."""
        if not job.evidence:
            yield None
            return
        with Staging(Path(job.evidence), job.campaign) as staging:
            yield staging

    def _run(self, job: Job, staging: Staging | None) -> TrialDone:
        chosen = choose_trial(job.spec, job.number)
        served = self._find(job, chosen.part)
        began = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
        started = time.monotonic()
        keep = _Keep(index=1, passes=keeps_pass(job.spec, job.number), staging=staging)
        first, evidence, record = self._try(job, chosen, served, keep)
        attempts = [first]
        while (
            first.outcome is Outcome.FAIL
            and len(attempts) <= count_retries(job.spec, chosen.part)
            and not self._aborted
        ):
            served.retire()
            keep = _Keep(index=len(attempts) + 1, passes=False, staging=staging)
            try:
                again, _, _ = self._try(job, chosen, served, keep)
            except Withdrawn:
                # The trial has ended; only how often it fails is known of fewer tries.
                break
            attempts.append(again)
        timings = evidence.timings
        return TrialDone(
            number=job.number,
            part=chosen.part.name,
            record=record,
            attempts=tuple(attempts),
            reproduces=chosen.reproduces,
            began=began,
            took_s=time.monotonic() - started,
            host=socket.gethostname(),
            load_1m=os.getloadavg()[0],
            steal_ppm=timings.steal_ppm if timings is not None else 0,
            lab_version=__version__,
            worker=name_worker(),
            guests=sum(each.trials > 0 for each in self._guests.values()),
            booted=first.guest_trial > 0,
            staged=staging.word if staging is not None else "",
        )

    def _find(self, job: Job, part: Part) -> _Served:
        """Return the warm guest that serves a machine's trials; the campaign's name keeps those of others apart."""
        boot = part.scenario.boot
        found, kernel = self._read(job.images[part.image_key])
        key = (job.campaign, found.qemu.sha256, part.image_key, part.tampering, boot)
        if key in self._guests and self._guests[key].trials == 0 and self._guests[key].images != found:
            # What it would have booted from is elsewhere on this host by now.
            self._guests.pop(key)
        if key not in self._guests:
            while self._guests and not self._has_room():
                _, oldest = self._guests.popitem(last=False)
                oldest.retire()
            prepare = find_preparation(part.tampering)
            guest = WarmGuest(found, kernel, boot, self._tell, prepare, unwanted=self._is_unwanted)
            self._guests[key] = _Served(guest, found)
        self._guests.move_to_end(key)
        # A sitting may have another limit than the one before.
        self._guests[key].guest.dump_mib = job.spec.limits.dump_memory_mib
        return self._guests[key]

    def _has_room(self) -> bool:
        """Say whether one more guest may be kept."""
        return len(self._guests) < MAX_GUESTS and psutil.virtual_memory().available >= SPARE_BYTES

    def _is_unwanted(self) -> bool:
        return self._withdrawn or self._unwanted()

    def _read(self, images: ImageSet) -> tuple[ImageSet, Kernel]:
        known = self._kernels.get(_key(images))
        if known is not None and _are_there(known[0]):
            return known
        found = find_images(images)
        kernel = known[1] if known is not None else read_kernel(found.vmlinux)
        self._kernels[_key(images)] = (found, kernel)
        return found, kernel

    def _try(self, job: Job, chosen: Chosen, served: _Served, keep: "_Keep") -> tuple[Attempt, Evidence, TrialRecord]:
        started = time.monotonic()
        kept = served.guest.run_trial(chosen.part.scenario, chosen.plan)
        verdict = judge(kept.evidence)
        booted = served.guest.failed_boots == 0
        served.trials += booted
        attempt = Attempt(
            outcome=verdict.outcome,
            reason=verdict.reason,
            took_s=time.monotonic() - started,
            guest_trial=served.trials if booted else 0,
            archive=keep.put(kept, verdict),
        )
        keeps = job.spec.keeps_guests and kept.evidence.ending is Ending.COMPLETE
        spoilt = not keeps and spoils(kept.evidence, verdict)
        if spoilt or served.trials >= job.spec.limits.trials_per_guest:
            served.retire()
        return attempt, kept.evidence, make_record(chosen.number, kept.evidence, verdict, "")


def spoils(evidence: Evidence, verdict: Verdict) -> bool:
    """Say whether a guest may not serve another trial: it failed, lost a witness, or said something odd."""
    if verdict.outcome in (Outcome.FAIL, Outcome.ERROR) or evidence.ending is not Ending.COMPLETE:
        return True
    observer = evidence.observer
    if observer is None or evidence.guest is None or observer.records_lost or observer.windows_lost:
        return True
    return any(one.name in _DIRTY and one.finding is Finding.BROKEN for one in verdict.invariants)


def name_worker() -> str:
    """Return what tells this process from all others of a campaign."""
    return f"{socket.gethostname()}/{os.getpid()}"


def _tell_missing(job: Job, error: ImagesMissing) -> Missing:
    cache = f"{socket.gethostname()}:{find_cache()}"
    return Missing(number=job.number, worker=name_worker(), cache=cache, digests=error.digests)


def _key(images: ImageSet) -> tuple[str, ...]:
    return images.kernel_sha256, images.vmlinux_sha256, images.observer_sha256, images.qemu.sha256


def _are_there(images: ImageSet) -> bool:
    """Say whether what a guest boots from is where it was."""
    return all(path.is_file() for path in (images.kernel, images.initramfs, images.observer, images.qemu.path))
