# SPDX-License-Identifier: GPL-2.0-or-later
"""Which guest serves which trial of a campaign, when it is replaced, and images by content."""

import contextlib
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from evidence_builder import Load, change
from night_samples import KEPT, PARTS, make_spec, open_store

from lab.build.images import ImageSet
from lab.build.qemu import find_qemu
from lab.campaign import image_transfer as night_images
from lab.campaign import station
from lab.campaign.definition import CampaignSpec, Order, choose_trial
from lab.campaign.image_transfer import ImagesMissing, ImageSource, find_images, open_images, receive_images
from lab.campaign.job import Job, Missing, TrialDone, unpack_evidence
from lab.campaign.reader import read_campaign_qemu
from lab.campaign.shared_evidence import claim_root
from lab.campaign.station import Station, spoils
from lab.errors import GuestGone, HostError, UsageError
from lab.evidence.folder import read_evidence, read_verdict
from lab.expected.mutant import Tampering
from lab.host.paths import find_cache
from lab.judge import judge
from lab.model.evidence import Ending, Evidence
from lab.model.phase import Phase
from lab.model.verdict import Outcome
from lab.trial import pool
from lab.trial.session import Kept

SOUND: Evidence = KEPT.evidence
BROKEN: Evidence = change(Load().build(), "guest.load_errno", 5)


def make_images(folder: Path) -> ImageSet:
    fields: dict[str, Any] = {}
    for name in ("kernel", "vmlinux", "initramfs", "observer"):
        path = folder / name
        path.write_bytes(name.encode())
        fields |= {name: path, f"{name}_sha256": hashlib.sha256(name.encode()).hexdigest()}
    return ImageSet(kernel_release="6.1.0", qemu=find_qemu(), **fields)


class Guests:
    """Gives each trial the next letter's evidence: p a PASS, f a FAIL, g a guest that ended; x boots none."""

    def __init__(self, letters: str) -> None:
        self._letters = iter(letters)
        self.boots = 0
        self.alive = 0
        self.usable = True
        self.machine: object = None

    @contextlib.contextmanager
    def open_session(self, *_: object) -> Iterator["Guests"]:
        if self.next_is("x"):
            raise GuestGone("QEMU ended with status 1")
        self.boots += 1
        self.alive += 1
        self.usable = True
        try:
            yield self
        finally:
            self.alive -= 1

    def next_is(self, letter: str) -> bool:
        self._letters, here = iter(rest := list(self._letters)), rest[:1]
        if here == [letter]:
            next(self._letters)
        return here == [letter]

    def run_trial(self, *_: object, **__: object) -> Kept:
        letter = next(self._letters, "p")
        self.usable = letter != "g"
        ended = msgspec.structs.replace(SOUND, ending=Ending.GONE, reason="it ended", guest=None)
        return Kept({"p": SOUND, "f": BROKEN, "g": ended}[letter], {})


@pytest.fixture
def images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ImageSet:
    (tmp_path / "runtime").mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "runtime"))
    find_qemu()
    known = find_cache() / "qemu-probes"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    # What is known of the host's QEMU: asking it anew takes longer than these tests.
    (find_cache() / known.name).symlink_to(known)
    monkeypatch.setattr(station, "read_kernel", lambda path: path)
    return make_images(tmp_path)


def serve(
    monkeypatch: pytest.MonkeyPatch, images: ImageSet, letters: str, trials: int, spec: CampaignSpec
) -> tuple[list[TrialDone], Guests]:
    guests = Guests(letters)
    monkeypatch.setattr(pool, "open_session", guests.open_session)
    done = []
    with Station() as here:
        for number in range(1, trials + 1):
            ended = here.run(Job(campaign="u", spec=spec, number=number, images={"linux-6.1": images}))
            assert isinstance(ended, TrialDone)
            done.append(ended)
            assert guests.alive == ended.guests
    assert guests.alive == 0
    return done, guests


def test_the_evidence_of_these_tests_is_what_it_is_taken_for() -> None:
    assert judge(SOUND).outcome is Outcome.PASS
    assert judge(BROKEN).outcome is Outcome.FAIL


def test_one_guest_serves_many_trials_and_is_replaced_after_its_number(
    monkeypatch: pytest.MonkeyPatch, images: ImageSet
) -> None:
    done, guests = serve(monkeypatch, images, "", 7, make_spec(PARTS[:1], trials_per_guest=3))
    assert [each.attempts[0].guest_trial for each in done] == [1, 2, 3, 1, 2, 3, 1]
    assert guests.boots == 3


@pytest.mark.parametrize(("most", "spare", "boots"), [(8, 0, 2), (1, 0, 6), (8, 2**63, 6)])
def test_guests_of_several_machines_are_kept_as_long_as_there_is_room(
    monkeypatch: pytest.MonkeyPatch, images: ImageSet, most: int, spare: int, boots: int
) -> None:
    """Two machines take turns: both are kept, or each has to go for the other."""
    monkeypatch.setattr(station, "MAX_GUESTS", most)
    monkeypatch.setattr(station, "SPARE_BYTES", spare)
    other = msgspec.structs.replace(PARTS[0], scenario=msgspec.structs.replace(PARTS[0].scenario, fsgsbase=False))
    guests = Guests("")
    monkeypatch.setattr(pool, "open_session", guests.open_session)
    with Station() as here:
        for number in range(1, 7):
            spec = make_spec((PARTS[0] if number % 2 else other,))
            assert isinstance(
                here.run(Job(campaign="u", spec=spec, number=number, images={"linux-6.1": images})), TrialDone
            )
    assert (guests.boots, guests.alive) == (boots, 0)


def test_a_failing_trial_is_tried_again_on_fresh_guests(monkeypatch: pytest.MonkeyPatch, images: ImageSet) -> None:
    done, guests = serve(monkeypatch, images, "pfpfp", 3, make_spec(PARTS[:1]))
    assert [[each.outcome.value for each in one.attempts] for one in done] == [
        ["PASS"],
        ["FAIL", "PASS", "FAIL"],
        ["PASS"],
    ]
    assert [each.guest_trial for each in done[1].attempts] == [2, 1, 1]
    assert (done[1].failed, done[1].record.outcome, done[1].reproduces) == (2, Outcome.FAIL, False)
    assert guests.boots == 4


def test_a_guest_that_failed_ended_or_lost_a_witness_serves_no_more(
    monkeypatch: pytest.MonkeyPatch, images: ImageSet
) -> None:
    done, guests = serve(monkeypatch, images, "pfgp", 4, make_spec(PARTS[:1], retries=0))
    assert [each.attempts[0].guest_trial for each in done] == [1, 2, 1, 1]
    assert guests.boots == 3


@pytest.mark.parametrize(
    ("path", "value", "spoilt"),
    [
        ("reason", "", False),
        ("ending", Ending.DEADLINE, True),
        ("observer", None, True),
        ("guest", None, True),
        ("observer.records_lost", 3, True),
        ("observer.windows_lost", 1, True),
        ("guest.dmesg", ("BUG: unable to handle page fault",), True),
    ],
)
def test_what_spoils_a_guest(path: str, value: object, spoilt: bool) -> None:
    evidence = change(SOUND, path, value)
    verdict = msgspec.structs.replace(judge(evidence), outcome=Outcome.INVALID)
    assert spoils(evidence, verdict) is spoilt


def test_evidence_is_sent_of_what_is_no_pass_and_of_one_pass_in_so_many(
    monkeypatch: pytest.MonkeyPatch, images: ImageSet
) -> None:
    spec = make_spec(PARTS[:1], retries=1, keep_passes_one_in=2)
    done, _ = serve(monkeypatch, images, "ppffpp", 5, spec)
    assert [[bool(each.archive) for each in one.attempts] for one in done] == [
        [True],
        [False],
        [True, True],
        [False],
        [True],
    ]
    kept, verdict = unpack_evidence(done[2].attempts[0].archive)
    assert (kept.evidence, verdict) == (BROKEN, judge(BROKEN))


def test_evidence_goes_to_a_shared_path_where_there_is_one(
    monkeypatch: pytest.MonkeyPatch, images: ImageSet, tmp_path: Path
) -> None:
    """Only the record comes back, with the word by which its evidence is found; that of what is not kept is none."""
    root = tmp_path / "shared" / "u"
    root.parent.mkdir()
    claim_root(root, "u", tmp_path)
    guests = Guests("ffxp")
    monkeypatch.setattr(pool, "open_session", guests.open_session)
    spec = make_spec(PARTS[:1], retries=1, keep_passes_one_in=0)
    jobs = [Job(campaign="u", spec=spec, number=n, images={"linux-6.1": images}, evidence=str(root)) for n in (1, 2, 3)]
    with Station() as here:
        failed, booted_none, passed = (here.run(job) for job in jobs)
        assert isinstance(failed, TrialDone)
        assert isinstance(booted_none, TrialDone)
        assert isinstance(passed, TrialDone)
        assert [each.archive for each in (*failed.attempts, *booted_none.attempts)] == [b"", b"", b""]
        assert passed.staged == ""
        for index in (1, 2):
            assert read_evidence(root / "incoming" / failed.staged / f"attempt-{index}") == BROKEN
        assert read_verdict(root / "incoming" / booted_none.staged / "attempt-1").outcome is Outcome.ERROR
        owner = (root / "owner.json").read_bytes()
        (root / "owner.json").unlink()
        with pytest.raises(HostError, match="cannot write evidence in"):
            here.run(jobs[1])
        (root / "owner.json").write_bytes(owner)

        def lose_images(*_: object) -> None:
            images.kernel.unlink()
            raise GuestGone("QEMU ended with status 1")

        # The trial runs again: what was written of the guest that did not boot says nothing.
        monkeypatch.setattr(pool, "open_session", lose_images)
        here._drop_all()
        assert isinstance(here.run(jobs[0]), Missing)
    assert {path.name for path in (root / "incoming").iterdir()} == {failed.staged, booted_none.staged}


@pytest.mark.parametrize("error", [GuestGone("QEMU ended with status 1"), HostError("kernel could not be read")])
def test_images_that_another_worker_was_sent_meanwhile_are_taken(
    monkeypatch: pytest.MonkeyPatch, images: ImageSet, error: Exception
) -> None:
    """The cache is cleared as a guest boots, and filled before this worker looks: nothing is missing then."""
    guests = Guests("")

    def lose_images(*_: object) -> contextlib.AbstractContextManager[Guests]:
        receive_images({images.kernel_sha256: b"kernel"})
        images.kernel.unlink()
        monkeypatch.setattr(pool, "open_session", guests.open_session)
        raise error

    monkeypatch.setattr(pool, "open_session", lose_images)
    with Station() as here:
        done = here.run(Job(campaign="u", spec=make_spec(PARTS[:1]), number=1, images={"linux-6.1": images}))
    assert isinstance(done, TrialDone)
    assert (done.booted, done.record.outcome, guests.boots) == (True, Outcome.PASS, 1)


def test_a_guest_that_does_not_boot_is_told_from_one_that_failed(
    monkeypatch: pytest.MonkeyPatch, images: ImageSet
) -> None:
    done, _ = serve(monkeypatch, images, "xpx", 2, make_spec(PARTS[:1], trials_per_guest=1))
    assert [(each.booted, each.record.outcome) for each in done] == [(False, Outcome.ERROR), (True, Outcome.PASS)]


def test_plans_of_holds_alone_are_told_from_timed_ones(monkeypatch: pytest.MonkeyPatch, images: ImageSet) -> None:
    held = msgspec.structs.replace(PARTS[0], scenario=msgspec.structs.replace(PARTS[0].scenario, phase=Phase.GATHER))
    done, _ = serve(monkeypatch, images, "", 1, make_spec((held,)))
    assert done[0].reproduces


def test_images_are_found_by_content_and_sent_once(monkeypatch: pytest.MonkeyPatch, images: ImageSet) -> None:
    assert find_images(images) == images
    with open_images({"linux-6.1": images}) as source:
        images.observer.unlink()
        images.kernel.write_bytes(b"another kernel")
        guests = Guests("")
        monkeypatch.setattr(pool, "open_session", guests.open_session)
        job = Job(campaign="u", spec=make_spec(PARTS[:1]), number=1, images={"linux-6.1": images})
        with Station() as here:
            missing = here.run(job)
            assert isinstance(missing, Missing)
            assert set(missing.digests) == {images.observer_sha256, images.kernel_sha256}
            # The observer's file is gone, and still open; the kernel's was written over, which no hash agrees with.
            receive_images({images.observer_sha256: source.read(images.observer_sha256)})
            with pytest.raises(HostError, match="came damaged"):
                receive_images({images.kernel_sha256: source.read(images.kernel_sha256)})
            receive_images({images.kernel_sha256: b"kernel"})
            assert isinstance(here.run(job), TrialDone)
    found = find_images(images)
    assert (found.vmlinux, found.initramfs) == (images.vmlinux, images.initramfs)
    assert found.kernel.read_bytes() == b"kernel"
    found.kernel.write_bytes(b"changed in the cache")
    with pytest.raises(ImagesMissing):
        find_images(images)


@pytest.mark.parametrize("error", [GuestGone("QEMU ended with status 1"), HostError("'kernel' could not be read")])
def test_a_cache_that_is_cleared_as_a_guest_boots_costs_no_trial(
    monkeypatch: pytest.MonkeyPatch, images: ImageSet, error: Exception
) -> None:
    def open_session(*_: object) -> Guests:
        images.observer.unlink(missing_ok=True)
        raise error

    monkeypatch.setattr(pool, "open_session", open_session)
    job = Job(campaign="u", spec=make_spec(PARTS[:1]), number=1, images={"linux-6.1": images})
    with Station() as here:
        missing = here.run(job)
        assert isinstance(missing, Missing)
        assert missing.digests == (images.observer_sha256,)
        receive_images({images.observer_sha256: b"observer"})
        monkeypatch.setattr(pool, "open_session", Guests("").open_session)
        assert isinstance(here.run(job), TrialDone)


def test_only_a_campaigns_own_images_are_read() -> None:
    with pytest.raises(HostError, match="none of this campaign's"):
        ImageSource({}).read("0" * 64)


def test_a_campaign_goes_on_with_another_qemu_only_where_it_is_named(tmp_path: Path, images: ImageSet) -> None:
    other = msgspec.structs.replace(images, qemu=msgspec.structs.replace(images.qemu, sha256="e" * 64))
    folder = tmp_path / "campaign"
    with open_store(folder, make_spec()) as store:
        # Of a store that an older lab began, which does not say.
        assert read_campaign_qemu(folder) == ""
        store.check_images({}, other_qemu=False)
    with open_store(tmp_path / "told", make_spec(), {"linux-6.1": images}) as store:
        assert read_campaign_qemu(tmp_path / "told") == images.qemu.sha256
        store.check_images({"linux-6.1": images}, other_qemu=False)
        with pytest.raises(UsageError, match=r"SHA-256 eeeeeeeeeeee, and the campaign in .* ran on [0-9a-f]{12}: name"):
            store.check_images({"linux-6.1": other}, other_qemu=False)
        assert read_campaign_qemu(tmp_path / "told") == images.qemu.sha256
        store.check_images({"linux-6.1": other}, other_qemu=True)
        assert read_campaign_qemu(tmp_path / "told") == "e" * 64


def test_guests_of_two_qemus_are_never_the_same(monkeypatch: pytest.MonkeyPatch, images: ImageSet) -> None:
    """A campaign may be resumed with another QEMU on workers that kept its guests."""
    guests = Guests("pp")
    monkeypatch.setattr(pool, "open_session", guests.open_session)
    other = msgspec.structs.replace(images, qemu=msgspec.structs.replace(images.qemu, sha256="e" * 64))
    monkeypatch.setattr(night_images, "match_qemu", lambda qemu: qemu)
    with Station() as here:
        for each in (images, other):
            job = Job(campaign="u", spec=make_spec(PARTS[:1]), number=1, images={"linux-6.1": each})
            assert isinstance(here.run(job), TrialDone)
    assert guests.boots == 2


def test_what_differs_in_images_or_in_what_the_lab_does_to_them_shares_no_guest(
    monkeypatch: pytest.MonkeyPatch, images: ImageSet
) -> None:
    """Two mutants of one machine: a guest of the one would be judged as the other's."""
    part = msgspec.structs.replace(PARTS[0], trials=2, images="one")
    parts = (
        part,
        msgspec.structs.replace(part, name="other-images", images="other"),
        msgspec.structs.replace(part, name="tampered", tampering=Tampering.NEVER_SENT),
    )
    spec = msgspec.structs.replace(make_spec(parts, trials=6), order=Order.TURNS)
    prepared: list[object] = []
    monkeypatch.setattr(station, "find_preparation", {Tampering.NEVER_SENT: prepared.append}.get)
    guests = Guests("")
    guests.machine = object()
    monkeypatch.setattr(pool, "open_session", guests.open_session)
    with Station() as here:
        for number in range(1, 7):
            key = choose_trial(spec, number).part.image_key
            assert isinstance(here.run(Job(campaign="u", spec=spec, number=number, images={key: images})), TrialDone)
        assert guests.boots == guests.alive == 3
    assert prepared == [guests.machine]
