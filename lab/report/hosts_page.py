# SPDX-License-Identifier: GPL-2.0-or-later
"""The page of images/host/test-hosts: the commands that ran on a fresh host, and the end of each log."""

from pathlib import Path
from typing import Final

import msgspec

from lab.errors import EvidenceError
from lab.host.files import write_whole
from lab.report.environment import make_environment

#: The first line is a :class:`Host`, each other line is a :class:`Step`.
RECORDS: Final = "hosts.jsonl"
PAGE: Final = "index.html"
#: The part of each log on the page. The whole log is beside the page.
_MAX_LOG_BYTES: Final = 64 * 1024
_MAX_RECORDS_BYTES: Final = 1 << 20


class Host(msgspec.Struct, frozen=True):
    """What was tried on which host.

    :param dirty: the checkout differed from the commit; the test ran the checkout
    """

    release: str
    commit: str
    dirty: bool
    started: str


class Step(msgspec.Struct, frozen=True):
    """One line of shell, and its result. ``name`` is the name of its log."""

    name: str
    command: str
    status: int
    seconds: int


def write_hosts_report(folder: Path) -> Path:
    """Write the page of a test-hosts folder into the folder. Return the path of the page.

    :raise EvidenceError: the folder's records are damaged
    :raise HostError: the page could not be written
    """
    try:
        with open(folder / RECORDS, "rb") as source:
            first, *rest = source.read(_MAX_RECORDS_BYTES).splitlines()
        host = msgspec.json.decode(first, type=Host)
        steps = tuple(msgspec.json.decode(line, type=Step) for line in rest)
    except (OSError, ValueError) as error:
        raise EvidenceError(f"'{folder / RECORDS}' is damaged: {error}") from error
    page = make_environment().get_template("hosts.html").render(
        host=host, steps=[(step, _read_end(folder, step)) for step in steps], green=_is_green(steps)
    )  # fmt: skip
    path = folder / PAGE
    write_whole(path, page.encode(errors="backslashreplace"))
    return path


def _is_green(steps: tuple[Step, ...]) -> bool:
    """Say whether at least one step ran, and every step that ran succeeded."""
    return bool(steps) and all(step.status == 0 for step in steps)


def _read_end(folder: Path, step: Step) -> str:
    """Return the end of a step's log. Return ``no log`` if the name is not plain or the log is not a file."""
    path = folder / f"{step.name}.log"
    if not step.name.isalnum() or path.is_symlink() or not path.is_file():
        return "no log"
    with open(path, "rb") as source:
        source.seek(max(0, path.stat().st_size - _MAX_LOG_BYTES))
        return source.read(_MAX_LOG_BYTES).decode(errors="backslashreplace")
