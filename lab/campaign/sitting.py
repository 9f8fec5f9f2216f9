# SPDX-License-Identifier: GPL-2.0-or-later
"""One sitting of a campaign, from taking its folder to leaving it with nothing of ours running."""

import contextlib
import functools
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Final

import msgspec

from lab.build.images import ImageSet
from lab.campaign.database import NAME, STOP, is_running, lock_campaign, open_writer
from lab.campaign.definition import CampaignSpec, Until
from lab.campaign.executor import Executor, InlineExecutor
from lab.campaign.facts import gather_facts
from lab.campaign.image_transfer import ImageSource, open_images
from lab.campaign.loop import Campaign, Result, Standing
from lab.campaign.over import Over
from lab.campaign.processes import ProcessExecutor
from lab.campaign.reader import group_records
from lab.campaign.shared_evidence import INCOMING, OWNER, check_root, claim_root, clear_incoming
from lab.campaign.store import CampaignStore
from lab.campaign.stored import find_root
from lab.errors import LabError, UsageError
from lab.evidence.folder import claim_output, refuse_output
from lab.host.run_dir import sweep
from lab.model.verdict import TrialRecord

#: Runs trials in the campaign's own process.
INLINE: Final = 0

#: Makes a campaign's images, by base.
Build = Callable[[CampaignSpec], Mapping[str, ImageSet]]
#: Opens what runs trials elsewhere, which may have to be sent images.
Join = Callable[[ImageSource], AbstractContextManager[Executor]]


class Where(msgspec.Struct, frozen=True, kw_only=True):
    """Where trials run.

    :param workers: processes on this host, INLINE for this one, None for as many as its CPUs have guests for
    :param scheduler: the address of another host's scheduler instead, empty for none
    :param join: opens that scheduler; the command line gives it, so that no campaign depends on what it needs
    :param evidence_dir: a path that all hosts share, to which workers write evidence, as
        :func:`lab.campaign.shared_evidence.check_evidence_dir` returns it; empty for the campaign's own folder, or,
        of one that is resumed, for where it was; the same path again is leave to make its folder there
    """

    workers: int | None = None
    scheduler: str = ""
    join: Join | None = None
    evidence_dir: str = ""

    def count(self, spec: CampaignSpec) -> int:
        """Return how many workers of this host to start."""
        if self.workers is not None:
            return self.workers
        smallest = min(part.scenario.topology.vcpus for part in spec.parts)
        return max(1, (os.cpu_count() or 1) // smallest)


class Watch(msgspec.Struct, frozen=True, kw_only=True):
    """Who looks on while a campaign runs.

    :param asked_to_stop: whether it is to end after its running trials
    :param tell: told how far it is, twice a second
    :param say: told, in a few words, what is being waited for
    :param ended: told of each trial that has been stored
    """

    asked_to_stop: Callable[[], bool] = lambda: False
    tell: Callable[[Standing], None] = lambda _: None
    say: Callable[[str], None] = lambda _: None
    ended: Callable[[TrialRecord], None] = lambda _: None


def claim_campaign_output(path: Path) -> Path:
    """Return the folder that a user wants a new campaign in: new or empty.

    :raise UsageError: it holds something
    :raise HostError: it cannot be made or written
    """

    def check(folder: Path) -> None:
        if (folder / NAME).exists():
            running = "runs in" if is_running(folder) else "is kept in"
            raise UsageError(
                f"a campaign {running} '{folder}': name another folder, or go on with that one by 'lab campaign resume'"
            )
        raise refuse_output(folder)

    return claim_output(path, check)


def start_campaign(
    folder: Path,
    spec: CampaignSpec,
    build: Build,
    where: Where,
    watch: Watch,
    *,
    clear: Callable[[Path], None] = lambda _: None,
) -> Result:
    """Begin a campaign in an empty folder, and run it.

    The campaign is stored before its images are built, so that one that is killed meanwhile can be resumed.

    :param build: makes its images
    :param clear: makes room in the folder once nobody else can begin a campaign there
    :raise UsageError: another campaign runs there, or where it is to run is not fit
    :raise LabError: its images cannot be made; the folder is left as it was
    :raise HostError: the host failed; what has been stored stays
    """
    with lock_campaign(folder):
        clear(folder)
        with contextlib.ExitStack() as undo, open_writer(folder) as connection:
            undo.push(functools.partial(_forget_unbuilt, folder))
            store = CampaignStore(connection, folder)
            store.create(spec, {}, where.evidence_dir)
            uid, spec = store.find()
            if store.evidence != folder:
                undo.push(functools.partial(_forget_unbuilt, store.evidence))
                claim_root(store.evidence, uid, folder)
            images = build(spec)
            undo.pop_all()
            store.check_images(images, other_qemu=False)
            return _sit(store, uid, spec, images, where, watch)


def _forget_unbuilt(folder: Path, kind: type[BaseException] | None, *_: object) -> None:
    """Leave nothing in the folder of a campaign whose images cannot be made; an interrupt leaves it to be resumed."""
    if kind is None or not issubclass(kind, LabError):
        return
    for path in (*folder.glob(f"{NAME}*"), folder / OWNER):
        path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        (folder / INCOMING).rmdir()


def resume_campaign(
    folder: Path,
    limits: Callable[[CampaignSpec], CampaignSpec],
    build: Build,
    where: Where,
    watch: Watch,
    *,
    other_qemu: bool = False,
) -> Result:
    """Go on with a campaign: run those of its trials that have no record.

    :param limits: what is to be changed of it first
    :param build: makes its images
    :param other_qemu: the user asks for the QEMU that these are booted on, also if it is another one than before
    :raise UsageError: there is none, or it runs already, or its kernel is another one now, or its QEMU unasked
    :raise HostError: the host failed; what has been stored stays
    """
    if not (folder / NAME).is_file():
        raise UsageError(f"'{folder}' holds no campaign: {NAME} is missing")
    with lock_campaign(folder), open_writer(folder) as connection:
        store = CampaignStore(connection, folder)
        uid, before = store.find()
        if where.evidence_dir and find_root(where.evidence_dir, uid, folder) != store.evidence:
            raise UsageError(
                f"--evidence-dir is '{where.evidence_dir}', and the campaign's evidence is in '{store.evidence}':"
                " leave the option out"
            )
        if store.evidence != folder:
            _take_root(store, uid, named=bool(where.evidence_dir))
        spec = limits(before)
        images = build(spec)
        store.check_images(images, other_qemu=other_qemu)
        if spec != before:
            store.change_spec(spec)
        return _sit(store, uid, spec, images, where, watch)


def _take_root(store: CampaignStore, uid: str, *, named: bool) -> None:
    """Go on with evidence on a shared path, which a store may name that came from anywhere.

    :param named: the user named the path, too
    :raise UsageError: it is not the campaign's, or evidence that the store names cannot be there
    :raise HostError: it cannot be read or written
    """
    if not named:
        check_root(store.evidence, uid, store.folder)
        return
    if not store.evidence.is_dir() and store.list_evidence():
        raise UsageError(
            f"the campaign keeps evidence in '{store.evidence}', which does not exist here: mount that path, or make"
            " the folder if its evidence is lost"
        )
    claim_root(store.evidence, uid, store.folder)


def _sit(
    store: CampaignStore,
    uid: str,
    spec: CampaignSpec,
    images: Mapping[str, ImageSet],
    where: Where,
    watch: Watch,
) -> Result:
    (store.folder / STOP).unlink(missing_ok=True)
    campaign = Campaign(
        uid=uid,
        spec=spec,
        store=store,
        images=images,
        over=_find_over(store.folder, spec),
        asked_to_stop=watch.asked_to_stop,
        tell=watch.tell,
        ended=watch.ended,
    )
    qemus = ", ".join({each.qemu.identity for each in images.values()})
    store.begin_sitting(where.count(spec), where.scheduler, qemus, gather_facts(images))
    try:
        with _open_executor(campaign, spec, images, where, watch) as executor:
            result = campaign.run(executor)
    except BaseException as error:
        why = str(error) if isinstance(error, LabError) else "it was ended at once"
        # A full disk takes no note either; the campaign is known to have ended by its lock.
        with contextlib.suppress(LabError):
            store.end_sitting(finished=False, why=why, ran_s=campaign.ran_s)
        raise
    finally:
        (store.folder / STOP).unlink(missing_ok=True)
        if store.evidence != store.folder:
            clear_incoming(store.evidence)
        sweep()
    store.end_sitting(finished=result.finished, why=result.why, ran_s=campaign.ran_s)
    return result


def _find_over(folder: Path, spec: CampaignSpec) -> Over:
    """Return what the stored trials have shown of the campaign's scenarios."""
    over = Over(spec)
    if any(part.until is not Until.ALL for part in spec.parts):
        for name, records in group_records(folder, (part.name for part in spec.parts)).items():
            for record in records:
                over.note(name, record)
    return over


@contextlib.contextmanager
def _open_executor(
    campaign: Campaign, spec: CampaignSpec, images: Mapping[str, ImageSet], where: Where, watch: Watch
) -> Iterator[Executor]:
    with contextlib.ExitStack() as stack:
        if where.workers == INLINE and where.join is None:
            yield stack.enter_context(InlineExecutor(watch.say, campaign.is_ending))
            return
        source = stack.enter_context(open_images(images))
        if where.join is not None:
            watch.say(f"joining scheduler {where.scheduler}")
            yield stack.enter_context(where.join(source))
            return
        count = where.count(spec)
        watch.say(f"starting {count} workers")
        yield stack.enter_context(ProcessExecutor(count, source))
