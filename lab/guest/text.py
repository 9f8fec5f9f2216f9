# SPDX-License-Identifier: GPL-2.0-or-later
"""Make text from a guest harmless: the text may contain anything."""

import re
from collections.abc import Iterable

#: Longer lines are cut.
MAX_LINE_CHARS = 400

_ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|[@-Z\\-_])")


def clean_line(raw: bytes) -> str:
    """Return one line of limited length, without control characters, escape sequences and direction marks."""
    # Cut the line before decoding as well, so that a guest cannot make this expensive.
    text = raw[: MAX_LINE_CHARS * 4].decode(errors="backslashreplace").replace("\t", " ")
    text = "".join(char for char in _ESCAPES.sub("", text) if char.isprintable())
    return text if len(text) <= MAX_LINE_CHARS else text[: MAX_LINE_CHARS - 3] + "..."


def clean_lines(raw: bytes) -> tuple[str, ...]:
    """Return all lines that are not empty, cleaned."""
    return tuple(line for line in map(clean_line, raw.split(b"\n")) if line)


def clean_text(text: str) -> str:
    """Return text of several lines, each without the characters that :func:`clean_line` removes. Lines are not cut.

    The result is also legal in XML.
    """
    lines = (_ESCAPES.sub("", line.replace("\t", " ")) for line in text.split("\n"))
    return "\n".join("".join(char for char in line if char.isprintable()) for line in lines)


def quote_tail(title: str, lines: Iterable[str], count: int) -> str:
    """Return the last lines as a block below a title, for the text of an error.

    Return an empty string if there are no lines.
    """
    last = tuple(lines)[-count:]
    return "".join((f"\n{title}:", *(f"\n  {line}" for line in last))) if last else ""
