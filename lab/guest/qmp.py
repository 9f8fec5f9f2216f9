# SPDX-License-Identifier: GPL-2.0-or-later
"""QEMU's monitor, for callers that are not asynchronous."""

import asyncio
import contextlib
import socket
import threading
from collections.abc import Coroutine, Mapping
from typing import Any, TypeVar, cast

import qemu.qmp
from qemu.qmp import EventListener, QMPClient

from lab.errors import DeadlineError, GuestError, GuestGone
from lab.guest.ending import EndLatch
from lab.guest.lines import EXIT_NEWS_S
from lab.host.deadline import Deadline
from lab.model.evidence import Ending

#: Limit of an orderly shutdown of the channel. A stopped QEMU never reads another byte.
CLOSE_S = 1.0
#: Time beyond the deadline for the loop's own thread to report the timeout. Only a defect of this module takes longer.
BACKSTOP_S = 2.0

_Result = TypeVar("_Result")

#: These events end all waits.
_ENDINGS = {"SHUTDOWN": Ending.GONE, "RESET": Ending.GONE, "GUEST_PANICKED": Ending.PANIC}

#: An event's reason has this prefix if the guest did not cause the event, such as ``host-signal``.
_HOSTS_DOING = "host-"


class QmpChannel:
    """A QMP session over one end of a socket pair. A thread of its own runs the session's event loop.

    Leaving the context ends session, loop and thread in all cases, even if QEMU is dead or stopped.
    """

    def __init__(self, end: socket.socket, ending: EndLatch) -> None:
        self._end = end
        self._ending = ending
        self._loop = asyncio.new_event_loop()
        self._gone = self._loop.create_future()
        self._client = QMPClient("guest")
        self._thread = threading.Thread(target=self._run, name="qmp", daemon=True)
        self._watcher: asyncio.Task[None] | None = None

    def __enter__(self) -> "QmpChannel":
        self._stack = contextlib.ExitStack()
        self._thread.start()
        self._stack.callback(self._close)
        self._stack.enter_context(self._ending.calling(self._wake))
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def qemu_version(self) -> str:
        """QEMU's version with the packager's version, such as ``7.2.22 (Debian 1:7.2+dfsg-7)``."""
        greeting = self._client.greeting
        if greeting is None:
            return ""
        version = cast(dict[str, Any], greeting.QMP.version)
        numbers = version["qemu"]
        package = str(version.get("package", ""))
        return f"{numbers['major']}.{numbers['minor']}.{numbers['micro']}" + (f" ({package})" if package else "")

    def connect(self, deadline: Deadline) -> None:
        """Read QEMU's greeting, and begin to watch its events.

        :raise GuestGone: QEMU ended
        :raise DeadlineError: QEMU sent no greeting
        """
        self._await(self._connect(), deadline, "QEMU's greeting")

    def execute(self, command: str, arguments: Mapping[str, object] | None = None, *, deadline: Deadline) -> object:
        """Run a command and return its result.

        :raise GuestError: QEMU refused the command
        :raise GuestGone: the guest ended
        :raise DeadlineError: no reply came before the deadline; the channel drops a late reply
        """
        return self._await(self._client.execute(command, arguments), deadline, f"QMP '{command}'")

    def hand(self, name: str, descriptor: int, *, deadline: Deadline) -> None:
        """Give QEMU a descriptor under a name. The caller's own descriptor stays open.

        :raise GuestError: as :meth:`execute`
        """
        self._await(self._hand(name, descriptor), deadline, "QMP 'getfd'")

    def _await(self, work: Coroutine[Any, Any, _Result], deadline: Deadline, what: str) -> _Result:
        """Run work in the loop, and wait for its result, for the guest's end or for the deadline."""
        future = asyncio.run_coroutine_threadsafe(self._bound(work, deadline, what), self._loop)
        try:
            return future.result(deadline.remaining_s + BACKSTOP_S)
        except TimeoutError:
            future.cancel()
            raise DeadlineError(f"deadline reached while waiting for {what}: the QMP thread is stuck") from None
        except qemu.qmp.ExecuteError as error:
            raise GuestError(f"QEMU refused {what}: {error}") from error
        except (qemu.qmp.QMPError, EOFError, OSError) as error:
            self._ending.wait(deadline.within(EXIT_NEWS_S))
            self._ending.check(what)
            raise GuestGone(f"the QMP channel broke while waiting for {what}: {error}") from error

    async def _bound(self, work: Coroutine[Any, Any, _Result], deadline: Deadline, what: str) -> _Result:
        task = asyncio.ensure_future(work)
        try:
            await asyncio.wait({task, self._gone}, timeout=deadline.remaining_s, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return task.result()
            self._ending.check(what)
            raise DeadlineError(f"deadline reached while waiting for {what}")
        finally:
            task.cancel()
            with contextlib.suppress(BaseException):
                await task

    async def _hand(self, name: str, descriptor: int) -> None:
        self._client.send_fd_scm(descriptor)
        await self._client.execute("getfd", {"fdname": name})

    async def _connect(self) -> None:
        # Register the listener before the session exists, so that the listener misses no event.
        listener = EventListener(names=_ENDINGS)
        self._client.register_listener(listener)
        self._watcher = asyncio.ensure_future(self._watch(listener))
        await self._client.connect(self._end)

    async def _watch(self, listener: EventListener) -> None:
        async for event in listener:
            name, data = str(event["event"]), event.get("data", "")
            reason = data.get("reason", "") if isinstance(data, dict) else ""
            kind = Ending.LAB if str(reason).startswith(_HOSTS_DOING) else _ENDINGS[name]
            self._ending.report(kind, f"QEMU reported {name} {data}".rstrip())

    def _wake(self) -> None:
        def tell() -> None:
            if not self._gone.done():
                self._gone.set_result(None)

        with contextlib.suppress(RuntimeError):  # The loop is closed, so no thread waits.
            self._loop.call_soon_threadsafe(tell)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_forever()
        finally:
            self._loop.close()

    def _close(self) -> None:
        future = asyncio.run_coroutine_threadsafe(self._disconnect(), self._loop)
        # Whoever used the session has already received the error that broke it.
        with contextlib.suppress(Exception):
            future.result(CLOSE_S + BACKSTOP_S)
        with contextlib.suppress(OSError):
            self._end.shutdown(socket.SHUT_RDWR)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(BACKSTOP_S)
        self._end.close()

    async def _disconnect(self) -> None:
        with contextlib.suppress(Exception):
            await asyncio.wait_for(self._client.disconnect(), CLOSE_S)
        leftovers = asyncio.all_tasks() - {asyncio.current_task()}
        for task in leftovers:
            task.cancel()
        if leftovers:
            await asyncio.wait(leftovers, timeout=CLOSE_S)
