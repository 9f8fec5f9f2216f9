# SPDX-License-Identifier: GPL-2.0-or-later
"""Kernel configuration: the requested settings, and whether Kconfig kept them. Kconfig drops settings silently."""

import lzma
import re
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path

from lab.errors import UsageError
from lab.host.paths import is_utf8

#: ``CONFIG_NAME=value`` and ``# CONFIG_NAME is not set`` are the two forms of a setting. All other lines are comments.
_SET = re.compile(r"(CONFIG_\w+)=(.*)", re.ASCII)
_UNSET = re.compile(r"# (CONFIG_\w+) is not set", re.ASCII)

#: ``config NAME`` and ``menuconfig NAME``: a tree declares a setting in this form.
_DECLARED = re.compile(rb"^[ \t]*(?:menu)?config[ \t]+(\w+)[ \t]*$", re.ASCII | re.MULTILINE)

NOT_SET = "n"
MODULE = "m"
EMPTY = '""'
#: A distribution's configuration has a tenth of this, and packs it to a fifth of that.
MAX_CONFIG_BYTES = 4 * 2**20
#: zlib reads a gzip file with this window.
_GZIP_BITS = 31
#: Beginnings of packed files.
_XZ, _GZIP = b"\xfd7zXZ\x00", b"\x1f\x8b"


def parse_config(lines: Iterable[str]) -> dict[str, str]:
    """Read a ``.config`` or a fragment of a ``.config``. A setting that is not set has the value NOT_SET."""
    settings = {}
    for line in lines:
        if match := _SET.fullmatch(line.strip()):
            settings[match[1]] = match[2]
        elif match := _UNSET.fullmatch(line.strip()):
            settings[match[1]] = NOT_SET
    return settings


def read_whole_config(path: Path) -> dict[str, str]:
    """Read a whole configuration, such as a distribution's, which may be packed by xz or gzip.

    :raise UsageError: the file is not readable, too large, or no whole configuration of a kernel for x86-64
    """
    if not path.is_file():
        raise UsageError(f"configuration '{path}' is {'no regular file' if path.exists() else 'not there'}")
    try:
        with open(path, "rb") as source:
            data = source.read(MAX_CONFIG_BYTES + 1)
        if data.startswith(_XZ):
            data = lzma.LZMADecompressor().decompress(data, MAX_CONFIG_BYTES + 1)
        elif data.startswith(_GZIP):
            data = zlib.decompressobj(_GZIP_BITS).decompress(data, MAX_CONFIG_BYTES + 1)
    except (OSError, lzma.LZMAError, zlib.error) as error:
        raise UsageError(f"configuration '{path}' cannot be read: {error}") from error
    text = data.decode(errors="surrogateescape")
    if len(data) > MAX_CONFIG_BYTES or not is_utf8(text):
        raise UsageError(f"configuration '{path}' is no text of at most {MAX_CONFIG_BYTES >> 20} MiB")
    settings = parse_config(text.splitlines())
    if settings.get("CONFIG_X86_64") != "y":
        raise UsageError(f"configuration '{path}' is no whole one of a kernel for x86-64: CONFIG_X86_64=y is not in it")
    return settings


def drop_modules(settings: Mapping[str, str]) -> dict[str, str]:
    """Return settings in which nothing is a module. Without modules, Kconfig would build each one in."""
    return {name: NOT_SET if value == MODULE else value for name, value in settings.items()}


def format_config(settings: Mapping[str, str]) -> str:
    """Return the text of a ``.config``."""
    return "".join(f"{_format(name, value)}\n" for name, value in settings.items())


def _format(name: str, value: str) -> str:
    return f"# {name} is not set" if value == NOT_SET else f"{name}={value}"


def find_lost(wanted: Mapping[str, str], got: Mapping[str, str]) -> tuple[str, ...]:
    """Return the requested settings that Kconfig did not keep, in the form of the request.

    A text that is requested to be empty is kept where there is no such setting.
    """
    return tuple(
        _format(name, value)
        for name, value in wanted.items()
        if got.get(name, NOT_SET) != value and not (value == EMPTY and name not in got)
    )


def find_unknown(names: Iterable[str], source: Path) -> frozenset[str]:
    """Return the settings that no Kconfig of a tree declares.

    The tree is too old or too new, or the setting is misspelt.
    """
    unknown = set(names)
    for path in source.rglob("Kconfig*") if unknown else ():
        if path.is_file():
            unknown -= {f"CONFIG_{name.decode()}" for name in _DECLARED.findall(path.read_bytes())}
    return frozenset(unknown)
