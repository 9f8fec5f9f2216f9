# SPDX-License-Identifier: GPL-2.0-or-later
"""The way in: arguments to a command, errors to one sentence and an exit status."""

import os
import re
import signal
import sys
import traceback
from typing import Annotated, Final, NoReturn

import typer
from typer.core import TyperGroup

from lab import __version__
from lab.cli.app import INTERRUPTED, LAB_FAULT, USAGE, Interrupted, complain
from lab.cli.deferred import Deferred, LightGroup, clear_flags
from lab.errors import HostError, LabError, UsageError, tell_nearest
from lab.host.paths import is_utf8, show_bytes

#: In the order in which they are listed: where each is, and the first line of its help.
COMMANDS: Final = {
    "doctor": ("build:doctor", "Say what this host can do, and how to mend what it lacks."),
    "build": ("build:build", "Build what guests are made of, or find it in the cache."),
    "trial": ("trials:trial", "Run one trial: exit 0 PASS, 1 FAIL, 3 INVALID, 4 ERROR."),
    "judge": ("trials:judge", "Judge a kept trial again, without QEMU; exit as `lab trial` does."),
    "explain": (
        "replays:explain",
        "Tell the story of one trial, its threads side by side, and what became of each NMI.",
    ),
    "replay": (
        "replays:replay",
        "Run a kept trial again with the same images, plan and holds: exit 0 when each ended the same way, 1 when not.",
    ),
    "minimise": (
        "replays:minimise",
        "Make a failing trial as small as it gets: exit 0 when a scenario that still fails is left, 1 when not.",
    ),
    "bisect": (
        "bisect:bisect",
        "Find the commit that broke a scenario by git bisect: exit 0 found, 3 when it cannot be told, 4 aborted.",
    ),
    "run": ("runs:run", "Run a campaign: exit 0 when every mechanism did what is expected of it, 1 when not."),
    "report": ("runs:report", "Write the page of a run, of a campaign or of a fresh host again."),
    "serve": ("serve:serve", "Serve the page of a run or campaign, written again as trials end, until Ctrl-C."),
    "compare": (
        "compare:compare",
        "Say what changed between two runs or campaigns: exit 0 nothing, 1 something, 3 too few trials to tell.",
    ),
    "export": (
        "export:export",
        "Write trials as JUnit XML, KTAP, CSV, KCIDB, Parquet or Chrome trace events, for other programs to read.",
    ),
    "mail": (
        "mail:mail",
        "Tell a run or campaign as plain text of 72 columns for a kernel list: tested, seen, reproducers, limits.",
    ),
    "sweep": (
        "sweep:sweep",
        (
            "Send an NMI at every place of a load:"
            " exit 0 all tried and clean, 1 something broke, 3 not all could be tried."
        ),
    ),
    "sound": (
        "sound:sound",
        "Run trials of all cells that docs/sound.md holds to be sound: exit 0 when the list bears up, 1 when not.",
    ),
    "mutants": (
        "mutants:mutants",
        "Try each mutant until it is caught: exit 0 when all were, 1 when one was not, 4 when the lab failed.",
    ),
    "ucode": ("ucode:ucode", "Make an Intel microcode file by name, good or malformed, or list those that there are."),
    "bench": ("runs:bench", "Measure boot, trials, the observer's price and sizes on this host; fails nothing."),
    "scenarios": ("lists:scenarios", "List the scenarios of this project."),
    "mechanisms": ("lists:mechanisms", "List the mechanisms there are."),
    "landmarks": (
        "landmarks:landmarks",
        "Say which landmarks a kernel has, and what each wait region holds and why; nothing is booted.",
    ),
    "campaign": ("campaign:campaign", "Run many trials over a night, and lose none."),
}
#: The program's name, by which a shell's completion calls it.
NAME: Final = "lab"
#: How typer refuses a value of an option that takes one of several.
_ONE_OF: Final = re.compile(r"'(?P<given>[^']*)' is not one of (?P<known>.*)")
_QUOTED: Final = re.compile(r"'([^']*)'")


def _tell_version(asked: bool) -> None:
    if asked:
        sys.stdout.write(f"{NAME} {__version__}\n")
        raise typer.Exit


def introduce(
    context: typer.Context,
    version: Annotated[  # noqa: ARG001 -- its callback answers it
        bool, typer.Option("--version", help="Show the version and exit.", callback=_tell_version, is_eager=True)
    ] = False,
) -> None:
    """Boot SMT guests, update their microcode under NMIs, and judge what was seen."""
    if context.invoked_subcommand is None:
        sys.stdout.write(f"{context.get_help()}\n")
        raise typer.Exit(USAGE)


def make_group() -> TyperGroup:
    """Return the whole command line, of which no command is loaded yet."""
    app = typer.Typer(cls=LightGroup, rich_markup_mode=None, pretty_exceptions_enable=False)
    app.callback(cls=LightGroup, invoke_without_command=True)(introduce)
    group = typer.main.get_command(app)
    assert isinstance(group, TyperGroup)
    clear_flags(group.params)
    for name, (where, summary) in COMMANDS.items():
        group.add_command(Deferred(name, f"lab.cli.{where}", summary))
    return group


app: Final = make_group()


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
        code = _run_command()
    except KeyboardInterrupt:
        # One more, while what the last one ended was being told.
        code = INTERRUPTED
    # Python gives the signal back to the system on its way out, and yet another Ctrl-C would kill it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.exit(code)


def _tell_usage(said: str) -> str:
    """Return what typer says is wrong, with the value that was meant where a named one is near."""
    # Typer lists choices on lines of their own.
    said = " ".join(said.replace("Value error, ", "").split())
    found = _ONE_OF.search(said)
    near = tell_nearest(found["given"], _QUOTED.findall(found["known"])) if found else ""
    return f"{said.rstrip('.')}{near}" if near else said


def _run_command() -> int:
    """Run the command that was asked for, and return the status to exit with."""
    try:
        _check_words(sys.argv[1:])
        status = app(prog_name=NAME, standalone_mode=False)
        code = status if isinstance(status, int) else 0
        if code == INTERRUPTED:
            # Typer has taken the KeyboardInterrupt, and says nothing.
            complain("interrupted", INTERRUPTED)
    except (UsageError, HostError) as error:
        code = complain(str(error), USAGE)
    except LabError as error:
        code = complain(str(error), LAB_FAULT)
    except typer.TyperException as error:
        code = complain(_tell_usage(error.format_message()), USAGE)
    except Interrupted as interrupt:
        code = complain(f"interrupted: {interrupt}", INTERRUPTED)
    except (KeyboardInterrupt, typer.Abort):
        code = complain("interrupted", INTERRUPTED)
    except BrokenPipeError:
        # The reader has gone; nothing more can be told, and flushing at exit must not try.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = LAB_FAULT
    except OSError as error:
        where = f"'{error.filename}': " if error.filename else ""
        code = complain(f"{where}{error.strerror or error}", USAGE)
    except Exception:
        # A defect of the lab. Left to Python it would end with status 1, which says that the kernel failed.
        traceback.print_exc()
        code = LAB_FAULT
    return code
