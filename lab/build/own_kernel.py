# SPDX-License-Identifier: GPL-2.0-or-later
"""A kernel built from the user's own tree. The lab does not change this tree.

The lab copies the files to a tree in the cache and keeps this tree between builds. So a later build copies and compiles
only the changed files. The entry's ``origin.json`` records the inputs of the build.
"""

from pathlib import Path
from typing import Final

import msgspec

from lab.build.cache import Progress, cached, find_log, make_key
from lab.build.git_tree import GitTree, read_commit
from lab.build.kconfig import parse_config, read_whole_config
from lab.build.kernel import (
    ANY_CONFIG,
    DISTRIBUTION_CONFIG,
    Build,
    Kernel,
    describe_steps,
    key_config,
    read_entry,
    read_series,
    require_space,
)
from lab.build.own_tree import PlainTree, SourceArchive, read_own_tree, unpack_source
from lab.build.snapshot import Snapshot
from lab.build.tree import Tree, open_tree
from lab.errors import HostError, UsageError
from lab.host.paths import is_utf8

ORIGIN: Final = "origin.json"
#: Names of settings, one per line.
LEFT_OUT: Final = "left-out"
#: Number of digits of the hash of the tree's path, in the name of its copy.
_PATH_DIGITS: Final = 16


class Origin(msgspec.Struct, frozen=True, kw_only=True):
    """The inputs of a kernel.

    :param commit: empty for a source of which git has none
    :param dirty: the tree differed from the commit
    :param source_sha256: over all files of the tree, with their names; of an archive, its own
    :param patches: names of the patches applied on top
    """

    commit: str
    dirty: bool
    source_sha256: str
    patches: tuple[str, ...]


class OwnKernel(msgspec.Struct, frozen=True):
    """A kernel in the cache, and the inputs of its build.

    :param left_out: settings that the lab asks for and that the tree does not declare
    """

    kernel: Kernel
    origin: Origin
    left_out: tuple[str, ...] = ()


def build_own_kernel(
    tree: Path, patches: Path | None, fragment: Path | None, progress: Progress, base: Path | None = None
) -> OwnKernel:
    """Build a user's tree, or find its kernel in the cache.

    :param tree: a source of Linux: git tree, plain folder, tarball or Debian source package
    :param patches: a folder with patches to apply on top, in the order of its ``series``; without ``series``, by name
    :param fragment: of configuration; overrides the settings that the lab needs
    :param base: a whole configuration, such as a distribution's, in place of tinyconfig; its modules are left out
    :raise UsageError: a tree, folder or fragment is not valid
    :raise BuildError: a patch, the configuration or the compiler failed; the text names it and the log
    :raise HostError: a package is missing, or the disk is full
    """
    series = () if patches is None else find_patches(patches)
    needed = ANY_CONFIG if base is None else DISTRIBUTION_CONFIG
    fragments = (needed,) if fragment is None else (needed, _check_fragment(fragment))
    # Read once: what the key says is what is built, whoever writes to the file meanwhile.
    settings = None if base is None else read_whole_config(base)
    looked = read_own_tree(tree)
    root = looked.path if isinstance(looked, SourceArchive) else looked.root
    # Objects of a whole configuration are of no use to the lab's own, and the other way round.
    name = make_key(str(root), *key_config(settings))
    steps = describe_steps()
    with open_tree(f"tree-{name[:_PATH_DIGITS]}", progress) as kept:
        source = _Source(looked, kept, steps, progress)
        origin = Origin(
            commit=looked.commit if isinstance(looked, GitTree) else "",
            dirty=isinstance(looked, GitTree) and looked.dirty,
            source_sha256=source.sha256,
            patches=tuple(path.name for path in series),
        )
        contents = [path.read_bytes() for path in (*series, *fragments)]
        key = make_key(*steps, msgspec.json.encode(origin), *contents, *key_config(settings))
        log = find_log("kernel", key)

        def build(target: Path) -> None:
            work = Build(kept, series, fragments, target, log, progress, base=settings)
            work.run(source.state, source.fill)
            (target / ORIGIN).write_bytes(msgspec.json.encode(origin))
            (target / LEFT_OUT).write_text("".join(f"{name}\n" for name in work.left_out))

        built = read_entry(cached("kernel", key, build, progress))
        return OwnKernel(built, origin, _read_left_out(built.folder))


def _read_left_out(folder: Path) -> tuple[str, ...]:
    path = folder / LEFT_OUT
    return tuple(path.read_text().split()) if path.is_file() else ()


def find_patches(folder: Path) -> tuple[Path, ...]:
    """Return the patches of a folder: those of its ``series``, in that order; without ``series``, all patches by name.

    :raise UsageError: the folder has no patches, or a patch is missing
    """
    if not folder.is_dir():
        raise UsageError(f"patches '{folder}' is not a folder")
    listed = (folder / "series").is_file()
    names = read_series(folder) if listed else tuple(sorted(path.name for path in folder.glob("*.patch")))
    if not names:
        raise UsageError(f"patches '{folder}' holds {'an empty series' if listed else 'no *.patch'}")
    for name in names:
        if not (folder / name).is_file():
            raise UsageError(f"patch '{name}' is in the series of '{folder}' and not there")
    # Absolute paths, since another folder reads the patches.
    return tuple(folder.resolve() / name for name in names)


def _check_fragment(path: Path) -> Path:
    if not path.is_file():
        raise UsageError(f"configuration '{path}' is {'no regular file' if path.exists() else 'not there'}")
    text = path.read_text(errors="surrogateescape")
    if not is_utf8(text) or not parse_config(text.splitlines()):
        raise UsageError(
            f"configuration '{path}' sets nothing: lines are CONFIG_NAME=value or # CONFIG_NAME is not set"
        )
    return path.resolve()


class _Source:
    """A user's source in the tree that is kept between builds.

    :ivar sha256: of the source
    :ivar state: the name of the kept tree's content before patches
    """

    def __init__(
        self,
        looked: GitTree | PlainTree | SourceArchive,
        kept: Tree,
        steps: tuple[str, ...],
        progress: Progress,
    ) -> None:
        self._looked = looked
        self._progress = progress
        if isinstance(looked, SourceArchive):
            self.sha256 = looked.sha256
            self.state = make_key(*steps, looked.sha256)
        else:
            self.state = make_key(*steps)
            self.sha256 = _follow(kept, looked, self.state, progress)

    def fill(self, source: Path) -> None:
        """Write the source into a tree that does not have it.

        :raise UsageError: it cannot be unpacked, or is not Linux
        :raise HostError: it went since it was looked at, or the disk is full
        """
        if not isinstance(self._looked, SourceArchive):
            raise HostError(f"kernel: '{source}' is gone, which was there a moment ago: try again")
        require_space(source)
        self._progress("kernel: unpacking the source")
        unpack_source(self._looked, source)


def _follow(kept: Tree, looked: GitTree | PlainTree, state: str, progress: Progress) -> str:
    """Make the kept tree's source equal to the user's tree, without patches. Return the hash of the source."""
    kept.prepare(state, require_space)
    try:
        kept.patch((), lambda _: None)
        progress("kernel: copying what has changed")
        digest = Snapshot(kept.source, kept.account).follow(looked.root, looked.names)
        if isinstance(looked, GitTree) and read_commit(looked.root) != looked.commit:
            raise UsageError(f"tree '{looked.root}' got another commit while it was being copied: try again")
    except UsageError:
        # The copy is not a state of the user's tree. But the copy agrees with its record, so the kept tree stays
        # usable.
        kept.keep(state)
        raise
    kept.keep(state)
    return digest
