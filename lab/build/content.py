# SPDX-License-Identifier: GPL-2.0-or-later
"""Things in the cache by what is in them, whatever they were built from: a mutant's kernel, or one of a user's tree."""

from collections.abc import Mapping
from pathlib import Path

from lab.build.cache import SUMS, make_folder, read_sums
from lab.errors import HostError


def find_entry(kind: str, wanted: Mapping[str, str]) -> Path | None:
    """Return the first entry that holds files of these contents; damaged ones are passed over.

    :param kind: as :func:`lab.build.cache.cached` has it
    :param wanted: SHA-256 by name of the file, as when it was built
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
