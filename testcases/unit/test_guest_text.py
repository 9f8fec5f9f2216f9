# SPDX-License-Identifier: GPL-2.0-or-later
import pytest

from lab.guest.text import MAX_LINE_CHARS, clean_line, clean_lines, clean_text, quote_tail


@pytest.mark.parametrize(
    ("raw", "cleaned"),
    [
        (b"plain\r", "plain"),
        (b"\x1b[31;1mred\x1b[0m", "red"),
        (b"\x1b]0;title\x07x", "0;titlex"),
        (b"\x00a\x07b\x7fc\x9b", "abc\\x9b"),
        ("right\u202eleft\u200b".encode(), "rightleft"),
        (b"a\tb", "a b"),
        ("grün".encode(), "grün"),
        (b"\xff\xfe", "\\xff\\xfe"),
    ],
)
def test_what_a_terminal_would_obey_is_taken_out(raw: bytes, cleaned: str) -> None:
    assert clean_line(raw) == cleaned


def test_text_keeps_its_lines_and_all_that_may_be_shown() -> None:
    text = "\n".join(("  one\ttwo", "\x1b[31mred\x1b[0m\x00\x85", "", "\u202eback\ud800\ufffe", "x" * 10_000, ""))
    assert clean_text(text).split("\n") == ["  one two", "red", "", "back", "x" * 10_000, ""]


def test_lines_are_bounded() -> None:
    assert len(clean_line(b"x" * 10_000_000)) == MAX_LINE_CHARS
    assert clean_line(b"x" * 10_000).endswith("...")


def test_lines_and_their_quotation() -> None:
    lines = clean_lines(b"one\r\n\r\ntwo\nthree")
    assert lines == ("one", "two", "three")
    assert quote_tail("console", lines, 2) == "\nconsole:\n  two\n  three"
    assert quote_tail("console", (), 2) == ""
