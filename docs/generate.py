# SPDX-License-Identifier: GPL-2.0-or-later
"""Write what docs/ takes from the lab itself: command line, scenarios, tables of sound cells, a picture.

Run it from the checkout: ``.venv/bin/python docs/generate.py``. ``--picture FOLDER`` draws the trial in FOLDER as well.
Tests hold the pages equal to what this writes.
"""

import argparse
import contextlib
import io
import os
import re
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

from lab.cli import main as run_lab
from lab.expected.cells import parse_cells
from lab.expected.sound_page import replace_tables
from lab.host.paths import SOUND
from lab.model.axes_page import format_page as format_scenario_page
from lab.report.picture import draw_picture

DOCS = Path(__file__).resolve().parent
COMMAND_LINE = DOCS / "reference" / "command-line.md"
SCENARIO = DOCS / "reference" / "scenario.md"
SOUND_PAGE = DOCS / "sound.md"
PICTURE = DOCS / "pictures" / "stop-machine-fail.svg"

#: Help is laid out for a terminal of this width, whoever writes the page.
COLUMNS = "80"
HEAD = """\
<!-- Written by docs/generate.py from the commands themselves. Change the help of a command, then run `make docs`. -->

# Command line

Each section is what `lab COMMAND --help` prints. The program is `.venv/bin/lab` in a checkout.

## Exit status

| status | means |
|---|---|
| 0 | PASS, or the command did what it says |
| 1 | FAIL, or a run did not show what it must show |
| 2 | wrong usage: one sentence says what is wrong, and what is allowed |
| 3 | INVALID: the trial does not show what it was meant to show |
| 4 | ERROR: the lab or the host failed |
| 130 | interrupted; no guest is left |

`--json` prints one JSON object in place of text, on each command that has the option.
"""
#: A line of the list of commands: two blanks, the name, its first sentence.
_LISTED = re.compile(r"^  ([a-z][a-z-]*)\s{2,}\S", re.MULTILINE)


def format_command_line() -> str:
    """Return the page of the command line."""
    sections = [HEAD]
    for words, text in _list_helps(()):
        title = " ".join(("lab", *words))
        sections.append(f"## {title}\n\n```text\n{text}\n```\n")
    return "\n".join(sections)


def _list_helps(words: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], str]]:
    """Yield the help of a command, and of each command below it, in the order of the list."""
    text = _read_help(words)
    yield words, text
    for name in _LISTED.findall(text.partition("\nCommands:\n")[2]):
        yield from _list_helps((*words, name))


def _read_help(words: tuple[str, ...]) -> str:
    """Ask the command line as a user does, whatever is behind it."""
    said = io.StringIO()
    with _keep_process(), contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
        sys.argv = ["lab", *words, "--help"]
        run_lab()
    return "\n".join(line.rstrip() for line in said.getvalue().strip().splitlines())


@contextlib.contextmanager
def _keep_process() -> Iterator[None]:
    """Have the command line take this process for a program of its own, and put back what it changes."""
    words, program = sys.argv, sys.modules["__main__"]
    package = program.__package__
    # By it Typer tells 'lab' from 'python -m pytest'.
    program.__package__ = ""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        sys.argv, program.__package__ = words, package
        for number, handler in handlers.items():
            signal.signal(number, handler)


def main() -> None:
    """Write the pages, and the picture where one is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--picture", type=Path, metavar="FOLDER", help="draw the trial that is kept in FOLDER")
    asked = parser.parse_args()
    os.environ["COLUMNS"] = COLUMNS
    COMMAND_LINE.write_text(format_command_line())
    SCENARIO.write_text(format_scenario_page())
    SOUND_PAGE.write_text(replace_tables(SOUND_PAGE.read_text(), parse_cells(SOUND.read_text(), SOUND.name)))
    if asked.picture:
        PICTURE.write_text(draw_picture(asked.picture))


if __name__ == "__main__":
    main()
