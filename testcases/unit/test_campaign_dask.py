# SPDX-License-Identifier: GPL-2.0-or-later
"""What a campaign makes of its workers' answers, without a scheduler: trials, errors, and images that a host lacks."""

from collections.abc import Callable
from typing import Any, cast

import pytest
from distributed import Client
from night_samples import PARTS, make_done, make_spec

from lab.campaign.executor import Ended
from lab.campaign.image_transfer import ImageSource, receive_images
from lab.campaign.job import Job, Missing, Unstarted
from lab.cluster import dask_pool
from lab.cluster.dask_pool import MAX_SENDS, DaskExecutor
from lab.cluster.dask_worker import run_job
from lab.errors import HostError

ONE, TWO = "tcp://one:1", "tcp://two:1"


class FakeFuture:
    def __init__(self, key: object) -> None:
        self.key = key
        self.status = "pending"
        self.value: object = None
        self._tell: list[Callable[[FakeFuture], None]] = []

    def add_done_callback(self, tell: Callable[["FakeFuture"], None]) -> None:
        self._tell.append(tell)

    def end(self, value: object, status: str = "finished") -> None:
        self.status, self.value = status, value
        for tell in self._tell:
            tell(self)

    def result(self) -> object:
        return self.value

    def exception(self) -> object:
        return self.value


class FakeClient:
    """Has what a test ends be done."""

    status = "running"

    def __init__(self) -> None:
        self.workers = [ONE, TWO]
        self.trials: list[FakeFuture] = []
        self.sends: list[tuple[FakeFuture, str]] = []

    def submit(
        self, what: object, *words: Any, key: object = None, workers: tuple[str, ...] = (), **_: object
    ) -> FakeFuture:
        future = FakeFuture(key or object())
        if what is run_job:
            self.trials.append(future)
        elif what is receive_images:
            assert words[0] == {"digest": b"file"}
            self.sends.append((future, workers[0]))
        return future

    def scheduler_info(self) -> object:
        return {"workers": {each: {"resources": {"vcpus": 2}} for each in self.workers}}

    def cancel(self, futures: list[FakeFuture]) -> None:
        for future in futures:
            future.end(None, "cancelled")


class OneFile(ImageSource):
    def read(self, digest: str) -> bytes:
        assert digest == "digest"
        return b"file"


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> FakeClient:
    monkeypatch.setattr(dask_pool, "FRESH_S", 0.0)
    return FakeClient()


@pytest.fixture
def executor(client: FakeClient) -> DaskExecutor:
    executor = DaskExecutor(cast(Client, client), OneFile({}))
    for number in (1, 2, 3):
        executor.submit(Job(campaign="u", spec=make_spec(PARTS[:1]), number=number, images={}))
    return executor


def lack(number: int, worker: str, cache: str) -> Missing:
    return Missing(number=number, worker=worker, cache=cache, digests=("digest",))


def collect(executor: DaskExecutor) -> list[Ended]:
    return executor.wait(0.01)


def test_two_workers_of_a_host_are_sent_its_images_once(client: FakeClient, executor: DaskExecutor) -> None:
    client.trials[0].end(lack(1, ONE, "one"))
    client.trials[1].end(lack(2, ONE.replace("1", "2"), "one"))
    client.trials[2].end(lack(3, TWO, "two"))
    assert collect(executor) == []
    assert [worker for _, worker in client.sends] == [ONE, TWO]
    assert len(client.trials) == 3
    client.sends[0][0].end(None)
    collect(executor)
    assert len(client.trials) == 5
    # A look from before they came is no reason to send them again; the next one is: the cache was cleared.
    client.trials[3].end(lack(1, ONE, "one"))
    collect(executor)
    assert (len(client.trials), len(client.sends)) == (6, 2)
    client.trials[5].end(lack(1, ONE, "one"))
    collect(executor)
    assert (len(client.trials), len(client.sends)) == (6, 3)


def test_a_host_that_is_gone_while_it_is_sent_images_costs_nothing(client: FakeClient, executor: DaskExecutor) -> None:
    client.trials[0].end(lack(1, ONE, "one"))
    collect(executor)
    assert len(client.trials) == 3
    client.workers.remove(ONE)
    collect(executor)
    assert (len(client.trials), client.sends[0][0].status) == (4, "cancelled")
    client.trials[3].end(make_done(1))
    assert [ended.number for ended in collect(executor)] == [1]
    assert len(client.sends) == 1


def test_a_host_that_cannot_keep_images_says_so(client: FakeClient, executor: DaskExecutor) -> None:
    client.trials[0].end(lack(1, ONE, "one"))
    collect(executor)
    client.sends[0][0].end(HostError("'/cache/x' could not be written: No space left on device"), "error")
    with pytest.raises(HostError, match="No space left"):
        collect(executor)


def test_a_host_that_never_takes_images_ends_the_campaign(
    client: FakeClient, executor: DaskExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dask_pool, "SEND_S", 0.0)
    client.trials[0].end(lack(1, ONE, "one"))
    collect(executor)
    with pytest.raises(HostError, match="images could not be sent to one by worker tcp://one:1 in 0 s"):
        collect(executor)


def test_an_error_takes_no_trial_with_it_that_has_ended(client: FakeClient, executor: DaskExecutor) -> None:
    client.trials[0].end(make_done(1))
    client.trials[1].end(HostError("host two cannot write evidence"), "error")
    client.trials[2].end(make_done(3))
    assert [ended.number for ended in collect(executor)] == [1, 3]
    # Nothing begins meanwhile, and the error comes, as often as somebody asks.
    assert executor.capacity == 0
    with pytest.raises(HostError, match="host two"):
        executor.submit(Job(campaign="u", spec=make_spec(PARTS[:1]), number=4, images={}))
    assert len(client.trials) == 3
    for _ in range(2):
        with pytest.raises(HostError, match="host two"):
            collect(executor)


def test_trials_that_end_while_others_are_stored_come_before_the_error(
    client: FakeClient, executor: DaskExecutor
) -> None:
    client.trials[0].end(make_done(1))
    client.trials[1].end(HostError("host two cannot write evidence"), "error")
    assert [ended.number for ended in collect(executor)] == [1]
    client.trials[2].end(make_done(3))
    assert [ended.number for ended in collect(executor)] == [3]
    with pytest.raises(HostError, match="host two"):
        collect(executor)


def test_images_that_do_not_go_out_take_no_trial_with_them(
    client: FakeClient, executor: DaskExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dask_pool, "SEND_S", 0.0)
    client.trials[0].end(lack(1, ONE, "one"))
    collect(executor)
    client.trials[1].end(make_done(2))
    assert [ended.number for ended in collect(executor)] == [2]
    with pytest.raises(HostError, match="images could not be sent"):
        collect(executor)


def fail_to_send(client: FakeClient, executor: DaskExecutor, *, gone: bool = False) -> None:
    """Have a host lack images, and the next sending of them fail."""
    sent = len(client.sends)
    client.trials[-1].end(lack(3, ONE, "one"))
    collect(executor)
    assert len(client.sends) == sent + 1
    if gone:
        client.workers.remove(ONE)
    else:
        client.sends[-1][0].end(MemoryError(), "error")


@pytest.mark.parametrize(("gone", "why"), [(False, "MemoryError"), (True, "it was gone")])
def test_a_host_whose_workers_die_of_images_ends_the_campaign(
    client: FakeClient, executor: DaskExecutor, gone: bool, why: str
) -> None:
    for _ in range(MAX_SENDS - 1):
        fail_to_send(client, executor, gone=gone)
        assert collect(executor) == []
        client.workers = [ONE, TWO]
    fail_to_send(client, executor, gone=gone)
    with pytest.raises(HostError) as told:
        collect(executor)
    assert str(told.value) == (
        f"images could not be sent to one 3 times in a row, the last time by worker tcp://one:1: {why}"
    )


def test_images_that_came_after_all_make_up_for_those_that_did_not(client: FakeClient, executor: DaskExecutor) -> None:
    for _ in range(2):
        for _ in range(MAX_SENDS - 1):
            fail_to_send(client, executor)
            assert collect(executor) == []
        client.trials[-1].end(lack(3, ONE, "one"))
        collect(executor)
        client.sends[-1][0].end(None)
        assert collect(executor) == []
        # Sent, looked for too early, and gone again.
        client.trials[-1].end(lack(3, ONE, "one"))
        assert collect(executor) == []
    client.trials[-1].end(make_done(3))
    assert [ended.number for ended in collect(executor)] == [3]


def test_what_waits_for_images_is_withdrawn(client: FakeClient, executor: DaskExecutor) -> None:
    client.trials[0].end(lack(1, ONE, "one"))
    client.trials[1].end(lack(2, ONE, "one"))
    assert collect(executor) == []
    executor.withdraw()
    assert collect(executor) == [Unstarted(number=1), Unstarted(number=2)]
    # The third still runs: that the images do not arrive is no reason to lose it.
    client.sends[0][0].end(HostError("No space left on device"), "error")
    assert collect(executor) == []
    client.trials[2].end(make_done(3))
    assert [ended.number for ended in collect(executor)] == [3]
    # A campaign that goes on after all sends them again.
    executor.submit(Job(campaign="u", spec=make_spec(PARTS[:1]), number=1, images={}))
    client.trials[-1].end(lack(1, ONE, "one"))
    collect(executor)
    client.sends[1][0].end(None)
    collect(executor)
    client.trials[-1].end(make_done(1))
    assert [ended.number for ended in collect(executor)] == [1]
