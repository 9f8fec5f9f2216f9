# SPDX-License-Identifier: GPL-2.0-or-later
"""What pages show as commands, and where they link to, for the tests that hold them to it.

Commands stand in blocks that are fenced as ``console``, each behind ``$``. A comment in the line above a block says
what a test does with its commands; readers do not see it:

- ``<!-- run: unit -->``: run them in the unit tests, since they are cheap and boot nothing
- ``<!-- run: e2e -->``: run them in the tests that boot guests
- ``<!-- not run: REASON -->``: no test runs them

A command has to exit with 0, or with the status of a comment behind it: ``# exit 1``. Commands of a page run one after
the other. ``/tmp/`` in them is a folder of the test's own, and ``.venv/bin/lab`` the lab under test.
"""

import re
import shlex
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
#: Pages that people read, beside those of docs/.
TOP_PAGES = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "reports/README.md")

#: What an error says is allowed.
MARKS = "'<!-- run: unit -->', '<!-- run: e2e -->' or '<!-- not run: REASON -->'"

_MARK = re.compile(r"<!-- (?:run: (?P<suite>unit|e2e)|not run: (?P<reason>\S.*)) -->")
_FENCE = "```"
_BLOCK = "```console"
_PROMPT = "$ "
_COMMENT = re.compile(r"\s+#(?: .*)?$")
_STATUS = re.compile(r"# exit (\d+)$")
_LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#{1,6} (.+)$")


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """One command of a page.

    :param suite: ``unit`` or ``e2e``; empty where no test runs it
    :param status: what it exits with
    """

    page: str
    line: int
    text: str
    suite: str
    status: int

    def list_words(self, lab: tuple[str, ...], tmp: Path) -> list[str]:
        """Return the words to execute.

        :param lab: in place of ``.venv/bin/lab``
        :param tmp: in place of ``/tmp``
        """
        words = shlex.split(self.text.replace("/tmp/", f"{tmp}/"))  # noqa: S108 - what pages show
        return [*lab, *words[1:]] if words[0] == ".venv/bin/lab" else words


def list_pages() -> list[Path]:
    """Return all pages that people read."""
    tops = [ROOT / name for name in TOP_PAGES]
    return [*(path for path in tops if path.exists()), *sorted((ROOT / "docs").rglob("*.md"))]


def list_commands(page: Path) -> Iterator[Command]:
    """Yield the commands of a page, in order.

    :raise ValueError: a block has no mark, or holds a line that is no command; the text names page and line
    """
    name = str(page.relative_to(ROOT))
    mark: re.Match[str] | None = None
    inside = False
    for number, line in enumerate(page.read_text().splitlines(), 1):
        if inside and line == _FENCE:
            inside, mark = False, None
        elif inside and mark is not None:
            if not line.startswith(_PROMPT):
                raise ValueError(f"{name} line {number}: each line of a console block is '$ COMMAND'")
            yield _read_command(name, number, line.removeprefix(_PROMPT), mark["suite"] or "")
        elif line.startswith(_BLOCK):
            if mark is None:
                raise ValueError(f"{name} line {number}: put {MARKS} above")
            inside = True
        else:
            mark = _MARK.fullmatch(line)


def _read_command(page: str, number: int, text: str, suite: str) -> Command:
    status = _STATUS.search(text)
    while _COMMENT.search(text):
        text = _COMMENT.sub("", text)
    return Command(page=page, line=number, text=text, suite=suite, status=int(status[1]) if status else 0)


def list_links(page: Path) -> Iterator[tuple[int, str]]:
    """Yield the links of a page that stay in this repository, with their lines."""
    fenced = False
    for number, line in enumerate(page.read_text().splitlines(), 1):
        fenced ^= line.startswith(_FENCE)
        if not fenced:
            for target in _LINK.findall(line):
                if "://" not in target:
                    yield number, target


def list_anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as the site makes them."""
    headings = (_HEADING.match(line) for line in page.read_text().splitlines())
    return {_make_anchor(heading[1]) for heading in headings if heading}


def _make_anchor(heading: str) -> str:
    """Return what Python-Markdown's table of contents calls a heading."""
    plain = unicodedata.normalize("NFKD", heading.replace("`", "")).encode("ascii", "ignore").decode()
    return re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", plain).strip().lower())
