# SPDX-License-Identifier: GPL-2.0-or-later
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from lab.errors import DeadlineError, HostError, ProcessError
from lab.host import proc
from lab.host.deadline import Deadline


def wait_gone(pid: int) -> bool:
    """Wait until a process is neither running nor a zombie; false when it stays."""
    give_up = Deadline.after(10)
    while not give_up.expired:
        try:
            if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE and psutil.Process(pid).ppid() == 1:
                return True  # ended; reaping it is up to process 1, which in a container may not do so
        except psutil.NoSuchProcess:
            return True
        time.sleep(0.01)
    return False


def read_pid(path: Path) -> int:
    give_up = Deadline.after(10)
    while not path.exists() or not path.read_text().strip():
        give_up.check(f"{path} to be written")
        time.sleep(0.01)
    return int(path.read_text())


def test_run_returns_both_streams() -> None:
    assert proc.run(["sh", "-c", "echo out; echo err >&2"], deadline=Deadline.after(10)) == "out\nerr\n"


def test_run_has_an_empty_input_its_folder_and_its_environment(tmp_path: Path) -> None:
    text = proc.run(
        ["sh", "-c", "cat; pwd; echo $WORD"],
        deadline=Deadline.after(10),
        cwd=tmp_path,
        env={"WORD": "x", "PATH": os.environ["PATH"]},
    )
    assert text == f"{tmp_path}\nx\n"


def test_run_appends_to_a_log(tmp_path: Path) -> None:
    log = tmp_path / "log"
    for word in ("one", "two"):
        proc.run(["echo", word], deadline=Deadline.after(10), log=log)
    assert log.read_text() == "one\ntwo\n"


def test_a_failure_tells_command_status_and_output() -> None:
    with pytest.raises(ProcessError, match="'sh' ended with status 3: last words") as caught:
        proc.run(["sh", "-c", "echo first; echo last words; exit 3"], deadline=Deadline.after(10))
    assert caught.value.status == 3
    assert caught.value.output == "first\nlast words\n"
    with pytest.raises(ProcessError) as caught:
        proc.run(["sh", "-c", "kill -9 $$"], deadline=Deadline.after(10))
    assert caught.value.status == -9


def test_a_folder_that_is_not_there_is_the_hosts_error(tmp_path: Path) -> None:
    with pytest.raises(HostError, match="'true' could not be started"):
        proc.run(["true"], deadline=Deadline.after(10), cwd=tmp_path / "nowhere")


def test_a_deadline_ends_the_program_and_its_children(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    begin = time.monotonic()
    with pytest.raises(DeadlineError, match="'sh' to end"):
        proc.run(["sh", "-c", f"sleep 600 & echo $! >{pid_file}; wait"], deadline=Deadline.after(0.5))
    assert time.monotonic() - begin < 10
    assert wait_gone(read_pid(pid_file))


def test_leaving_reaps_the_program_and_ends_its_group(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    with proc.start_process(["sh", "-c", f"sleep 600 & echo $! >{pid_file}; wait"]) as process:
        child = read_pid(pid_file)
        assert psutil.pid_exists(child)
    assert process.returncode is not None
    assert not psutil.pid_exists(process.pid)
    assert wait_gone(child)


def test_leaving_by_an_exception_reaps_it_too() -> None:
    pids = []

    def fail() -> None:
        with proc.start_process(["sleep", "600"]) as process:
            pids.append(process.pid)
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert not psutil.pid_exists(pids[0])


@pytest.mark.parametrize("obstacle", ["trap '' TERM", "kill -STOP $$"])
def test_a_program_that_ignores_the_polite_way_is_killed(tmp_path: Path, obstacle: str) -> None:
    ready = tmp_path / "ready"
    with proc.start_process(["sh", "-c", f"echo $$ >{ready}; {obstacle}; while :; do sleep 0.1; done"]) as process:
        read_pid(ready)
        begin = time.monotonic()
    assert time.monotonic() - begin < proc.TERM_GRACE_S + 5
    assert process.returncode in (-signal.SIGKILL, -signal.SIGTERM)
    assert not psutil.pid_exists(process.pid)


def test_descriptors_are_inherited_only_when_named() -> None:
    named, other = os.pipe()
    os.set_inheritable(other, True)
    try:
        listed = proc.run(["ls", "/proc/self/fd"], deadline=Deadline.after(10)).split()
        assert str(named) not in listed
        assert str(other) not in listed
        out = f"/proc/self/fd/{other}"
        with proc.start_process(["sh", "-c", f"echo through >{out}"], pass_fds=(other,)) as process:
            assert process.wait(10) == 0
        assert os.read(named, 100) == b"through\n"
    finally:
        os.close(named)
        os.close(other)


#: Starts a program from a thread that ends at once, which must not end the program, then waits to be killed.
LAB = """
import sys, threading
from lab.host import proc
started = []
def start():
    context = proc.start_process(["sleep", "600"])
    started.append((context, context.__enter__()))
thread = threading.Thread(target=start)
thread.start()
thread.join()
print(started[0][1].pid, flush=True)
sys.stdin.read()
"""


def test_programs_die_with_a_lab_that_is_killed_but_not_with_the_thread_that_asked() -> None:
    lab = subprocess.Popen([sys.executable, "-c", LAB], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert lab.stdout is not None
        pid = int(lab.stdout.readline())
        give_up = Deadline.after(10)
        while psutil.Process(pid).name() != "sleep":
            give_up.check("setpriv to have become the program")
            time.sleep(0.01)
        time.sleep(0.2)  # not to synchronise: the time in which a signal at the thread's end would arrive
        assert psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
        lab.kill()
        lab.wait(10)
        assert wait_gone(pid)
    finally:
        lab.kill()
        lab.communicate()
