# SPDX-License-Identifier: GPL-2.0-or-later
"""Where things live on the host: the checkout, and the cache that checkouts share."""

import os
import tempfile
from pathlib import Path

from lab.errors import HostError

_LAB = Path(__file__).resolve().parents[1]
#: The checkout. Only what runs in one, such as its tests, may look for anything there.
ROOT = _LAB.parent
#: A wheel has copies of what the links in a checkout's lab/data lead to.
IMAGES = (_LAB / "data" / "images").resolve()
SCENARIOS = (_LAB / "data" / "scenarios").resolve()
#: The reviewed list of what is held to be sound.
SOUND = _LAB / "expected" / "sound.toml"

NAME = "microcode-nmi-lab"


def find_cache() -> Path:
    """Return the cache folder, made if need be: ``$XDG_CACHE_HOME/microcode-nmi-lab``, or below ``~/.cache``.

    :raise HostError: it cannot be made or written, or its path is not UTF-8, which what is built could not name
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
    """Tell whether a name the system gave is text; of what is not, Python makes surrogates (PEP 383)."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def show_bytes(name: str) -> str:
    """Return a name the system gave with each byte that is not text as an escape."""
    return os.fsencode(name).decode(errors="backslashreplace")
