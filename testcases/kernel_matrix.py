# SPDX-License-Identifier: GPL-2.0-or-later
"""Kernels as people build them: each source with each set of settings is judged as what it is.

``make test-kernels`` runs it; ``make test`` does not, since each of its kernels takes minutes to build. Without NMIs no
load may be accused; with NMIs the rendezvous before 6.7 must be caught, and the one since must not be accused.

The sources are Debian's, as the lab finds them for its own kernels.
"""

import functools
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.build.archive import open_archive, read_table
from lab.build.cache import cached, make_key
from lab.build.images import ImageSet
from lab.build.kernel import ANY_CONFIG, DISTRIBUTION_CONFIG, Recipe, build_recipe
from lab.build.kernel_source import find_source
from lab.build.qemu import find_qemu
from lab.expected.expect import expect
from lab.expected.tally import weigh_mechanism
from lab.host.paths import IMAGES
from lab.mechanisms.table import mechanisms_of
from lab.model.plan import draw_plan
from lab.model.scenario import Scenario
from lab.model.verdict import Outcome, TrialRecord
from lab.trial.given import GivenKernel, build_around, take_kernel
from lab.trial.pool import WarmGuest
from lab.trial.record import keep_trial

VARIANTS = IMAGES / "kernels" / "variants"
VERSIONS = ("5.10", "6.1", "6.12", "7.3")
#: By name, the folder with its settings, and the compiler.
SETTINGS = {
    "lab": (ANY_CONFIG.parent, "gcc"),
    "mitigations": (VARIANTS / "mitigations", "gcc"),
    "debug": (VARIANTS / "debug", "gcc"),
    "clang": (ANY_CONFIG.parent, "clang"),
}
#: The configuration of Debian's own packages, as they ship it but for late loading, modules and debug information.
DISTRIBUTION = "distribution"
CELLS = [(version, settings) for version in VERSIONS for settings in (*SETTINGS, DISTRIBUTION)]
#: Trials that show something, of each cell without NMIs and with them.
SHOWN = 20
#: On a crowded host some are INVALID; so many tries, and the host is not fit.
MAX_TRIES = 60
NMIS = 8

pytestmark = pytest.mark.timeout(3 * 3600)


@functools.cache
def find_cell(version: str, settings: str) -> tuple[GivenKernel, ImageSet]:
    """Build one kernel, or find it in the cache, and take it as a user's."""
    source = find_source(f"linux-{version}", print)
    # With the lab's settings it is the kernel that the other tests call unpatched.
    tree = f"linux-{version}" if settings == "lab" else f"matrix-{version}-{settings}"
    if settings == DISTRIBUTION:
        recipe = Recipe(DISTRIBUTION_CONFIG.parent, source, tree=tree, base=find_config(version))
    else:
        folder, compiler = SETTINGS[settings]
        common = None if folder == ANY_CONFIG.parent else ANY_CONFIG
        recipe = Recipe(folder, source, common, tree=tree, compiler=compiler)
    built = build_recipe(recipe, print)
    given = take_kernel(built.image, built.vmlinux)
    return given, build_around(given, print, find_qemu())


def find_config(version: str) -> Path:
    """Fetch the configuration of Debian's package of a version, or find it in the cache."""
    table = read_table()
    package, release = f"linux-config-{version}", table.source[f"linux-{version}"].release

    def fetch(target: Path) -> None:
        with open_archive(table, release, print) as archive, tempfile.TemporaryDirectory() as scratch:
            archive.update()
            (deb,) = archive.fetch([archive.find(package)], with_dependencies=False)
            archive.unpack(deb, Path(scratch))
            (config,) = Path(scratch).rglob("config.amd64_none_amd64*")
            shutil.copyfile(config, target / "config")

    return cached("kernel-config", make_key(package, release), fetch, print) / "config"


def run_trials(given: GivenKernel, images: ImageSet, scenario: Scenario, folder: Path) -> Iterator[TrialRecord]:
    """Yield the records of trials, each with a seed of its own, until enough have shown something."""
    shown = 0
    with WarmGuest(images, given.kernel, scenario.boot, print) as guest:
        for seed in range(1, MAX_TRIES + 1):
            kept = guest.run_trial(scenario, draw_plan(scenario, seed))
            _, record = keep_trial(folder / f"trial-{seed:03}", kept, seed, f"trial-{seed:03}")
            yield record
            shown += record.outcome is not Outcome.INVALID
            if shown == SHOWN:
                return
    pytest.fail(f"{shown} of {MAX_TRIES} trials showed anything: the host is not fit")


@pytest.mark.parametrize("nmis", [0, NMIS])
@pytest.mark.parametrize(("version", "settings"), CELLS)
def test_each_kernel_is_judged_as_what_it_is(version: str, settings: str, nmis: int, tmp_path: Path) -> None:
    given, images = find_cell(version, settings)
    (mechanism,) = mechanisms_of(given.base.name)
    scenario = Scenario(mechanism=mechanism.name, nmis=nmis)
    scenario.check()
    records = [each for each in run_trials(given, images, scenario, tmp_path) if each.outcome is not Outcome.INVALID]
    accused = [each.reason for each in records if each.outcome is not Outcome.PASS]
    if not nmis:
        assert accused == []
    result = weigh_mechanism(mechanism.name, expect(scenario), records)
    assert result.met, (result.reason, accused)
