# SPDX-License-Identifier: GPL-2.0-or-later
"""Paths on the host: the checkout, and the cache that all checkouts share."""

import os
import tempfile
from pathlib import Path

from lab.errors import HostError

_LAB = Path(__file__).resolve().parents[1]
#: The checkout. Only code that runs in a checkout, such as its tests, may look for files there.
ROOT = _LAB.parent
#: A wheel contains copies of the targets of the links in a checkout's lab/data.
IMAGES = (_LAB / "data" / "images").resolve()
SCENARIOS = (_LAB / "data" / "scenarios").resolve()
#: The reviewed list of cells that are expected sound.
SOUND = _LAB / "expected" / "sound.toml"

NAME = "microcode-nmi-lab"


def find_cache() -> Path:
    """Return the cache folder: ``$XDG_CACHE_HOME/microcode-nmi-lab``, or below ``~/.cache``. Make it if needed.

    :raise HostError: the folder cannot be made or written, or its path is not UTF-8, and builds could not name such a
        path
    """
    base = os.environ.get("XDG_CACHE_HOME", "")
    cache = (Path(base) if Path(base).is_absolute() else Path.home() / ".cache") / NAME
    if not is_utf8(str(cache)):
        raise HostError(f"cache folder '{show_bytes(str(cache))}' is not UTF-8; set XDG_CACHE_HOME to a folder that is")
    try:
        cache.mkdir(parents=True, exist_ok=True, mode=0o755)
        with tempfile.TemporaryFile(dir=cache):
            pass
    except OSError as error:
        raise HostError(
            f"cache folder '{cache}' is not writable: {error.strerror}; set XDG_CACHE_HOME to a folder that is"
        ) from error
    return cache


def is_utf8(name: str) -> bool:
    """Return True if a name from the system is text. Python decodes other bytes to surrogates (PEP 383)."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def show_bytes(name: str) -> str:
    """Return a name from the system, with an escape for each byte that is not text."""
    return os.fsencode(name).decode(errors="backslashreplace")
