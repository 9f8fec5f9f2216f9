# SPDX-License-Identifier: GPL-2.0-or-later
"""What all commands share: common options, and how an answer is printed."""

import secrets
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import msgspec
import typer

from lab.build.qemu import NAME, VARIABLE
from lab.errors import UsageError
from lab.guest.dump import MAX_DUMP_MIB
from lab.mechanisms.table import MECHANISMS
from lab.model.plan import MAX_SEED
from lab.model.verdict import EXIT_STATUS, TrialRecord, Verdict
from lab.report.text import clean

if TYPE_CHECKING:
    from rich.console import Console

USAGE = 2
LAB_FAULT = 4
INTERRUPTED = 130
#: Of tables in a file or pipe, where no terminal says how wide it is.
LOG_WIDTH = 160

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
QemuOption = Annotated[
    Path | None,
    typer.Option("--qemu", metavar="PATH", help=f"run guests on this QEMU (default: ${VARIABLE}, or {NAME} on PATH)"),
]
OutOption = Annotated[Path, typer.Option(help="folder for the results, new or empty")]
_DUMP = typer.Option(
    "--dump-memory",
    metavar="MIB",
    min=0,
    max=MAX_DUMP_MIB,
    help="keep the memory of a guest that stops answering, compressed, up to so many MiB (0: none)",
)
DumpOption = Annotated[int, _DUMP]
DumpLimitOption = Annotated[int | None, _DUMP]
JsonOption = Annotated[bool, typer.Option("--json", help="print one JSON object")]


class Interrupted(Exception):
    """The user ended it; the text says what is left of it."""


def out() -> "Console":
    """Return what tables and text are printed with."""
    # Here and below: what only an answer needs is no part of the start-up.
    from rich.console import Console

    # Text from guests must not be taken for markup, nor numbers painted.
    width = None if sys.stdout.isatty() else LOG_WIDTH
    return Console(markup=False, highlight=False, width=width)


def print_json(value: object) -> None:
    """Print one value for a machine, on one line."""
    sys.stdout.write(msgspec.json.encode(value).decode() + "\n")


def print_text(line: str) -> None:
    """Print one line for a person, as long as it is."""
    sys.stdout.write(f"{clean(line)}\n")


def check_seed(seed: int | None) -> int:
    """Return the seed that was given, or draw one.

    :raise UsageError: it is out of its range
    """
    if seed is None:
        return secrets.randbelow(2**32)
    if not 0 <= seed <= MAX_SEED:
        raise UsageError(f"seed is {seed}: allowed is 0 to {MAX_SEED}")
    return seed


def tell_trial(verdict: Verdict, record: TrialRecord, as_json: bool) -> NoReturn:
    """Print a trial's verdict, and end with the status of its outcome."""
    from lab.cli import present

    if as_json:
        print_json(present.describe_trial(verdict, record))
    else:
        out().print(present.make_trial_view(verdict, record))
    raise typer.Exit(EXIT_STATUS[verdict.outcome])


def complain(text: str, status: int) -> int:
    """Say on standard error what is wrong, and return the status to exit with."""
    lines = [clean(line) for line in text.splitlines()] or ["failed"]
    width = shutil.get_terminal_size().columns
    sys.stderr.write(f"lab: {lines[0]}\n" + "".join(f"  {line[: 4 * width]}\n" for line in lines[1:]))
    return status
