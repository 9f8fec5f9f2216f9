# SPDX-License-Identifier: GPL-2.0-or-later
"""Text from a guest, made harmless: it may hold anything."""

import re
from collections.abc import Iterable

#: Longer lines are cut.
MAX_LINE_CHARS = 400

_ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|[@-Z\\-_])")


def clean_line(raw: bytes) -> str:
    """Return one line without control characters, escape sequences or direction marks, of bounded length."""
    # A line is cut before it is decoded too, so that a guest cannot make this expensive.
    text = raw[: MAX_LINE_CHARS * 4].decode(errors="backslashreplace").replace("\t", " ")
    text = "".join(char for char in _ESCAPES.sub("", text) if char.isprintable())
    return text if len(text) <= MAX_LINE_CHARS else text[: MAX_LINE_CHARS - 3] + "..."


def clean_lines(raw: bytes) -> tuple[str, ...]:
    """Return all lines that are not empty, cleaned."""
    return tuple(line for line in map(clean_line, raw.split(b"\n")) if line)


def clean_text(text: str) -> str:
    """Return text of several lines, each without what :func:`clean_line` takes out; nothing is cut.

    What is left is legal in XML, too.
    """
    lines = (_ESCAPES.sub("", line.replace("\t", " ")) for line in text.split("\n"))
    return "\n".join("".join(char for char in line if char.isprintable()) for line in lines)


def quote_tail(title: str, lines: Iterable[str], count: int) -> str:
    """Return the last lines as a block below a title, for the text of an error; empty when there are none."""
    last = tuple(lines)[-count:]
    return "".join((f"\n{title}:", *(f"\n  {line}" for line in last))) if last else ""
