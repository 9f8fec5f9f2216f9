# SPDX-License-Identifier: GPL-2.0-or-later
"""The pages: links, commands that boot nothing, and that they say of the lab what the lab says of itself."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from docs.generate import COLUMNS, COMMAND_LINE, format_command_line
from docs.pages import Command, list_anchors, list_commands, list_links, list_pages
from lab.host.paths import ROOT
from lab.judge.finding import NEEDS_ENGINE, OF_OFFLINE, REPORTED_ONLY, SHOWN_BY
from lab.judge.judging import AGREEMENT, INVARIANTS
from lab.mechanisms.table import MECHANISMS, STOCK_MECHANISMS

LAB = (sys.executable, "-m", "lab.cli")
PAGES = list_pages()
#: The outline of a first page: longer is not read.
README_LINES = (120, 150)
README_BYTES = (6_000, 8_192)

CHEAP = [each for page in PAGES for each in list_commands(page) if each.suite == "unit"]


def read_table(page: str, columns: int) -> list[tuple[str, ...]]:
    """Return the rows of a page whose first column is a name in backticks."""
    lines = (ROOT / "docs" / page).read_text().splitlines()
    rows = [tuple(part.strip() for part in line.strip("|").split(" | ")) for line in lines if line.startswith("| `")]
    return [row for row in rows if len(row) == columns]


def test_the_page_of_the_command_line_is_what_the_commands_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", COLUMNS)
    assert COMMAND_LINE.read_text() == format_command_line(), "run docs/generate.py, or make docs"


def test_the_page_of_mechanisms_has_each_with_its_kernel_and_what_is_expected() -> None:
    told = [
        (row[0].strip("`"), row[1].strip("`"), row[3].split(";")[0]) for row in read_table("reference/mechanisms.md", 4)
    ]
    assert told == [(each.name, each.base, each.expectation.value) for each in (*MECHANISMS, *STOCK_MECHANISMS)]


def test_the_page_of_invariants_has_each_in_order_and_says_what_a_pass_needs() -> None:
    told = {row[0].strip("`"): row[2] for row in read_table("reference/invariants.md", 3)}
    assert list(told) == list(INVARIANTS)
    assert {name for name, need in told.items() if need == "never"} == REPORTED_ONLY
    assert {name for name, need in told.items() if need == "needs the engine"} == NEEDS_ENGINE
    assert {name for name, need in told.items() if need == "needs the rendezvous state"} == set(SHOWN_BY)
    assert {name for name, need in told.items() if need == "with offline siblings"} == OF_OFFLINE
    assert "INVALID" in told[AGREEMENT]


def test_the_navigation_of_the_site_has_each_page_once() -> None:
    nav = (ROOT / "mkdocs.yml").read_text().partition("\nnav:\n")[2]
    pages = sorted(str(path.relative_to(ROOT / "docs")) for path in (ROOT / "docs").rglob("*.md"))
    assert sorted(re.findall(r": (\S+\.md)$", nav, re.MULTILINE)) == pages


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    broken = []
    for line, target in list_links(page):
        name, _, anchor = target.partition("#")
        there = (page.parent / name).resolve() if name else page
        if not there.exists() or (anchor and anchor not in list_anchors(there)):
            broken.append(f"line {line}: {target}")
    assert not broken


def test_files_that_pages_and_code_name_exist() -> None:
    """Sources cite pages by path; so do pages each other, in words."""
    cited = re.compile(
        r"\bdocs/(?:how-to|reference|explanation|pictures)/[a-z0-9-]+\.(?:md|svg)\b|\bdocs/[a-z-]+\.(?:md|py)\b"
    )
    sources = [*PAGES, *(path for room in ("lab", "images", "testcases") for path in (ROOT / room).rglob("*.[pch]*"))]
    lost = {
        f"{path.relative_to(ROOT)}: {name}"
        for path in sources
        if path.is_file() and "data" not in path.parts
        for name in cited.findall(path.read_text(errors="replace"))
        if not (ROOT / name).exists()
    }
    assert not lost


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_each_block_of_commands_says_whether_it_is_run(page: Path) -> None:
    list(list_commands(page))


@pytest.mark.parametrize("command", CHEAP, ids=lambda each: f"{each.page}:{each.line}")
def test_commands_that_boot_nothing_do_what_the_page_says(command: Command, tmp_path: Path) -> None:
    done = subprocess.run(
        command.list_words(LAB, tmp_path), cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == command.status, done.stderr


def test_some_commands_are_cheap() -> None:
    assert len(CHEAP) >= 3


def test_sections_of_the_design_that_code_cites_are_there() -> None:
    sections = set(re.findall(r"^## (\d+)\. ", (ROOT / "docs/design.md").read_text(), re.MULTILINE))
    cited = set()
    for path in (*(ROOT / "lab").rglob("*.py"), *(ROOT / "images/observer").glob("*.[ch]")):
        for found in re.findall(r"[Dd]esign,? sections? (\d+)(?: and (\d+))?", path.read_text()):
            cited |= {number for number in found if number}
    assert cited
    assert cited <= sections


def test_the_first_page_is_short() -> None:
    text = (ROOT / "README.md").read_text()
    assert README_LINES[0] <= len(text.splitlines()) <= README_LINES[1]
    assert README_BYTES[0] <= len(text.encode()) <= README_BYTES[1]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("```console\n$ ls\n```\n", "line 1: put"),
        ("<!-- run: never -->\n```console\n$ ls\n```\n", "line 2: put"),
        ("<!-- not run: -->\n```console\n$ ls\n```\n", "line 2: put"),
        ("<!-- run: unit -->\n```console\nls\n```\n", "line 3: each line"),
    ],
)
def test_a_block_without_a_mark_or_a_prompt_is_refused(
    text: str, reason: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    page = tmp_path / "page.md"
    page.write_text(text)
    monkeypatch.setattr("docs.pages.ROOT", tmp_path)
    with pytest.raises(ValueError, match=f"page.md {reason}"):
        list(list_commands(page))


def test_a_command_is_read_without_its_comment_and_with_its_status(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    page = tmp_path / "page.md"
    page.write_text("<!-- run: e2e -->\n```console\n$ .venv/bin/lab judge /tmp/one   # again  # exit 1\n```\n")
    monkeypatch.setattr("docs.pages.ROOT", tmp_path)
    (command,) = list_commands(page)
    assert (command.text, command.status, command.suite) == (".venv/bin/lab judge /tmp/one", 1, "e2e")
    assert command.list_words(("lab",), Path("/x")) == ["lab", "judge", "/x/one"]
