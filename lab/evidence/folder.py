# SPDX-License-Identifier: GPL-2.0-or-later
"""The evidence folder: one file per witness, so that a better judge can judge the trial again.

A folder may come from another machine or from a hostile guest, so the reader trusts nothing in it. The lab chooses the
file names. The reader opens only regular files, checks sizes before it reads, and requires every file to match the
manifest.
"""

import hashlib
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

import msgspec

from lab.errors import EvidenceError, HostError, UsageError
from lab.evidence.foreign import ForeignFolder
from lab.guest.dump import DUMPS, MAX_DUMP_MIB
from lab.host.files import write_whole
from lab.host.paths import is_utf8, show_bytes
from lab.model.evidence import (
    SCHEMA_VERSION,
    Ending,
    Evidence,
    GuestEvidence,
    Images,
    InjectionLog,
    ObserverEvidence,
    Stall,
    Timings,
)
from lab.model.plan import Plan
from lab.model.scenario import Scenario
from lab.model.topology import Topology
from lab.model.verdict import Verdict

MANIFEST = "manifest.json"
VERDICT = "verdict.json"
CONSOLE = "console.log"
DMESG = "dmesg.txt"
#: Marks the folder of a run; :func:`lab.campaign.run_folder.clear_run` keeps this file.
RUN_MARKER = ".mclab-run"

_SCENARIO, _PLAN, _IMAGES, _OBSERVER = "scenario.json", "plan.json", "images.json", "oracle.json"
_INJECTIONS, _GUEST, _TIMINGS, _ENDING = "injections.json", "guest.json", "timings.json", "ending.json"
_WITNESSES = frozenset((_SCENARIO, _PLAN, _IMAGES, _OBSERVER, _INJECTIONS, _GUEST, _TIMINGS, _ENDING))

#: Far above the size of the lab's own manifests: about 150 bytes for each of MAX_FILES files.
MAX_MANIFEST_BYTES = 64 * 1024
#: A full ring and full block tables take about a quarter of this size as JSON.
MAX_WITNESS_BYTES = 64 * 1024 * 1024
#: A guest that prints without end must not fill the disk. The lab keeps the last bytes of each raw file.
MAX_RAW_BYTES = 8 * 1024 * 1024
MAX_FILES = 64
#: The module that makes a dump limits its size to this size at most.
MAX_DUMP_BYTES = MAX_DUMP_MIB << 20
#: People look at evidence, so its folder is more open than the folder it is made in (mode 0700).
FOLDER_MODE = 0o755

#: lab.host.files leaves this part of a verdict if the lab is killed during the write.
_HALF_VERDICT = re.compile(re.escape(f".{VERDICT}.") + r"[a-z0-9_]{8}", re.ASCII)
_RAW_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}", re.ASCII)

T = TypeVar("T")


class _File(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    size: int
    sha256: str


class _Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """The last file that the lab writes. A folder without a manifest is not complete."""

    schema_version: int
    lab_version: str
    files: tuple[_File, ...]


class _ManifestVersion(msgspec.Struct, frozen=True):
    """The only field of a manifest with another schema that the reader relies on."""

    schema_version: int


class _Ended(msgspec.Struct, frozen=True, kw_only=True):
    ending: Ending
    reason: str
    console_tail: tuple[str, ...]
    console_report: tuple[str, ...] = ()
    stall: Stall | None = None


def limit_raw(name: str) -> int:
    """Return the largest size of a raw file in bytes.

    A dump has a higher limit, since a dump without its beginning is useless.
    """
    return MAX_DUMP_BYTES if name in DUMPS else MAX_RAW_BYTES


def write_evidence(folder: Path, evidence: Evidence, raw: Mapping[str, bytes]) -> None:
    """Write an evidence folder completely or not at all. Replace evidence of the lab that is already there.

    Nothing is synced. If a crash of the host cuts a file short, the file does not match the manifest, so the reader
    sees the damage.

    :param raw: further files with the guest's own content, by plain lower-case name; if ``console.log`` or
        ``dmesg.txt``
        is missing, the lab makes it from the evidence
    :raise ValueError: a raw file's name is not plain, or is the name of a witness
    :raise EvidenceError: text of a witness is not Unicode, since its decoder produced surrogates
    :raise UsageError: the folder contains other files
    :raise HostError: the disk is full, or the folder is not writable
    """
    files = _encode_witnesses(evidence)
    for name, data in raw.items():
        if not is_raw_name(name):
            raise ValueError(f"'{name}' cannot name a raw file of an evidence folder")
        files[name] = data[-limit_raw(name) :]
    files.setdefault(CONSOLE, _as_text(evidence.console_tail))
    if evidence.guest is not None:
        files.setdefault(DMESG, _as_text(evidence.guest.dmesg))
    manifest = _Manifest(
        schema_version=evidence.schema_version,
        lab_version=evidence.lab_version,
        files=tuple(
            _File(name=name, size=len(data), sha256=hashlib.sha256(data).hexdigest())
            for name, data in sorted(files.items())
        ),
    )
    files[MANIFEST] = msgspec.json.format(msgspec.json.encode(manifest))
    temporary = ""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent)
        Path(temporary).chmod(FOLDER_MODE)
        for name, data in files.items():
            Path(temporary, name).write_bytes(data)
        _put_in_place(Path(temporary), folder)
    except OSError as error:
        raise HostError(f"evidence folder '{folder}' could not be written: {error.strerror or error}") from error
    finally:
        if temporary:
            shutil.rmtree(temporary, ignore_errors=True)


def _encode_witnesses(evidence: Evidence) -> dict[str, bytes]:
    witnesses: dict[str, msgspec.Struct | None] = {
        _SCENARIO: evidence.scenario,
        _PLAN: evidence.plan,
        _IMAGES: evidence.images,
        _OBSERVER: evidence.observer,
        _INJECTIONS: evidence.injections,
        _GUEST: evidence.guest,
        _TIMINGS: evidence.timings,
        _ENDING: _Ended(
            ending=evidence.ending,
            reason=evidence.reason,
            console_tail=evidence.console_tail,
            console_report=evidence.console_report,
            stall=evidence.stall,
        ),
    }
    try:
        return {name: msgspec.json.encode(witness) for name, witness in witnesses.items() if witness is not None}
    except UnicodeEncodeError as error:
        raise EvidenceError(f"the evidence holds text that is not Unicode, {error.object!r:.80}") from error


def _as_text(lines: tuple[str, ...]) -> bytes:
    return "".join(f"{line}\n" for line in lines).encode(errors="backslashreplace")[-MAX_RAW_BYTES:]


def _put_in_place(temporary: Path, folder: Path) -> None:
    """Rename the new folder into place.

    Accept no folder, an empty folder, or evidence of the lab, which is moved away first.
    """
    if folder.is_dir() and any(folder.iterdir()):
        if not holds_only_evidence(folder):
            raise UsageError(f"'{folder}' holds something other than evidence: name an empty folder or a new one")
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as attic:
            folder.rename(Path(attic, "old"))
            temporary.rename(folder)
        return
    temporary.rename(folder)


def read_evidence(folder: Path) -> Evidence:
    """Read an evidence folder, which may be foreign.

    :raise EvidenceError: the folder is truncated, altered, has another schema, or is not an evidence folder
    """
    with ForeignFolder(folder) as source:
        manifest = _read_manifest(source)
        data = {}
        for file in manifest.files:
            content = source.read(file.name, MAX_WITNESS_BYTES if file.name in _WITNESSES else limit_raw(file.name))
            if len(content) != file.size or hashlib.sha256(content).hexdigest() != file.sha256:
                raise source.refuse(f"{file.name} does not match its manifest")
            if file.name in _WITNESSES:
                data[file.name] = content
        ended = _require(source, data, _ENDING, _Ended)
        return Evidence(
            schema_version=manifest.schema_version,
            lab_version=manifest.lab_version,
            scenario=_check_scenario(source, _require(source, data, _SCENARIO, Scenario)),
            plan=_require(source, data, _PLAN, Plan),
            images=_find(source, data, _IMAGES, Images),
            ending=ended.ending,
            reason=ended.reason,
            observer=_find(source, data, _OBSERVER, ObserverEvidence),
            injections=_find(source, data, _INJECTIONS, InjectionLog),
            guest=_find(source, data, _GUEST, GuestEvidence),
            timings=_find(source, data, _TIMINGS, Timings),
            console_tail=ended.console_tail,
            console_report=ended.console_report,
            stall=ended.stall,
        )


def write_verdict(folder: Path, verdict: Verdict) -> None:
    """Write a verdict beside the evidence that the verdict is about. Replace an earlier verdict.

    :raise HostError: the disk is full, or the folder is not writable
    """
    write_whole(folder / VERDICT, msgspec.json.format(msgspec.json.encode(verdict)))


def read_verdict(folder: Path) -> Verdict:
    """Read the verdict of an evidence folder, which may be foreign.

    :raise EvidenceError: there is no verdict, or the file is not a verdict of the lab
    """
    with ForeignFolder(folder) as source:
        return source.decode(VERDICT, source.read(VERDICT, MAX_WITNESS_BYTES), Verdict)


def claim_trial_output(path: Path) -> Path:
    """Return the folder for a trial's evidence: new, empty, or with only the files of one earlier trial.

    :raise UsageError: as :func:`claim_output`
    :raise HostError: as :func:`claim_output`
    """

    def check(folder: Path) -> None:
        if is_marked(folder):
            raise UsageError(f"output folder '{folder}' is that of a run: name an empty or new one")
        if not holds_only_evidence(folder):
            raise refuse_output(folder)

    return claim_output(path, check)


def claim_output(path: Path, check: Callable[[Path], None]) -> Path:
    """Return the folder for results that a user named. Make it if needed, and resolve links in its path.

    :param check: raises UsageError if the lab may not write to a folder that is not empty; not called for other folders
    :raise UsageError: the path is a file, or the lab may not write to the folder; the lab has written nothing
    :raise HostError: the folder cannot be made or written
    """
    try:
        # The name appears in JSON, in pages and in commands to copy.
        if not is_utf8(str(path.resolve())):
            raise UsageError(f"output folder '{show_bytes(str(path.resolve()))}' is not UTF-8: name one that is")
        path.mkdir(parents=True, exist_ok=True)
        path = path.resolve()
        if any(path.iterdir()):
            check(path)
        with tempfile.TemporaryFile(dir=path):
            pass
    except (FileExistsError, NotADirectoryError) as error:
        raise UsageError(f"output '{path}' is not a folder, or lies below a file") from error
    except (OSError, RuntimeError) as error:
        raise HostError(f"output folder '{path}' cannot be made or written: {error}") from error
    return path


def refuse_output(folder: Path) -> UsageError:
    """Return the error for a folder with files of the user."""
    return UsageError(
        f"output folder '{folder}' holds something that this command may not replace: name an empty or new one"
    )


def is_marked(path: Path) -> bool:
    """Return True if a folder is the folder of a run."""
    try:
        return stat.S_ISREG(os.lstat(path / RUN_MARKER).st_mode)
    except OSError:
        return False


def holds_only_evidence(folder: Path) -> bool:
    """Return True if a folder contains only a trial's evidence, so a replacement loses no file of the user."""
    try:
        with ForeignFolder(folder) as source:
            listed = {file.name for file in _read_manifest(source).files}
            names = {name for name in source.list_names() if _HALF_VERDICT.fullmatch(name) is None}
            return names <= listed | {MANIFEST, VERDICT}
    except EvidenceError:
        return False


def is_raw_name(name: str) -> bool:
    """Return True if a raw file of an evidence folder may have this name."""
    return _RAW_NAME.fullmatch(name) is not None and name not in _WITNESSES | {MANIFEST, VERDICT}


def _read_manifest(source: ForeignFolder) -> _Manifest:
    data = source.read(MANIFEST, MAX_MANIFEST_BYTES)
    version = source.decode(MANIFEST, data, _ManifestVersion).schema_version
    if version != SCHEMA_VERSION:
        raise source.refuse(f"it has schema version {version}: this lab reads {SCHEMA_VERSION}")
    manifest = source.decode(MANIFEST, data, _Manifest)
    names = [file.name for file in manifest.files]
    if len(names) > MAX_FILES or len(set(names)) != len(names):
        raise source.refuse(f"{MANIFEST} lists a file twice, or more than {MAX_FILES}")
    for name in names:
        if name not in _WITNESSES and not is_raw_name(name):
            raise source.refuse(f"{MANIFEST} lists {name[:80]!r}, which is no file of ours")
    return manifest


def _find(source: ForeignFolder, data: Mapping[str, bytes], name: str, kind: type[T]) -> T | None:
    return source.decode(name, data[name], kind) if name in data else None


def _require(source: ForeignFolder, data: Mapping[str, bytes], name: str, kind: type[T]) -> T:
    if name not in data:
        raise source.refuse(f"{name} is missing")
    return source.decode(name, data[name], kind)


def _check_scenario(source: ForeignFolder, scenario: Scenario) -> Scenario:
    """Refuse a foreign scenario that a user could not ask for, so that no reader loops over a billion vCPUs."""
    try:
        Topology.parse(str(scenario.topology))
        scenario.check()
    except UsageError as error:
        raise source.refuse(f"{_SCENARIO} asks for what cannot be: {error}") from error
    return scenario
