# SPDX-License-Identifier: GPL-2.0-or-later
"""Gives every pytest suite the lab's fixtures, which run trials, and the lab's options, which say how many.

``guest`` is a warm guest of one pytest worker. ``guests`` gives one warm guest of each machine. ``trial`` runs one late
load in the guest, judges the load and keeps the evidence. There may be many workers: a guest runs only when the host's
vCPU budget admits the guest (lab.host.admission). ``--lab-trials`` and ``--lab-for`` decide how many trials a case
runs. They have an effect on cases that draw their seeds from ``seeds``, or that use ``storm``
(lab.pytest_plugin.effort).

``--lab-kernel`` and ``--lab-vmlinux`` bring a kernel of the user's; ``mechanism`` names the one that it has, so that
``storm(mechanism, trials=20)`` is a case for any kernel.

pytest loads this file in every suite of an environment with an installed lab. So only fixtures import the code that
runs guests, and the hooks ignore a case without these fixtures.
"""

import contextlib
import functools
import logging
import os
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from lab.build.qemu import VARIABLE, find_qemu
from lab.errors import UsageError
from lab.guest.text import clean_text
from lab.pytest_plugin.case_report import CaseTrial, format_trials, list_properties
from lab.pytest_plugin.effort import SEED, TIME, TRIALS, Effort, read_effort
from lab.pytest_plugin.tried import Seeds, Storm, Trial, Tried

if TYPE_CHECKING:
    from lab.build.images import ImageSet
    from lab.kernelimage.vmlinux import Kernel
    from lab.model.boot import Boot
    from lab.trial.given import GivenKernel
    from lab.trial.pool import WarmGuest

#: One in ten of a few trials is less than one trial. So this many INVALID trials may be an accident.
FEW_INVALID = 2
#: Option of pytest's command line.
QEMU = "--lab-qemu"
#: What a suite without a kernel of its own tries.
MAINLINE = "upstream"
KERNEL, VMLINUX = "--lab-kernel", "--lab-vmlinux"

#: Raw files of the machine take some MiB for each trial. Thousands of trials would fill a disk, and the evidence has
#: the same facts.
MAX_WHOLE = 100
#: Of one worker: an idle guest takes two hundredths of a core for its clock, and a boot takes some seconds of one.
MAX_WARM = 4

_TRIALS = pytest.StashKey[list[CaseTrial]]()
_EFFORT = pytest.StashKey[Effort]()
_OWN = pytest.StashKey["GivenKernel | None"]()
_LOG = logging.getLogger(__name__)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options for the effort of a suite, and for the QEMU."""
    group = parser.getgroup("lab", "which QEMU guests run on, and how hard cases push (fixtures seeds and storm)")
    group.addoption(QEMU, metavar="PATH", help=f"run all guests on this QEMU (default: ${VARIABLE}, or that on PATH)")
    group.addoption(KERNEL, metavar="FILE", help="boot this bzImage for the mechanism of its kind; needs --lab-vmlinux")
    group.addoption(VMLINUX, metavar="FILE", help="what --lab-kernel was linked from: says what is where in it")
    group.addoption(SEED, metavar="N", help="draw the seeds from N; without it they are 0, 1, 2 and so on")
    group.addoption(TRIALS, metavar="N", help="run so many trials in each case; with --lab-for, at most")
    group.addoption(TIME, metavar="TIME", help="run trials for so long, all cases together: 90s, 10m, 8h, 2d")


def pytest_configure(config: pytest.Config) -> None:
    """Refuse wrong options before any case runs."""
    try:
        if config.getoption(QEMU) is not None:
            # The lab's commands that cases run also take the QEMU from this variable.
            os.environ[VARIABLE] = str(find_qemu(Path(config.getoption(QEMU))).path)
        config.stash[_OWN] = _take_own(config)
        config.stash[_EFFORT] = read_effort(*(config.getoption(name) for name in (SEED, TRIALS, TIME)))
    except UsageError as error:
        raise pytest.UsageError(str(error)) from None


def _take_own(config: pytest.Config) -> "GivenKernel | None":
    """Return the kernel that the command line brings.

    :raise UsageError: one of its files is missing, or they are no kernel fit for trials
    """
    image, vmlinux = config.getoption(KERNEL), config.getoption(VMLINUX)
    if image is None and vmlinux is None:
        return None
    if image is None or vmlinux is None:
        raise UsageError(f"{KERNEL} and {VMLINUX} go together: the one is booted, the other tells what is where in it")
    from lab.trial.given import take_kernel

    return take_kernel(Path(image), Path(vmlinux))


def pytest_collection_finish(session: pytest.Session) -> None:
    """Divide the time among the cases, and extend the timeout of each case by its share."""
    config = session.config
    cases = [item for item in session.items if "seeds" in getattr(item, "fixturenames", ())]
    workers = int(getattr(config, "workerinput", {}).get("workercount", 1))
    effort = config.stash[_EFFORT] = config.stash[_EFFORT].share(len(cases), workers)
    if not config.pluginmanager.hasplugin("timeout"):
        return
    for item in cases:
        allowed_s = _find_timeout_s(item)
        if allowed_s and effort.longer_s:
            item.add_marker(pytest.mark.timeout(allowed_s + effort.longer_s), append=False)


def _find_timeout_s(item: pytest.Item) -> float:
    """Return the timeout of a case with its usual number of trials, in seconds; 0 for no timeout."""
    marker = item.get_closest_marker("timeout")
    if marker is not None and marker.args:
        return float(marker.args[0])
    given = item.config.getoption("timeout")
    return float((item.config.getini("timeout") if given is None else given) or 0)


def _tell(step: str) -> None:
    _LOG.info("%s", step)


@pytest.fixture(scope="session")
def own_kernel(request: pytest.FixtureRequest) -> "GivenKernel | None":
    """The kernel of ``--lab-kernel`` and ``--lab-vmlinux``, None without them."""
    return request.config.stash[_OWN]


@pytest.fixture(scope="session")
def mechanism(own_kernel: "GivenKernel | None") -> str:
    """The mechanism of the kernel that the command line brings; without one mainline's, ``upstream``."""
    from lab.mechanisms.table import mechanisms_of

    if own_kernel is None:
        return MAINLINE
    there = [each.name for each in mechanisms_of(own_kernel.base.name)]
    if len(there) != 1:
        pytest.fail(f"this kernel has several mechanisms, so cases have to name one: {', '.join(there)}", pytrace=False)
    return there[0]


@pytest.fixture(scope="session")
def images_of(own_kernel: "GivenKernel | None") -> "Callable[[str], ImageSet]":
    """Return the images of a base's kernel.

    The lab builds the images for the QEMU of this run, or finds them in the cache.
    """
    from lab.build.images import build_images
    from lab.mechanisms.base import BASES
    from lab.trial.given import build_around

    @functools.cache
    def find(base: str) -> "ImageSet":
        if own_kernel is not None and own_kernel.base.name == base:
            return build_around(own_kernel, _tell, find_qemu())
        if base not in [each.name for each in BASES]:
            pytest.fail(f"kernels of the kind '{base}' are brought with {KERNEL} and {VMLINUX}", pytrace=False)
        return build_images(_tell, find_qemu(), base)

    return find


@pytest.fixture(scope="session")
def kernel_of(images_of: "Callable[[str], ImageSet]") -> "Callable[[str], Kernel]":
    """Return the functions and code of a base's kernel."""
    from lab.kernelimage.vmlinux import read_kernel

    return functools.cache(lambda base: read_kernel(images_of(base).vmlinux))


@pytest.fixture(scope="session")
def guests(
    images_of: "Callable[[str], ImageSet]", kernel_of: "Callable[[str], Kernel]"
) -> "Iterator[Callable[[Boot], WarmGuest]]":
    """Return a warm guest of a machine. A machine whose guest does not run boots one with its next trial."""
    from lab.trial.pool import WarmGuest

    with contextlib.ExitStack() as stack:
        warm: dict[Boot, WarmGuest] = {}

        def find(boot: "Boot") -> WarmGuest:
            found = warm.pop(boot, None)
            if found is None:
                found = stack.enter_context(WarmGuest(images_of(boot.base), kernel_of(boot.base), boot, _tell))
            # The one that was asked for last comes last.
            warm[boot] = found
            for idle in [*warm][:-MAX_WARM]:
                warm[idle].retire()
            return found

        yield find


@pytest.fixture(scope="session")
def guest(guests: "Callable[[Boot], WarmGuest]") -> "WarmGuest":
    """The warm guest of the default kernel, with two cores of two threads each."""
    from lab.build.kernel import DEFAULT_BASE
    from lab.model.boot import Boot
    from lab.model.topology import Topology

    return guests(Boot(base=DEFAULT_BASE, topology=Topology(1, 2, 2)))


@pytest.fixture
def trial(guests: "Callable[[Boot], WarmGuest]", tmp_path: Path, request: pytest.FixtureRequest) -> Trial:
    """Run one trial: ``trial("nmi-self", seed=3, nmis=8)``; further names are fields of lab.model.scenario.Scenario."""
    from lab.model.plan import draw_plan
    from lab.model.scenario import Scenario
    from lab.trial.record import keep_trial

    trials: list[CaseTrial] = []
    request.node.stash[_TRIALS] = trials

    def run(mechanism: str, *, seed: int = 1, **fields: Any) -> Tried:
        scenario = Scenario(mechanism=mechanism, **fields)
        scenario.check()
        plan = draw_plan(scenario, seed)
        folder = tmp_path / f"trial-{len(trials):03}"
        trials.append(CaseTrial(scenario=scenario, seed=seed, folder=folder))
        whole = len(trials) <= MAX_WHOLE
        kept = guests(scenario.boot).run_trial(scenario, plan, keep_files=whole)
        _, record = keep_trial(folder, kept, len(trials), str(folder))
        trials[-1] = CaseTrial(scenario=scenario, seed=seed, folder=folder, record=record)
        return Tried(record=record, folder=folder)

    return run


@pytest.fixture
def seeds(request: pytest.FixtureRequest) -> Seeds:
    """Return the seeds of a case's trials: 20 seeds for ``seeds(20)``, or as many as the command line asks for."""
    return request.config.stash[_EFFORT].draw


@pytest.fixture
def storm(trial: Trial, seeds: Seeds) -> Storm:
    """Run the trials of a case, and assert that they meet the expectation for the mechanism in the scenario.

    ``storm("nmi-self", trials=20, nmis=8)`` runs 20 trials, or as many as the command line asks for, and returns them.
    """
    from lab.expected.expect import expect
    from lab.expected.tally import INVALID_ONE_IN, weigh_mechanism
    from lab.model.scenario import Scenario
    from lab.model.verdict import Outcome

    def run(mechanism: str, *, trials: int, **fields: Any) -> list[Tried]:
        tries = [trial(mechanism, seed=seed, **fields) for seed in seeds(trials)]
        shown = [each.record for each in tries if each.record.outcome is not Outcome.INVALID]
        invalid = [each.record.reason for each in tries if each.record.outcome is Outcome.INVALID]
        assert len(invalid) <= max(FEW_INVALID, len(tries) // INVALID_ONE_IN), invalid
        assert shown, f"all {len(tries)} trials were INVALID, so nothing was shown: {invalid[0]}"
        expected = expect(Scenario(mechanism=mechanism, **fields))
        result = weigh_mechanism(mechanism, expected, shown)
        assert result.met, (result.reason, [each.reason for each in shown if each.outcome is not Outcome.PASS])
        return tries

    return run


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Report the trials of a case. Clean all text from a guest before the text reaches the terminal or a file."""
    report = yield
    trials = item.stash.get(_TRIALS, [])
    if not trials:
        return report
    if call.when == "call":
        properties = [*list_properties(trials)]
        item.user_properties += properties
        report.user_properties += properties
        if report.failed:
            report.sections.append(("trials", format_trials(trials)))
    report.sections = [(name, clean_text(text)) for name, text in report.sections]
    if report.failed:
        said = f"{report.longrepr}\n{getattr(getattr(report.longrepr, 'reprcrash', None), 'message', '')}"
        if clean_text(said) != said:
            report.longrepr = clean_text(str(report.longrepr))
    return report
