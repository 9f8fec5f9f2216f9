# SPDX-License-Identifier: GPL-2.0-or-later
"""Find cache entries by their content, whatever their sources: a mutant's kernel, or a kernel of a user's tree."""

from collections.abc import Mapping
from pathlib import Path

from lab.build.cache import SUMS, make_folder, read_sums
from lab.errors import HostError


def find_entry(kind: str, wanted: Mapping[str, str]) -> Path | None:
    """Return the first entry that contains these files. Skip damaged entries.

    :param kind: as in :func:`lab.build.cache.cached`
    :param wanted: SHA-256 by file name, at the time of the build
    :raise HostError: the cache cannot be read
    """
    try:
        entries = sorted(path.parent for path in make_folder(kind).glob(f"[!.]*/{SUMS}"))
    except OSError as error:
        raise HostError(f"the cache of {kind} could not be read: {error.strerror}") from error
    for entry in entries:
        try:
            sums = read_sums(entry)
        except HostError:
            continue
        if all(sums.get(name) == digest and (entry / name).is_file() for name, digest in wanted.items()):
            return entry
    return None
