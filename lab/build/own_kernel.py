# SPDX-License-Identifier: GPL-2.0-or-later
"""A kernel built from the user's own git tree. The lab does not change this tree.

The lab copies the files to a tree in the cache and keeps this tree between builds. So a later build copies and compiles
only the changed files. The entry's ``origin.json`` records the inputs of the build.
"""

from pathlib import Path
from typing import Final

import msgspec

from lab.build.cache import Progress, cached, find_log, make_key
from lab.build.git_tree import GitTree, read_commit, read_git_tree
from lab.build.kconfig import parse_config
from lab.build.kernel import ANY_CONFIG, Build, Kernel, describe_steps, read_entry, read_series, require_space
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

    :param dirty: the tree differed from the commit
    :param source_sha256: over all files of the tree, with their names
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


def build_own_kernel(tree: Path, patches: Path | None, fragment: Path | None, progress: Progress) -> OwnKernel:
    """Build a user's tree, or find its kernel in the cache.

    :param tree: a git tree of Linux
    :param patches: a folder with patches to apply on top, in the order of its ``series``; without ``series``, by name
    :param fragment: of configuration; overrides the settings that the lab needs
    :raise UsageError: a tree, folder or fragment is not valid
    :raise BuildError: a patch, the configuration or the compiler failed; the text names it and the log
    :raise HostError: a package is missing, or the disk is full
    """
    series = () if patches is None else find_patches(patches)
    fragments = (ANY_CONFIG,) if fragment is None else (ANY_CONFIG, _check_fragment(fragment))
    looked = read_git_tree(tree)
    steps = describe_steps()
    with open_tree(f"tree-{make_key(str(looked.root))[:_PATH_DIGITS]}", progress) as kept:
        origin = Origin(
            commit=looked.commit,
            dirty=looked.dirty,
            source_sha256=_follow(kept, looked, make_key(*steps), progress),
            patches=tuple(path.name for path in series),
        )
        contents = [path.read_bytes() for path in (*series, *fragments)]
        key = make_key(*steps, msgspec.json.encode(origin), *contents)
        log = find_log("kernel", key)

        def build(target: Path) -> None:
            work = Build(kept, series, fragments, target, log, progress)
            work.run(make_key(*steps), _refuse)
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


def _follow(kept: Tree, looked: GitTree, state: str, progress: Progress) -> str:
    """Make the kept tree's source equal to the user's tree, without patches. Return the hash of the source."""
    kept.prepare(state, require_space)
    try:
        kept.patch((), lambda _: None)
        progress("kernel: copying what has changed")
        digest = Snapshot(kept.source, kept.account).follow(looked.root, looked.names)
        if read_commit(looked.root) != looked.commit:
            raise UsageError(f"tree '{looked.root}' got another commit while it was being copied: try again")
    except UsageError:
        # The copy is not a state of the user's tree. But the copy agrees with its record, so the kept tree stays
        # usable.
        kept.keep(state)
        raise
    kept.keep(state)
    return digest


def _refuse(source: Path) -> None:
    raise HostError(f"kernel: '{source}' is gone, which was there a moment ago: try again")
