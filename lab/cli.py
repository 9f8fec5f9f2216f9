# SPDX-License-Identifier: GPL-2.0-or-later
"""The command line: the one place that prints and exits."""

import contextlib
import os
import secrets
import shlex
import shutil
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, NoReturn

import msgspec
import typer
from rich.console import Console

from lab import present
from lab.axes import Axes, read_scenario, takes_axes
from lab.build.doctor import examine_host, require_qemu
from lab.build.images import ImageSet, build_images
from lab.build.initramfs import build_initramfs
from lab.build.kernel import DEFAULT_BASE, build_kernel
from lab.build.oracle import build_oracle
from lab.build.own_kernel import build_own_kernel
from lab.campaign.bench import measure
from lab.campaign.expectation import MechanismResult, weigh_run
from lab.campaign.runner import describe_run, run_trials
from lab.campaign.store import RunStore, claim_run_output, read_run
from lab.choice import build_bases, choose_scenario, choose_scenarios, take_own
from lab.errors import EvidenceError, HostError, LabError, UsageError
from lab.host.paths import SCENARIOS, is_utf8, show_bytes
from lab.judge import judge as judge_evidence
from lab.progress import open_progress
from lab.report.page import write_report
from lab.spec.base import BASES, find_base
from lab.spec.mechanisms import FIRST_CAMPAIGN, MECHANISMS
from lab.spec.plan import MAX_SEED, draw_plan
from lab.spec.scenario_file import to_words
from lab.spec.verdict import EXIT_STATUS, TrialRecord, Verdict
from lab.trial.folder import claim_trial_output, read_evidence
from lab.trial.kvm import try_kvm
from lab.trial.pool import WarmGuests
from lab.trial.record import keep_trial, make_record

USAGE = 2
LAB_FAULT = 4
INTERRUPTED = 130
#: Of tables in a file or pipe, where no terminal says how wide it is.
LOG_WIDTH = 160

DEFAULT_TRIALS = 20
app = typer.Typer(
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
)

MechanismOption = Annotated[
    str | None,
    typer.Option(
        help=f"one of {', '.join(each.name for each in MECHANISMS)} (default with --kernel: the one that it has)"
    ),
]
KernelOption = Annotated[
    Path | None, typer.Option("--kernel", metavar="BZIMAGE", help="boot this kernel of yours, with --vmlinux")
]
VmlinuxOption = Annotated[
    Path | None, typer.Option("--vmlinux", metavar="ELF", help="the vmlinux with symbols that --kernel was made of")
]
OutOption = Annotated[Path, typer.Option(help="folder for the results, new or empty")]
JsonOption = Annotated[bool, typer.Option("--json", help="print one JSON object")]


class _Interrupted(Exception):
    """The user ended it; the text says what is left of it."""


def _out() -> Console:
    # Text from guests must not be taken for markup, nor numbers painted.
    width = None if sys.stdout.isatty() else LOG_WIDTH
    return Console(markup=False, highlight=False, width=width)


def _print_json(value: object) -> None:
    sys.stdout.write(msgspec.json.encode(value).decode() + "\n")


def _check_seed(seed: int | None) -> int:
    if seed is None:
        return secrets.randbelow(2**32)
    if not 0 <= seed <= MAX_SEED:
        raise UsageError(f"seed is {seed}: allowed is 0 to {MAX_SEED}")
    return seed


@app.callback(invoke_without_command=True)
def explain(context: typer.Context) -> None:
    """Boot SMT guests, update their microcode under NMIs, and judge what was seen."""
    if context.invoked_subcommand is None:
        sys.stdout.write(f"{context.get_help()}\n")
        raise typer.Exit(USAGE)


@app.command()
def doctor(as_json: JsonOption = False) -> None:
    """Say what this host can do, and how to mend what it lacks."""
    checks = (*examine_host(), try_kvm())
    if as_json:
        _print_json({"checks": checks})
    else:
        _out().print(present.make_check_table(checks))
    raise typer.Exit(0 if all(check.ok for check in checks) else LAB_FAULT)


@app.command()
def build(
    what: Annotated[str, typer.Argument(help="kernel, initramfs, oracle or all")] = "all",
    base: Annotated[str, typer.Option(help=f"which kernel: {', '.join(each.name for each in BASES)}")] = DEFAULT_BASE,
    tree: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="build the kernel of this git tree of Linux, and leave it as it is"),
    ] = None,
    patches: Annotated[
        Path | None, typer.Option(metavar="DIR", help="with --tree: apply these on top, by series or in order of name")
    ] = None,
    config: Annotated[
        Path | None, typer.Option(metavar="FRAGMENT", help="with --tree: settings that win over the lab's own")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Build what guests are made of, or find it in the cache."""
    if tree is not None or patches is not None or config is not None:
        _build_own(what, base, tree, patches, config, as_json)
        return
    recipes: dict[str, Callable[[Callable[[str], None]], object]] = {
        "kernel": lambda tell: build_kernel(tell, base).folder,
        "initramfs": build_initramfs,
        "oracle": build_oracle,
        "all": lambda tell: build_images(tell, base),
    }
    if what not in recipes:
        raise UsageError(f"'{what}' cannot be built: there are {', '.join(recipes)}")
    find_base(base)
    with open_progress() as progress:
        built = recipes[what](progress.tell)
    parts = (
        {name: str(getattr(built, name)) for name in ("kernel", "vmlinux", "initramfs", "oracle")}
        if isinstance(built, ImageSet)
        else {what: str(built)}
    )
    if as_json:
        _print_json(parts)
        return
    for name, path in parts.items():
        _out().print(f"{name:10} {path}")


def _build_own(
    what: str, base: str, tree: Path | None, patches: Path | None, config: Path | None, as_json: bool
) -> None:
    if tree is None:
        raise UsageError(f"--{'patches' if patches is not None else 'config'} goes with --tree only")
    if base != DEFAULT_BASE:
        raise UsageError(f"--base is for the lab's own kernels: '{base}' cannot be given with --tree")
    if what != "kernel":
        raise UsageError(f"--tree is a kernel's: 'lab build kernel --tree {tree}', and not '{what}'")
    with open_progress() as progress:
        built = build_own_kernel(tree, patches, config, progress.tell)
    if as_json:
        _print_json(present.describe_own_kernel(built))
    else:
        for name, value in present.describe_own_kernel(built).items():
            _out().print(f"{name:13} {value}")


@app.command()
@takes_axes
def trial(
    axes: Axes,
    out: OutOption,
    mechanism: MechanismOption = None,
    kernel: KernelOption = None,
    vmlinux: VmlinuxOption = None,
    seed: Annotated[int | None, typer.Option(help="of the plan (default: drawn)")] = None,
    keep: Annotated[bool, typer.Option("--keep", help="keep the guest's own logs and the oracle's ring, too")] = False,
    as_json: JsonOption = False,
) -> None:
    """Run one trial: exit 0 PASS, 1 FAIL, 3 INVALID, 4 ERROR."""
    own = take_own(kernel, vmlinux)
    scenario = choose_scenario(axes, mechanism, own)
    plan = draw_plan(scenario, _check_seed(seed))
    require_qemu()
    folder = claim_trial_output(out)
    try:
        with open_progress() as progress:
            images, kernels = build_bases((scenario,), progress.tell, own)
            with WarmGuests(images, kernels, progress.tell) as guests:
                kept = guests.run_trial(scenario, plan, keep)
    except KeyboardInterrupt:
        raise _Interrupted("no guest is left, and nothing of this trial is kept") from None
    verdict, record = keep_trial(folder, kept, 1, str(folder))
    _tell_trial(verdict, record, as_json)


@app.command()
def judge(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="an evidence folder")], as_json: JsonOption = False
) -> None:
    """Judge a kept trial again, without QEMU; exit as `lab trial` does."""
    if not folder.is_dir():
        raise UsageError(f"'{folder}' is not a folder: an evidence folder is needed")
    try:
        evidence = read_evidence(folder)
    except EvidenceError as error:
        verdict = Verdict(reason=str(error))
        if as_json:
            _print_json({"outcome": verdict.outcome, "reason": verdict.reason, "evidence": str(folder)})
        else:
            _out().print(f"{verdict.outcome.value}: {present.clean(verdict.reason)}")
        raise typer.Exit(EXIT_STATUS[verdict.outcome]) from None
    verdict = judge_evidence(evidence)
    _tell_trial(verdict, make_record(0, evidence, verdict, str(folder)), as_json)


def _tell_trial(verdict: Verdict, record: TrialRecord, as_json: bool) -> NoReturn:
    if as_json:
        _print_json(present.describe_trial(verdict, record))
    else:
        _out().print(present.make_trial_view(verdict, record))
    raise typer.Exit(EXIT_STATUS[verdict.outcome])


@app.command()
@takes_axes
def run(
    axes: Axes,
    out: OutOption,
    trials: Annotated[int, typer.Option(help="of each mechanism", min=1)] = DEFAULT_TRIALS,
    mechanism: Annotated[
        list[str] | None,
        typer.Option(
            help="one of the mechanisms, may be given again, or all that the other options allow"
            f" (default: that of the scenario, or {', '.join(FIRST_CAMPAIGN)})"
        ),
    ] = None,
    kernel: KernelOption = None,
    vmlinux: VmlinuxOption = None,
    seed: Annotated[int | None, typer.Option(help="of the whole run (default: drawn)")] = None,
    replace: Annotated[bool, typer.Option("--replace", help="remove the run that the folder holds")] = False,
    as_json: JsonOption = False,
) -> None:
    """Run a campaign: exit 0 when every mechanism did what is expected of it, 1 when not."""
    own = take_own(kernel, vmlinux)
    scenarios, left_out = choose_scenarios(axes, mechanism or [], own)
    for name, why in left_out:
        sys.stderr.write(f"lab: leaving out {name}: {why}\n")
    run_seed = _check_seed(seed)
    qemu_version = require_qemu()
    folder = claim_run_output(out, replace)
    with open_progress() as progress:
        images, kernels = build_bases(scenarios, progress.tell, own)
        progress.begin(trials * len(scenarios))
        command = ("lab", *sys.argv[1:])
        booted = tuple(each.describe(qemu_version) for each in images.values())
        info = describe_run(command, scenarios, trials, run_seed, booted)
        with RunStore(folder, info, replace) as store, _page_of_what_ends(folder):
            with WarmGuests(images, kernels, progress.tell) as guests:
                ran = run_trials(guests, store, scenarios, trials, run_seed, progress.advance)
            store.finish(ran.exit_status)
            page = write_report(folder)
    _tell_run(folder, page, as_json)
    if ran.stopped:
        _complain(ran.stopped, ran.exit_status)
    raise typer.Exit(ran.exit_status)


@contextlib.contextmanager
def _page_of_what_ends(folder: Path) -> Iterator[None]:
    """Write a run's page, as far as that goes, when it is interrupted or the host fails it."""
    try:
        yield
    except KeyboardInterrupt:
        kept = "its records are kept, but no page,"
        with contextlib.suppress(LabError, OSError):
            write_report(folder)
            kept = f"{len(read_run(folder).records)} trials and their page are kept"
        raise _Interrupted(f"no guest is left; {kept} in '{folder}' (lab report {shlex.quote(str(folder))})") from None
    except LabError:
        with contextlib.suppress(LabError, OSError):
            write_report(folder)
        raise


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="a run's folder")], as_json: JsonOption = False
) -> None:
    """Write a run's page again."""
    if not folder.is_dir():
        raise UsageError(f"'{folder}' is not a folder: that of a run is needed")
    try:
        page = write_report(folder)
    except EvidenceError as error:
        raise UsageError(str(error)) from error
    _tell_run(folder, page, as_json)


def _tell_run(folder: Path, page: Path, as_json: bool) -> None:
    stored = read_run(folder)
    results: tuple[MechanismResult, ...] = weigh_run(
        {each.name: each.expected for each in stored.info.mechanisms}, stored.records
    )
    if as_json:
        _print_json(present.describe_run(stored, results, page))
        return
    out = _out()
    out.print(present.make_run_table(stored, results))
    for result in results:
        out.print(f"{result.name}: {result.reason}")
    out.print(f"report: {page}")


@app.command()
def bench(
    runs: Annotated[int, typer.Option(help="of each figure", min=3, max=100)] = 5, as_json: JsonOption = False
) -> None:
    """Measure boot, trials, the oracle's price and sizes on this host; fails nothing."""
    with open_progress() as progress:
        figures = measure(build_images(progress.tell), runs, progress.tell)
    if as_json:
        _print_json({"figures": figures})
    else:
        _out().print(present.make_bench_table(figures))


@app.command()
def scenarios(as_json: JsonOption = False) -> None:
    """List the scenarios of this repository."""
    found = [read_scenario(path) for path in sorted(SCENARIOS.glob("*.toml"))]
    if as_json:
        _print_json(
            {
                "scenarios": [
                    {"name": each.name, "summary": each.summary, "options": to_words(each.scenario)} for each in found
                ]
            }
        )
        return
    for each in found:
        _out().print(f"{each.name:34} {each.summary}")


@app.command()
def mechanisms(as_json: JsonOption = False) -> None:
    """List the mechanisms there are."""
    if as_json:
        _print_json({"mechanisms": [{"name": each.name, "summary": each.summary} for each in MECHANISMS]})
        return
    for each in MECHANISMS:
        _out().print(f"{each.name:22} {each.summary}")


def _check_words(words: list[str]) -> None:
    """Refuse what is not text, which no page or JSON could show, before anything is built for it."""
    for word in words:
        if not is_utf8(word):
            raise UsageError(f"'{show_bytes(word)}' is not UTF-8: name files and folders in UTF-8")


def main() -> NoReturn:
    """Run the command line; errors made on purpose become one sentence, and an interrupt leaves no guest."""
    # As Ctrl-C does: everything is ended and removed on the way out.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    # Text from guests may hold what a terminal's encoding cannot show.
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    try:
        _check_words(sys.argv[1:])
        status = app(standalone_mode=False)
        code = status if isinstance(status, int) else 0
        if code == INTERRUPTED:
            # Typer has taken the KeyboardInterrupt, and says nothing.
            _complain("interrupted", INTERRUPTED)
    except (UsageError, HostError) as error:
        code = _complain(str(error), USAGE)
    except LabError as error:
        code = _complain(str(error), LAB_FAULT)
    except typer.TyperException as error:
        code = _complain(error.format_message().replace("Value error, ", ""), USAGE)
    except _Interrupted as interrupt:
        code = _complain(f"interrupted: {interrupt}", INTERRUPTED)
    except (KeyboardInterrupt, typer.Abort):
        code = _complain("interrupted", INTERRUPTED)
    except BrokenPipeError:
        # The reader has gone; nothing more can be told, and flushing at exit must not try.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = LAB_FAULT
    except OSError as error:
        where = f"'{error.filename}': " if error.filename else ""
        code = _complain(f"{where}{error.strerror or error}", USAGE)
    except Exception:
        # A defect of the lab. Left to Python it would end with status 1, which says that the kernel failed.
        traceback.print_exc()
        code = LAB_FAULT
    sys.exit(code)


def _complain(text: str, status: int) -> int:
    lines = [present.clean(line) for line in text.splitlines()] or ["failed"]
    width = shutil.get_terminal_size().columns
    sys.stderr.write(f"lab: {lines[0]}\n" + "".join(f"  {line[: 4 * width]}\n" for line in lines[1:]))
    return status


if __name__ == "__main__":
    main()
