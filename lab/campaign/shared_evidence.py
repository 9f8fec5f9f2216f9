# SPDX-License-Identifier: GPL-2.0-or-later
"""Evidence on a path that all hosts share: a worker writes it there, and only the record comes back.

Below the path that the user named, each campaign has a folder of its uid::

    owner.json      whose it is; a worker that reads another one, or none, is not on the same share, and a lead that
                    was not told the path by its user touches nothing without it
    incoming/WORD   what a worker writes; it has no other name until the campaign takes it
    trials/...      what the campaign took, by names of its own, as in its own folder without such a path

So whatever a worker that died left half is in ``incoming``, never taken for evidence, and removed by the sitting's end
or the next one. Words are drawn, by the lab.
"""

import contextlib
import os
import re
import secrets
import shlex
import shutil
import socket
from pathlib import Path
from types import TracebackType
from typing import Final

import msgspec

from lab.errors import EvidenceError, HostError, UsageError
from lab.evidence.folder import FOLDER_MODE, write_evidence, write_verdict
from lab.host.files import write_whole
from lab.host.paths import is_utf8, show_bytes
from lab.model.verdict import Verdict
from lab.trial.session import Kept

INCOMING: Final = "incoming"
OWNER: Final = "owner.json"
MAX_OWNER_BYTES: Final = 64 * 1024
_WORD_BYTES: Final = 16
_WORD: Final = re.compile(r"[0-9a-f]{32}", re.ASCII)


class Owner(msgspec.Struct, frozen=True, kw_only=True):
    """Whose evidence a folder of a shared path is.

    :param host: that leads the campaign
    :param folder: the campaign's own, on that host
    """

    uid: str
    host: str
    folder: str


def check_evidence_dir(path: Path) -> str:
    """Return the path that a user wants evidence on, absolute: links in it stay, as another host may have others.

    :raise UsageError: it is no folder, or not UTF-8, or cannot be written here
    """
    absolute = Path(os.path.abspath(path))  # noqa: PTH100  resolve() follows links
    if not is_utf8(str(absolute)):
        raise UsageError(f"--evidence-dir '{show_bytes(str(absolute))}' is not UTF-8: name one that is")
    if not absolute.is_dir():
        raise UsageError(f"--evidence-dir '{absolute}' is not a folder: one is needed that all hosts share")
    if not os.access(absolute, os.W_OK | os.X_OK):
        raise UsageError(f"--evidence-dir '{absolute}' cannot be written on this host")
    return str(absolute)


def claim_root(root: Path, uid: str, folder: Path) -> None:
    """Make a campaign's folder on the path that its user named, or find it, for the one that leads the campaign.

    :raise UsageError: it is that of another copy of the campaign
    :raise HostError: it cannot be made or written
    """
    owner = _make_owner(uid, folder)
    try:
        # Not its parents: what is not mounted is not made up for.
        root.mkdir(exist_ok=True)
        found = _find_owner(root)
        if found is not None and found != owner:
            raise _refuse_owner(root, found)
        (root / INCOMING).mkdir(exist_ok=True)
    except OSError as error:
        raise _refuse(root, error) from error
    if found is None:
        write_whole(root / OWNER, msgspec.json.encode(owner))


def check_root(root: Path, uid: str, folder: Path) -> None:
    """Refuse to go on with evidence in a place that a store alone says is the campaign's: nothing is made there.

    :raise UsageError: it is not there, or not this campaign's
    :raise HostError: it cannot be read or written
    """
    try:
        found = _find_owner(root)
        if found is None:
            raise UsageError(
                f"'{root / OWNER}' is missing, and the campaign's evidence is in '{root}': mount that path; if it is"
                f" the place and yours, give --evidence-dir {shlex.quote(str(root.parent))}"
            )
        if found != _make_owner(uid, folder):
            raise _refuse_owner(root, found)
        (root / INCOMING).mkdir(exist_ok=True)
    except OSError as error:
        raise _refuse(root, error) from error


def clear_incoming(root: Path) -> None:
    """Remove what workers left that the campaign has not taken; the caller leads the campaign."""
    with contextlib.suppress(OSError):
        for entry in (root / INCOMING).iterdir():
            shutil.rmtree(entry, ignore_errors=True)


class Staging:
    """A worker's evidence of one trial, on its way to the campaign. A context manager: an error takes it away again.

    :param root: of the campaign on the shared path
    :param uid: the campaign's
    :raise HostError: on entry, if this host cannot use the path
    """

    def __init__(self, root: Path, uid: str) -> None:
        self._root = root
        self._uid = uid
        self._word = secrets.token_hex(_WORD_BYTES)
        self._written = False

    def __enter__(self) -> "Staging":
        try:
            owner = _read_owner(self._root)
        except (OSError, msgspec.MsgspecError) as error:
            raise _refuse(self._root, error) from error
        if owner.uid != self._uid or not os.access(self._root / INCOMING, os.W_OK | os.X_OK):
            raise _refuse(self._root, None)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self.drop()

    def drop(self) -> None:
        """Take away what was written."""
        if self._written:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._written = False

    @property
    def word(self) -> str:
        """By which the campaign finds what was written, empty if nothing was."""
        return self._word if self._written else ""

    def write(self, index: int, kept: Kept, verdict: Verdict) -> None:
        """Write one attempt's evidence.

        :raise HostError: no space, or not writable
        """
        attempt = self._folder / f"attempt-{index}"
        self._written = True
        try:
            self._folder.mkdir(mode=FOLDER_MODE, exist_ok=True)
            write_evidence(attempt, kept.evidence, kept.raw)
            write_verdict(attempt, verdict)
        except OSError as error:
            raise _refuse(self._root, error) from error
        except HostError as error:
            raise HostError(f"host {socket.gethostname()}: {error}") from error

    @property
    def _folder(self) -> Path:
        return self._root / INCOMING / self._word


def take_staged(root: Path, word: str, target: Path, host: str) -> None:
    """Give what a worker wrote its name; of what has that name already nothing is left.

    :param host: that wrote it
    :raise EvidenceError: it is no word of ours
    :raise HostError: this host does not see it, or may not move it
    """
    staged = _find_staged(root, word)
    try:
        if not staged.is_dir():
            raise HostError(
                f"host {host} wrote evidence to '{staged}', and this host does not see it: --evidence-dir has to be a"
                " path that all hosts share"
            )
        target.parent.mkdir(exist_ok=True)
        shutil.rmtree(target, ignore_errors=True)
        staged.rename(target)
    except OSError as error:
        raise HostError(
            f"evidence '{staged}' of host {host} could not be moved to '{target}': {error.strerror or error}"
        ) from error


def drop_staged(root: Path, word: str) -> None:
    """Remove what a worker wrote.

    :raise EvidenceError: it is no word of ours
    """
    shutil.rmtree(_find_staged(root, word), ignore_errors=True)


def _find_staged(root: Path, word: str) -> Path:
    if _WORD.fullmatch(word) is None:
        raise EvidenceError(f"evidence is said to have come back as {word[:80]!r}, which is no name of ours")
    return root / INCOMING / word


def _make_owner(uid: str, folder: Path) -> Owner:
    return Owner(uid=uid, host=socket.gethostname(), folder=str(folder.resolve()))


def _find_owner(root: Path) -> Owner | None:
    """Return whose a folder is, None where nothing says so.

    :raise UsageError: what says so is none of ours
    :raise OSError: it cannot be read
    """
    try:
        return _read_owner(root)
    except FileNotFoundError:
        return None
    except msgspec.MsgspecError as error:
        raise UsageError(f"'{root / OWNER}' is not what this lab writes: name another --evidence-dir") from error


def _refuse_owner(root: Path, found: Owner) -> UsageError:
    return UsageError(
        f"evidence in '{root}' belongs to the campaign in '{found.folder}' of host {found.host}; if that one was moved"
        f" here, and no copy of it is run any more, remove '{root / OWNER}' and give --evidence-dir"
        f" {shlex.quote(str(root.parent))}"
    )


def _read_owner(root: Path) -> Owner:
    with open(root / OWNER, "rb") as source:
        return msgspec.json.decode(source.read(MAX_OWNER_BYTES), type=Owner)


def _refuse(root: Path, error: Exception | None) -> HostError:
    why = "it is not the campaign's, or may not be written"
    if isinstance(error, OSError):
        why = error.strerror or str(error)
    return HostError(
        f"host {socket.gethostname()} cannot write evidence in '{root}': {why}; --evidence-dir has to be a path that"
        " all hosts share"
    )
