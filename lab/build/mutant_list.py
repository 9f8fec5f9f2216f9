# SPDX-License-Identifier: GPL-2.0-or-later
"""Which mutants there are: the patches of images/mutants, and those of the lab's own side."""

from pathlib import Path

from lab.errors import UsageError, tell_nearest
from lab.expected.lab_mutants import LAB_MUTANTS
from lab.expected.mutant import Mutant, Subject, parse_mutant
from lab.host.files import read_text
from lab.host.paths import IMAGES
from lab.mechanisms.base import BASES, STOCK_BASES

MUTANTS = IMAGES / "mutants"
#: More than any patch of one idea needs.
MAX_PATCH_BYTES = 64 * 1024
#: Folders of images/mutants, each with the subject of its patches.
_FOLDERS = {**{base.name: Subject.KERNEL for base in (*BASES, *STOCK_BASES)}, "observer": Subject.OBSERVER}


def read_mutants() -> tuple[Mutant, ...]:
    """Return all mutants that are patches, in order of kernel and name.

    :raise UsageError: a patch's message lacks a required part, or its folder belongs to another kernel
    """
    found = []
    for folder, subject in _FOLDERS.items():
        for path in sorted((MUTANTS / folder).glob("*.patch")):
            mutant = parse_mutant(read_text(path, MAX_PATCH_BYTES, "mutant"), path.stem, subject)
            if subject is Subject.KERNEL and mutant.base != folder:
                raise UsageError(f"mutant '{mutant.name}': its scenario is of {mutant.base}, its folder {folder}")
            found.append(mutant)
    return tuple(found)


def find_patch(mutant: Mutant) -> Path:
    """Return the patch that makes a mutant."""
    folder = mutant.base if mutant.subject is Subject.KERNEL else mutant.subject.value
    return MUTANTS / folder / f"{mutant.name}.patch"


def list_mutants() -> tuple[Mutant, ...]:
    """Return all mutants: the patches, then the lab's own.

    :raise UsageError: a patch's message does not say what it must
    """
    return (*read_mutants(), *LAB_MUTANTS)


def choose_mutants(names: list[str]) -> tuple[Mutant, ...]:
    """Return the mutants with these names, or all mutants when there are no names.

    :raise UsageError: a name is unknown; the text lists the known ones
    """
    known = {mutant.name: mutant for mutant in list_mutants()}
    for name in names:
        if name not in known:
            # There are more than an error's line shows.
            hint = tell_nearest(name, known) or f": there are {', '.join(known)}"
            raise UsageError(f"mutant '{name}' is unknown{hint}")
    return tuple(known[name] for name in dict.fromkeys(names)) or tuple(known.values())
