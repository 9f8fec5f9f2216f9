# SPDX-License-Identifier: GPL-2.0-or-later
"""The lab must notice what is broken on purpose: some kernels, and each of its own witnesses.

All of them are hunted by ``make mutants``; every kernel takes a build of its own.
"""

from pathlib import Path

import pytest

from lab.build.qemu import find_qemu
from lab.campaign.mutants import Fate, choose_mutants, hunt, list_mutants
from lab.expected.mutant import Mutant
from lab.model.verdict import Outcome

pytestmark = pytest.mark.e2e

#: One that the judge, one that the landmarks and one that the look at resting siblings must notice.
KERNELS = ("reads-msr-while-waiting", "updates-twice", "offline-not-released")
#: One that survives random storms, and that an NMI at the landmark of its sending breaks.
NARROW = ("sender-first",)
WITNESSES = tuple(mutant.name for mutant in list_mutants() if mutant.ends_in is Outcome.INVALID)
#: Each of these is caught by the first trial that comes to its end in time.
TRIALS = 19


@pytest.mark.parametrize("mutant", choose_mutants([*KERNELS, *NARROW, *WITNESSES]), ids=lambda mutant: mutant.name)
def test_a_mutant_is_caught_by_the_invariant_that_it_breaks(mutant: Mutant, tmp_path: Path) -> None:
    kill = hunt(mutant, find_qemu(), tmp_path, TRIALS, 1, lambda _: None, lambda _: None)
    assert kill.fate is Fate.CAUGHT, kill
    assert set(kill.by) <= set(mutant.caught_by)
    assert (tmp_path / kill.evidence).is_dir()
