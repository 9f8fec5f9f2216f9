# SPDX-License-Identifier: GPL-2.0-or-later
"""The kernel under test: Debian's source, the lab's patches, and tinyconfig with the lab's settings."""

import contextlib
import errno
import os
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import msgspec

from lab.build.cache import Progress, cached, find_log, hash_once, key_tree, make_key
from lab.build.compiler import COMPILER, ENVIRONMENT, read_versions
from lab.build.kconfig import (
    drop_modules,
    find_lost,
    find_unknown,
    format_config,
    parse_config,
    read_whole_config,
)
from lab.build.kernel_source import find_source
from lab.build.tree import Tree, open_tree
from lab.errors import BuildError, DeadlineError, HostError, ProcessError, UsageError, tell_nearest
from lab.host import proc
from lab.host.deadline import Deadline
from lab.host.paths import IMAGES, find_cache

#: The settings that every kernel needs to run trials.
ANY_CONFIG = IMAGES / "kernels" / "any" / "config"
#: The settings that a distribution's own configuration lacks to run trials.
DISTRIBUTION_CONFIG = IMAGES / "kernels" / "distribution" / "config"
#: Names of settings, one per line. The lab's own fragments ask for these settings, but a tree may lack them.
OPTIONAL = IMAGES / "kernels" / "optional"
DEFAULT_BASE = "linux-6.1"
#: Examples of a user's kernel. Each is the source of a base, without the lab's patches.
UNPATCHED = {"stock-before-6.7": "linux-6.1", "stock-since-6.7": "linux-6.12"}

#: One slow core needs about half an hour. A build that takes longer than this has hung.
MAX_BUILD_S = 2 * 3600.0
#: Unpacked source takes 1.3 GiB and objects 0.2 GiB. The rest is for other programs that run meanwhile.
MIN_FREE_GIB = 3
GIB = 2**30

#: Number of lines that make prints for an almost empty kernel. Only the progress display uses this number.
_EXPECTED_LINES = 1_760
#: The same for a distribution's configuration without its modules.
_EXPECTED_LINES_WHOLE = 3_840
_PROGRESS_EVERY_S = 5.0
#: Large enough for the output of make's other jobs after the first error.
_LOG_TAIL_BYTES = 64_000

#: Part of every image. Fixed values, so that the same sources give the same bytes.
_FIXED = {
    "KBUILD_BUILD_TIMESTAMP": "1970-01-01 00:00:00 UTC",
    "KBUILD_BUILD_USER": "lab",
    "KBUILD_BUILD_HOST": "lab",
    "KBUILD_BUILD_VERSION": "1",
    "LC_ALL": "C",
    "TZ": "UTC",
}
_ARCH = "ARCH=x86_64"
_TARGETS = ("bzImage", "vmlinux")
#: Increase this if the steps below make another image from the same inputs.
_RECIPE = "1"


class Kernel(msgspec.Struct, frozen=True):
    """A built kernel in the cache.

    :param release: the output of ``uname -r``
    """

    folder: Path
    release: str

    @property
    def image(self) -> Path:
        """The bzImage to boot."""
        return self.folder / "bzImage"

    @property
    def vmlinux(self) -> Path:
        """The ELF file with the kernel's symbols, to read."""
        return self.folder / "vmlinux"


class Recipe(msgspec.Struct, frozen=True):
    """The inputs of a kernel.

    :param folder: folder of images/kernels with ``config`` and, if there are patches, ``series`` and ``patches/``
    :param source: the upstream tarball, with one folder at its top
    :param common: a fragment of configuration; the folder's fragment overrides it; None for no such fragment
    :param tree: name of the tree that is kept between builds; if empty, the folder's name
    :param extra: patches on top of those of the folder
    :param compiler: gcc, or clang
    :param base: a whole configuration, on which the fragments come, in place of tinyconfig
    """

    folder: Path
    source: Path
    common: Path | None = None
    tree: str = ""
    extra: tuple[Path, ...] = ()
    compiler: str = COMPILER
    base: Path | None = None

    @property
    def fragments(self) -> tuple[Path, ...]:
        """Fragments of configuration. A later fragment overrides an earlier fragment."""
        own = self.folder / "config"
        return (own,) if self.common is None else (self.common, own)

    @property
    def patches(self) -> tuple[Path, ...]:
        """The patches, in the order of application."""
        return (*(self.folder / "patches" / name for name in read_series(self.folder)), *self.extra)

    @property
    def unpatched(self) -> "Recipe":
        """The same source without the lab's patches and without settings that only the patches declare.

        Both recipes share the kept tree.
        """
        folder = self.folder if self.common is None else self.common.parent
        return Recipe(folder, self.source, tree=self.tree or self.folder.name)


def find_recipe(base: str, progress: Progress) -> Recipe:
    """Return the recipe of a name, such as ``linux-6.1``, or the recipe of an example of a user's kernel.

    Fetch the source if it is missing.

    :raise UsageError: no recipe has this name; the text lists all names
    :raise HostError: the source is not available
    """
    if base in UNPATCHED:
        return find_recipe(UNPATCHED[base], progress).unpatched
    folder = IMAGES / "kernels" / base
    if not (folder / "series").is_file():
        known = sorted(path.parent.name for path in folder.parent.glob("*/series"))
        raise UsageError(f"kernel '{base}' is unknown: there are {', '.join(known)}{tell_nearest(base, known)}")
    return Recipe(folder, find_source(base, progress), ANY_CONFIG)


def build_kernel(progress: Progress, base: str = DEFAULT_BASE, patch: Path | None = None) -> Kernel:
    """Build the kernel of images/kernels/<base>, or find it in the cache.

    :param patch: one more patch, on top of the patches of the base
    :raise UsageError: the base does not exist
    :raise BuildError: a patch, the configuration or the compiler failed; the text names it and the log
    :raise HostError: a package is missing, or the disk is full
    """
    recipe = find_recipe(base, progress)
    return build_recipe(recipe if patch is None else msgspec.structs.replace(recipe, extra=(patch,)), progress)


def build_recipe(recipe: Recipe, progress: Progress) -> Kernel:
    """Build a kernel, or find it in the cache; raises the same errors as :func:`build_kernel`."""
    unpatched = (hash_once(recipe.source), *describe_steps(recipe.compiler))
    common = recipe.fragments[0].read_bytes()
    base = None if recipe.base is None else read_whole_config(recipe.base)
    contents = [path.read_bytes() for path in recipe.extra]
    key = make_key(*unpatched, common, key_tree(recipe.folder), *contents, *key_config(base))
    log = find_log("kernel", key)
    # The state leaves out the folder's own settings: a build takes back such settings as it takes back patches, and the
    # objects that make compiled without the settings stay valid.
    state = make_key(*unpatched, common)

    def build(target: Path) -> None:
        with open_tree(recipe.tree or recipe.folder.name, progress) as tree:
            work = Build(tree, recipe.patches, recipe.fragments, target, log, progress, recipe.compiler, base)
            work.run(state, lambda source: work.unpack(recipe.source, source))

    return read_entry(cached("kernel", key, build, progress))


def key_config(base: Mapping[str, str] | None) -> tuple[str, ...]:
    """Return a whole configuration as a part of a kernel's key; nothing where the kernel has none."""
    return () if base is None else (format_config(base),)


def describe_steps(compiler: str = COMPILER) -> tuple[str, ...]:
    """Return all inputs of every kernel except source, patches and configuration, as a part of its key.

    :raise HostError: the compiler or the linker does not run
    """
    fixed = [f"{name}={value}" for name, value in sorted(_FIXED.items())]
    return (_RECIPE, *read_versions(compiler), *fixed, _ARCH, f"CC={compiler}", *_TARGETS)


def read_entry(folder: Path) -> Kernel:
    """Return the kernel of a cache entry.

    :raise HostError: the entry is damaged
    """
    try:
        return Kernel(folder, (folder / "release").read_text().strip())
    except OSError as error:
        raise HostError(f"cache entry '{folder}' is damaged: remove it and build again") from error


def read_series(folder: Path) -> tuple[str, ...]:
    """Return the names of the patches in quilt's ``series``, in order: one per line, comments after ``#``."""
    try:
        lines = (folder / "series").read_text().splitlines()
    except FileNotFoundError:
        return ()
    return tuple(name for name in (line.split("#")[0].strip() for line in lines) if name)


def read_optional() -> frozenset[str]:
    """Return the names of the settings that the lab can work without."""
    lines = (line.split("#")[0].strip() for line in OPTIONAL.read_text().splitlines())
    return frozenset(name for name in lines if name)


def require_space(folder: Path) -> None:
    """Check that the disk has room for a kernel's source and objects.

    :raise HostError: the disk does not have enough room
    """
    free_gib = shutil.disk_usage(folder).free / GIB
    if free_gib < MIN_FREE_GIB:
        raise HostError(
            f"a kernel build needs {MIN_FREE_GIB} GiB free in '{find_cache()}', and there are {free_gib:.1f}"
        )


class Build:
    """One build in a kept tree.

    :param patches: in the order of application
    :param fragments: of configuration; a later fragment overrides an earlier fragment
    :param target: the folder for the results
    :param base: the settings of a whole configuration in place of tinyconfig; its modules are left out
    """

    def __init__(
        self,
        tree: Tree,
        patches: Sequence[Path],
        fragments: Sequence[Path],
        target: Path,
        log: Path,
        progress: Progress,
        compiler: str = COMPILER,
        base: Mapping[str, str] | None = None,
    ) -> None:
        self.tree = tree
        self.patches = tuple(patches)
        self.fragments = tuple(fragments)
        self.target = target
        self.compiler = compiler
        self.base = base
        self.log = log
        self.progress = progress
        self.deadline = Deadline.after(MAX_BUILD_S)
        self.environment = {**ENVIRONMENT, **_FIXED}
        #: Settings that the lab asks for and that the tree does not declare.
        self.left_out: tuple[str, ...] = ()

    def run(self, state: str, fill: Callable[[Path], None]) -> None:
        """Do all steps.

        :param state: name of the tree's content before patches
        :param fill: writes the source if the kept tree does not have this state
        """
        self.log.write_bytes(b"")
        self.tree.prepare(state, fill)
        try:
            self._patch()
            self._configure()
            self._compile()
        except BuildError:
            # A mistake in the recipe: make has removed its unfinished files, so the tree stays usable. After a full
            # disk, a signal or a missed deadline, the tree's state is unknown, and the lab does not keep the tree.
            self.tree.keep(state)
            raise
        self._collect()
        self.tree.keep(state)

    def unpack(self, archive: Path, source: Path) -> None:
        """Unpack a tarball into the source folder."""
        require_space(source)
        self.progress("kernel: unpacking the source")
        self._step("unpacking the source", ["tar", "-xJf", archive, "-C", source, "--strip-components=1"])

    def _patch(self) -> None:
        for path in self.patches:
            if not path.is_file():
                raise BuildError(f"kernel: patch '{path.name}' is in the series and not in '{path.parent}'")
        self.tree.patch(self.patches, self._apply)

    def _apply(self, path: Path) -> None:
        self.progress(f"kernel: applying {path.name}")
        # No fuzz: a patch that applies near its place is worse than a patch that fails.
        options = ["-p1", "--batch", "--forward", "--fuzz=0", "--no-backup-if-mismatch", "--reject-file=-"]
        self._step(f"patch '{path.name}'", ["patch", *options, f"--input={path}"], cwd=self.tree.source)

    def _configure(self) -> None:
        self.progress("kernel: configuring")
        config = self.tree.objects / ".config"
        merge = self.tree.source / "scripts/kconfig/merge_config.sh"
        if self.base is None:
            self._step("configuration", [*self._make(), "tinyconfig"])
        else:
            config.write_text(format_config(drop_modules(self.base)))
        merged: list[str | os.PathLike[str]] = [merge, "-m", "-O", self.tree.objects, config, *self.fragments]
        self._step("configuration", merged, cwd=self.tree.source)
        self._step("configuration", [*self._make(), "olddefconfig"])
        got = parse_config(config.read_text().splitlines())
        overruled: set[str] = set()
        for fragment in reversed(self.fragments):
            wanted = parse_config(fragment.read_text().splitlines())
            wanted = {name: value for name, value in wanted.items() if name not in overruled}
            self._check_kept(fragment, wanted, got)
            overruled |= set(wanted)

    def _check_kept(self, fragment: Path, wanted: Mapping[str, str], got: Mapping[str, str]) -> None:
        """Check that Kconfig kept the settings of a fragment.

        :raise BuildError: Kconfig dropped a setting, and the setting is not one that an older tree may lack
        """
        lost = {name for name in wanted if find_lost({name: wanted[name]}, got)}
        unknown = find_unknown(lost, self.tree.source)
        spared = unknown & read_optional() if fragment.is_relative_to(IMAGES) or fragment == ANY_CONFIG else frozenset()
        if spared:
            self.left_out = tuple(sorted({*self.left_out, *spared}))
            self.progress(f"kernel: this tree does not know {', '.join(sorted(spared))}: left out")
        missed = find_lost({name: value for name, value in wanted.items() if name not in spared}, got)
        if missed:
            told = (
                f"; this tree's Kconfig does not know {', '.join(sorted(unknown - spared))}" if unknown - spared else ""
            )
            raise BuildError(f"kernel: Kconfig dropped what '{fragment}' asks for: {', '.join(missed)}{told}")

    def _compile(self) -> None:
        command = [*self._make(), f"-j{os.cpu_count() or 1}", *_TARGETS]
        lock = self.tree.lock
        with (
            open(self.log, "ab") as sink,
            open(self.log, "rb") as lines,
            proc.start_process(
                command, env=self.environment, pass_fds=(lock,), stdout=sink, stderr=subprocess.STDOUT
            ) as process,
        ):
            seen = 0
            while process.returncode is None:
                seen += lines.read().count(b"\n")
                percent = min(99, 100 * seen // (_EXPECTED_LINES if self.base is None else _EXPECTED_LINES_WHOLE))
                self.progress(f"kernel: compiling, about {percent} % ({seen} steps)")
                if self.deadline.expired:
                    raise HostError(f"kernel: still compiling after {MAX_BUILD_S / 3600:.0f} hours, see {self.log}")
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(_PROGRESS_EVERY_S)
        if process.returncode != 0:
            raise self._make_error("compiling", process.returncode)

    def _collect(self) -> None:
        self.progress("kernel: collecting")
        release = proc.run([*self._make(), "-s", "kernelrelease"], env=self.environment, deadline=self.deadline)
        (self.target / "release").write_text(release)
        shutil.copyfile(self.tree.objects / "arch/x86/boot/bzImage", self.target / "bzImage")
        for name, source in (("vmlinux", "vmlinux"), ("System.map", "System.map"), ("config", ".config")):
            shutil.copyfile(self.tree.objects / source, self.target / name)
        shutil.copyfile(self.log, self.target / "build.log")

    def _make(self) -> list[str]:
        return ["make", "-C", os.fspath(self.tree.source), f"O={self.tree.objects}", _ARCH, f"CC={self.compiler}"]

    def _step(self, what: str, command: Sequence[str | os.PathLike[str]], cwd: Path | None = None) -> None:
        try:
            proc.run(command, cwd=cwd, env=self.environment, log=self.log, deadline=self.deadline)
        except ProcessError as error:
            raise self._make_error(what, error.status) from error
        except DeadlineError as error:
            raise HostError(f"kernel: {what} took too long, see {self.log}") from error

    def _make_error(self, what: str, status: int) -> HostError:
        """Return the error of a failed step: a full disk, a signal, or a mistake, with a line of the log."""
        with open(self.log, "rb") as source:
            source.seek(max(0, self.log.stat().st_size - _LOG_TAIL_BYTES))
            lines = source.read().decode(errors="backslashreplace").splitlines()
        if any(os.strerror(errno.ENOSPC) in line for line in lines):
            return HostError(f"kernel: {what} failed: no space left in '{find_cache()}'")
        if status < 0:
            return HostError(f"kernel: {what} was ended by signal {-status} (log: {self.log})")
        telling = [line for line in lines if "error:" in line or "FAILED" in line or "***" in line] or lines[-1:]
        return BuildError(f"kernel: {what} failed: {(telling or ['no output'])[0].strip()} (log: {self.log})")
