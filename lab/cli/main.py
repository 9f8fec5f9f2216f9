# SPDX-License-Identifier: GPL-2.0-or-later
"""The way in: arguments to a command, errors to one sentence and an exit status."""

import os
import signal
import sys
import traceback
from typing import NoReturn

import typer

from lab.cli.app import INTERRUPTED, LAB_FAULT, USAGE, Interrupted, complain
from lab.cli.build import build, doctor
from lab.cli.campaign import campaign
from lab.cli.landmarks import landmarks
from lab.cli.lists import mechanisms, scenarios
from lab.cli.mutants import mutants
from lab.cli.replays import explain, minimise, replay
from lab.cli.runs import bench, report, run
from lab.cli.sound import sound
from lab.cli.sweep import sweep
from lab.cli.trials import judge, trial
from lab.cli.ucode import ucode
from lab.errors import HostError, LabError, UsageError
from lab.host.paths import is_utf8, show_bytes

#: In the order in which they are listed.
COMMANDS = (
    doctor,
    build,
    trial,
    judge,
    explain,
    replay,
    minimise,
    run,
    report,
    sweep,
    sound,
    mutants,
    ucode,
    bench,
    scenarios,
    mechanisms,
    landmarks,
)

app = typer.Typer(
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
)
for command in COMMANDS:
    app.command()(command)
app.add_typer(campaign, name="campaign", help="Run many trials over a night, and lose none.")


@app.callback(invoke_without_command=True)
def introduce(context: typer.Context) -> None:
    """Boot SMT guests, update their microcode under NMIs, and judge what was seen."""
    if context.invoked_subcommand is None:
        sys.stdout.write(f"{context.get_help()}\n")
        raise typer.Exit(USAGE)


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


def _run_command() -> int:
    """Run the command that was asked for, and return the status to exit with."""
    try:
        _check_words(sys.argv[1:])
        status = app(standalone_mode=False)
        code = status if isinstance(status, int) else 0
        if code == INTERRUPTED:
            # Typer has taken the KeyboardInterrupt, and says nothing.
            complain("interrupted", INTERRUPTED)
    except (UsageError, HostError) as error:
        code = complain(str(error), USAGE)
    except LabError as error:
        code = complain(str(error), LAB_FAULT)
    except typer.TyperException as error:
        code = complain(error.format_message().replace("Value error, ", ""), USAGE)
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
