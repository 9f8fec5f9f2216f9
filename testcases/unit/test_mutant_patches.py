# SPDX-License-Identifier: GPL-2.0-or-later
"""What a mutant's patch says of itself, and what one trial shows of it."""

import subprocess
from pathlib import Path

import pytest

from lab.build.kernel import find_recipe
from lab.build.mutant_list import MUTANTS, choose_mutants, find_patch, list_mutants, read_mutants
from lab.build.observer import NAME, build_observer
from lab.errors import BuildError, UsageError
from lab.expected.expect import expect
from lab.expected.lab_mutants import LAB_MUTANTS
from lab.expected.mutant import Mutant, Subject, parse_mutant
from lab.host.paths import IMAGES
from lab.judge.judging import INVARIANTS
from lab.mechanisms.mechanism import Expectation
from lab.model.qemu import MAX_LEVEL, MIN_LEVEL
from lab.model.scenario import Scenario
from lab.model.verdict import Outcome

PATCHED = read_mutants()
MESSAGE = """Subject: [PATCH] x86/microcode: Break it

Breaks: it
Caught-by: quiet, harmless
Scenario: mechanism = "nmi-self"; nmis = 3
Signed-off-by: x
---
Breaks: what stands below is no trailer
"""


def of_subject(subject: Subject) -> list[Mutant]:
    return [mutant for mutant in PATCHED if mutant.subject is subject]


def test_a_message_says_what_it_breaks() -> None:
    mutant = parse_mutant(MESSAGE, "one", Subject.KERNEL)
    assert (mutant.base, mutant.breaks, mutant.caught_by) == ("linux-6.1", "it", ("quiet", "harmless"))
    assert mutant.scenario == Scenario(mechanism="nmi-self", nmis=3)
    assert mutant.ends_in is Outcome.FAIL
    assert parse_mutant(MESSAGE, "one", Subject.OBSERVER).ends_in is Outcome.INVALID
    assert mutant.least_interface == MIN_LEVEL
    newer = MESSAGE.replace("Signed-off", "Least-interface: 4\nSigned-off")
    assert parse_mutant(newer, "one", Subject.KERNEL).least_interface == 4
    witness = MESSAGE.replace("Signed-off", "Ends-in: INVALID\nSigned-off")
    assert parse_mutant(witness, "one", Subject.KERNEL).ends_in is Outcome.INVALID


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("Breaks: it\n", "", "mutant 'one': trailer 'Breaks' is missing"),
        ("Caught-by: quiet, harmless\n", "", "trailer 'Caught-by' is missing"),
        ("Breaks: it\n", "Breaks: it\nBreaks: that\n", "trailer 'Breaks' is there twice"),
        ("Signed-off", "Least-interface: 8\nSigned-off", "trailer 'Least-interface' is '8': allowed is 1 to 7"),
        ("nmis = 3", "nmis = -3", "mutant one': nmis is -3: allowed is"),
        ("nmi-self", "nmi-sefl", "key 'mechanism' is 'nmi-sefl'"),
        ("Signed-off", "Ends-in: FAIL\nSigned-off", "trailer 'Ends-in' is 'FAIL': allowed is INVALID"),
    ],
)
def test_a_message_that_does_not_is_refused(old: str, new: str, told: str) -> None:
    with pytest.raises(UsageError) as error:
        parse_mutant(MESSAGE.replace(old, new), "one", Subject.KERNEL)
    assert told in str(error.value)


def test_a_name_that_could_choose_a_path_is_refused() -> None:
    with pytest.raises(UsageError, match="small letters, digits and single dashes"):
        parse_mutant(MESSAGE, "../one", Subject.KERNEL)


@pytest.mark.parametrize("mutant", list_mutants(), ids=lambda mutant: mutant.name)
def test_a_mutant_is_tried_where_the_kernel_is_sound_and_names_what_there_is(mutant: Mutant) -> None:
    """Otherwise its fate would say nothing of what it breaks."""
    assert set(mutant.caught_by) <= set(INVARIANTS)
    assert expect(mutant.scenario).kind is Expectation.CLEAN


def test_every_invariant_of_a_kernel_has_a_mutant_that_breaks_it() -> None:
    of_kernels = {name for mutant in PATCHED if mutant.ends_in is Outcome.FAIL for name in mutant.caught_by}
    of_witnesses = {name for mutant in list_mutants() if mutant.ends_in is Outcome.INVALID for name in mutant.caught_by}
    # Neither is required: mainline itself does not hold them.
    assert set(INVARIANTS) - of_kernels - of_witnesses == {"still", "nmis-serviced"}


def test_every_patch_is_a_mutant() -> None:
    there = {path.stem for path in MUTANTS.rglob("*.patch")}
    assert there == {mutant.name for mutant in PATCHED}
    assert {mutant.subject for mutant in LAB_MUTANTS} == {Subject.LAB}


@pytest.mark.parametrize(
    "mutant", [each for each in PATCHED if each.subject is Subject.OBSERVER], ids=lambda each: each.name
)
@pytest.mark.parametrize("level", range(MIN_LEVEL, MAX_LEVEL + 1))
def test_an_observer_with_a_mutant_in_compiles(mutant: Mutant, level: int) -> None:
    folder = build_observer(lambda _: None, level, find_patch(mutant))
    assert sorted(path.name for path in folder.iterdir()) == ["SHA256SUMS", NAME]
    assert (folder / NAME).read_bytes() != (build_observer(lambda _: None, level) / NAME).read_bytes()


def test_a_patch_that_does_not_apply_is_named(tmp_path: Path) -> None:
    patch = tmp_path / "none.patch"
    patch.write_text("--- a/ring.c\n+++ b/ring.c\n@@ -1 +1 @@\n-not there\n+anything\n")
    with pytest.raises(BuildError, match=r"observer: .*FAILED"):
        build_observer(lambda _: None, MIN_LEVEL, patch)
    assert not (IMAGES / "observer" / "patched").exists()


def test_an_unknown_mutant_is_refused_with_those_there_are() -> None:
    with pytest.raises(UsageError, match=r"mutant 'x' is unknown: there are .*updates-twice"):
        choose_mutants(["x"])
    assert [each.name for each in choose_mutants(["updates-twice", "updates-twice"])] == ["updates-twice"]
    assert choose_mutants([]) == list_mutants()


@pytest.mark.parametrize(
    "mutant", [each for each in PATCHED if each.subject is Subject.KERNEL], ids=lambda each: each.name
)
def test_a_kernels_mutant_touches_what_its_series_made(mutant: Mutant) -> None:
    """That it applies shows when it is built; here, that git takes its paths for those of the kernel's tree."""
    command = ["git", "apply", "--numstat", str(find_patch(mutant))]
    listed = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout
    assert all(line.split("\t")[2].startswith("arch/x86/") for line in listed.splitlines())
    assert find_recipe(mutant.base, print).source.is_file()
