# SPDX-License-Identifier: GPL-2.0-or-later
"""A kernel tree that is kept between builds, so that a changed patch compiles only the files it touches.

A full build takes five minutes. There is one tree per base, and one per user's tree, each at a fixed path. The lab
trusts a tree only if its ``state`` names exactly the inputs of the tree. ``state`` is absent while a build works in the
tree, so the lab discards the leftovers of a killed build. The lab takes patches back from saved originals. A file that
ends with its old content keeps its time, and make looks only at the time.
"""

import contextlib
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from lab.build.cache import Progress, locked, make_folder
from lab.errors import BuildError
from lab.host.files import write_whole

#: ``--- a/path`` and ``+++ b/path`` of a patch. /dev/null stands for no file.
_TOUCHED = re.compile(r"^(?:---|\+\+\+) [^/\s]+/([^\t\n]+)", re.MULTILINE)

#: Content and time of a file; None if there is no file.
_Snapshot = tuple[bytes, int] | None


class Tree:
    """Source, objects and originals. The owner is the process that has the lock."""

    def __init__(self, folder: Path, lock: int) -> None:
        #: The lab passes this to each process that may outlive the lab and write here.
        self.lock = lock
        self.source = folder / "source"
        self.objects = folder / "objects"
        self._folder = folder
        self._originals = folder / "originals"
        #: Files that patches added. They have no original.
        self._added = folder / "added"
        self._state = folder / "state"
        #: A record for a caller that fills the source file by file. The record disappears with the tree.
        self.account = folder / "account"

    def prepare(self, state: str, unpack: Callable[[Path], None]) -> None:
        """Make the tree ready for patches: take the kept tree if it has this state, else make a new tree.

        :param unpack: fills the source folder
        """
        with contextlib.suppress(OSError):
            if self._state.read_text() == state:
                self._state.unlink()
                return
        shutil.rmtree(self._folder, ignore_errors=True)
        for path in (self.source, self.objects, self._originals):
            path.mkdir(parents=True)
        write_whole(self._added, b"")
        unpack(self.source)

    def patch(self, patches: Iterable[Path], apply: Callable[[Path], None]) -> None:
        """Take back the patches of the last build, and apply these patches. If a patch fails, take back all patches.

        :param apply: applies one patch to the source folder
        """
        patches = tuple(patches)
        old = self._list_changed()
        new = sorted({name for path in patches for name in _list_touched(path)})
        before = {name: self._look(name) for name in {*old, *new}}
        self._take_back(old)
        self._save(new)
        try:
            for path in patches:
                apply(path)
        except BuildError:
            self._take_back(new)
            self._save(())
            raise
        finally:
            self._date(before)

    def keep(self, state: str) -> None:
        """Declare the tree complete again."""
        write_whole(self._state, state.encode())

    def _look(self, name: str) -> _Snapshot:
        path = self.source / name
        with contextlib.suppress(FileNotFoundError):
            return path.read_bytes(), path.stat().st_mtime_ns
        return None

    def _date(self, before: Mapping[str, _Snapshot]) -> None:
        """Restore the old time of each file with its old content. Give each other file the present time.

        The second rule includes a file that is now an original again.
        """
        for name, was in before.items():
            now = self._look(name)
            if now is None:
                continue
            if was is not None and was[0] == now[0]:
                os.utime(self.source / name, ns=(was[1], was[1]), follow_symlinks=False)
            else:
                os.utime(self.source / name, follow_symlinks=False)

    def _list_changed(self) -> tuple[str, ...]:
        saved = (path for path in self._originals.rglob("*") if path.is_file())
        originals = (path.relative_to(self._originals).as_posix() for path in saved)
        return (*originals, *self._added.read_text().splitlines())

    def _take_back(self, names: Iterable[str]) -> None:
        for name in names:
            path, original = self.source / name, self._originals / name
            path.unlink(missing_ok=True)
            if original.exists():
                shutil.copy(original, path)

    def _save(self, names: Iterable[str]) -> None:
        shutil.rmtree(self._originals)
        self._originals.mkdir()
        added = []
        for name in names:
            path, original = self.source / name, self._originals / name
            if path.exists():
                original.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, original)
            else:
                added.append(f"{name}\n")
        write_whole(self._added, "".join(added).encode())


@contextlib.contextmanager
def open_tree(base: str, progress: Progress) -> Iterator[Tree]:
    """Yield the tree of a base, under its lock. Two builds of one base take turns."""
    folder = make_folder("kernel-trees")
    with locked(folder / f".{base}.lock", "kernel tree", progress) as lock:
        yield Tree(folder / base, lock)


def _list_touched(path: Path) -> set[str]:
    names = set(_TOUCHED.findall(path.read_text(errors="surrogateescape")))
    for name in names:
        if ".." in Path(name).parts or Path(name).is_absolute():
            raise BuildError(f"kernel: patch '{path.name}' touches '{name}', outside the source")
    return names
