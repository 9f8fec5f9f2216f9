# SPDX-License-Identifier: GPL-2.0-or-later
"""The only module that starts programs.

Each program dies with the lab, even if SIGKILL ends the lab: setpriv(1) asks the kernel for this (PR_SET_PDEATHSIG).
The kernel watches the parent *thread*. So one thread starts all programs, and this thread ends only with the lab.
"""

import contextlib
import os
import queue
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import IO

from lab.errors import DeadlineError, HostError, ProcessError
from lab.host.deadline import Deadline

#: A program gets this time to end after SIGTERM; then the lab sends SIGKILL.
TERM_GRACE_S = 2.0
#: An error quotes this much of a program's output.
OUTPUT_TAIL_CHARS = 4_000

Process = subprocess.Popen[bytes]


class _Spawner:
    """A thread that starts programs, and never ends before the lab ends."""

    def __init__(self) -> None:
        self._requests: queue.SimpleQueue[tuple[Callable[[], Process], Future[Process]]] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._pid = 0
        self._lock = threading.Lock()

    def spawn(self, start: Callable[[], Process]) -> Process:
        future: Future[Process] = Future()
        with self._lock:
            if self._thread is None or self._pid != os.getpid():
                self._requests = queue.SimpleQueue()
                self._thread = threading.Thread(target=self._serve, name="spawner", daemon=True)
                self._pid = os.getpid()
                self._thread.start()
            self._requests.put((start, future))
        return future.result()

    def _serve(self) -> None:
        while True:
            start, future = self._requests.get()
            try:
                future.set_result(start())
            except BaseException as error:
                future.set_exception(error)


_spawner = _Spawner()


def _popen(
    command: Sequence[str | os.PathLike[str]],
    *,
    cwd: Path | None,
    env: Mapping[str, str] | None,
    pass_fds: Sequence[int],
    stdout: IO[bytes] | int,
    stderr: IO[bytes] | int,
    privileges: Sequence[str] = (),
) -> Process:
    words = [os.fspath(word) for word in command]
    try:
        return _spawner.spawn(
            lambda: subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", *privileges, "--", *words],
                cwd=cwd,
                env=None if env is None else dict(env),
                pass_fds=tuple(pass_fds),
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                start_new_session=True,
            )
        )
    except OSError as error:
        raise HostError(f"'{words[0]}' could not be started: {error}") from error


@contextlib.contextmanager
def start_process(
    command: Sequence[str | os.PathLike[str]],
    *,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    pass_fds: Sequence[int] = (),
    stdout: IO[bytes] | int = subprocess.DEVNULL,
    stderr: IO[bytes] | int = subprocess.DEVNULL,
    privileges: Sequence[str] = (),
) -> Iterator[Process]:
    """Start a program in a process group of its own. On leaving, end the group and reap the program.

    :param privileges: options of setpriv(1) that limit the program's rights, such as those of lab.host.user
    :raise HostError: the program did not start
    """
    process = _popen(command, cwd=cwd, env=env, pass_fds=pass_fds, stdout=stdout, stderr=stderr, privileges=privileges)
    try:
        yield process
    finally:
        end_process(process)


def end_process(process: Process) -> None:
    """End the whole process group of a program, first with SIGTERM, and reap the program."""
    if process.poll() is None:
        _signal_group(process, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(TERM_GRACE_S)
    _signal_group(process, signal.SIGKILL)
    process.wait()


def _signal_group(process: Process, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)


def run(
    command: Sequence[str | os.PathLike[str]],
    *,
    deadline: Deadline,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    log: Path | None = None,
) -> str:
    """Run a program to its end, and return its output as text. Both streams are in one text.

    :param log: append the output to this file while the program runs, and return the output from this file
    :raise HostError: the program did not start
    :raise ProcessError: its exit status is not 0
    :raise DeadlineError: the program did not end before the deadline, and the lab ended it
    """
    words = tuple(os.fspath(word) for word in command)
    with contextlib.ExitStack() as stack:
        sink: IO[bytes] | int = subprocess.PIPE
        if log is not None:
            sink = stack.enter_context(open(log, "ab"))
        process = stack.enter_context(start_process(words, cwd=cwd, env=env, stdout=sink, stderr=subprocess.STDOUT))
        try:
            printed, _ = process.communicate(timeout=deadline.remaining_s)
        except subprocess.TimeoutExpired:
            raise DeadlineError(f"deadline reached while waiting for '{words[0]}' to end") from None
    output = (log.read_bytes() if log is not None else printed).decode(errors="backslashreplace")
    if process.returncode != 0:
        raise ProcessError(words, process.returncode, output[-OUTPUT_TAIL_CHARS:])
    return output


def read(
    command: Sequence[str | os.PathLike[str]],
    *,
    deadline: Deadline,
    env: Mapping[str, str] | None = None,
) -> bytes:
    """Run a program to its end, and return the bytes of its standard output. Its standard error appears only in errors.

    Raises the same errors as :func:`run`.
    """
    words = tuple(os.fspath(word) for word in command)
    with start_process(words, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        try:
            printed, said = process.communicate(timeout=deadline.remaining_s)
        except subprocess.TimeoutExpired:
            raise DeadlineError(f"deadline reached while waiting for '{words[0]}' to end") from None
    if process.returncode != 0:
        raise ProcessError(words, process.returncode, said.decode(errors="backslashreplace")[-OUTPUT_TAIL_CHARS:])
    return printed
