# SPDX-License-Identifier: GPL-2.0-or-later
"""The commands of the pages that boot guests, as docs/pages.py says how they are marked."""

import subprocess
import sys
from pathlib import Path

import pytest

from docs.pages import Command, list_commands, list_pages
from lab.host.paths import ROOT

pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures("images")]

LAB = (sys.executable, "-m", "lab.cli")
#: Other workers may hold the host's vCPUs, or be building.
PATIENCE_S = 600

COMMANDS = {
    str(page.relative_to(ROOT)): found
    for page in list_pages()
    if (found := [each for each in list_commands(page) if each.suite == "e2e"])
}


@pytest.mark.timeout(3_600)
@pytest.mark.parametrize("commands", COMMANDS.values(), ids=COMMANDS)
def test_the_commands_of_a_page_do_what_it_says_one_after_the_other(commands: list[Command], tmp_path: Path) -> None:
    for command in commands:
        done = subprocess.run(
            command.list_words(LAB, tmp_path), cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_S, check=False
        )
        where = f"{command.page}:{command.line}: {command.text}"
        assert done.returncode == command.status, f"{where}\n{done.stdout}\n{done.stderr}"
