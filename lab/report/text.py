# SPDX-License-Identifier: GPL-2.0-or-later
"""Cleans text from guests for a page, and formats numbers for readers."""

import math
import re

from markupsafe import Markup

#: Longer text is cut. A guest must not fill the page.
MAX_TEXT_CHARS = 600

_ANSI = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[ -/]*[0-~])")
#: Control characters (C0 except tab and newline, DEL, C1), and characters that reorder, hide or break the text.
_UNFIT = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ufff9-\ufffb\ud800-\udfff]"
)

US_PER_MS = 1_000.0
US_PER_S = 1_000_000.0
_S_PER_MIN = 60
_MIN_PER_H = 60
_BYTES_PER_MIB = 1_024 * 1_024


def clean(text: str) -> str:
    """Strip escape sequences and control characters, and cut long text."""
    text = _UNFIT.sub("", _ANSI.sub("", text[: 4 * MAX_TEXT_CHARS]))
    return text if len(text) <= MAX_TEXT_CHARS else text[: MAX_TEXT_CHARS - 1] + "…"


def finalize(value: object) -> object:
    """Clean every value that a template prints, before it is escaped. The output of a macro is clean already."""
    if isinstance(value, Markup):
        return value
    if isinstance(value, float | int):
        return clean(str(value))
    return clean(value) if isinstance(value, str) else value


def format_us(us: float | None) -> str:
    """Return a duration with three significant digits and its unit."""
    if us is None or not math.isfinite(us):
        return "-"
    for unit, scale in (("s", US_PER_S), ("ms", US_PER_MS)):
        if abs(us) >= scale:
            return f"{_three_digits(us / scale)} {unit}"
    return f"{_three_digits(us)} µs"


def format_exact_us(us: float) -> str:
    """Return a time in microseconds with one decimal digit, so that neighbouring times differ."""
    return f"{us:,.1f}".replace(",", "\u202f") + " µs" if math.isfinite(us) else "-"


def format_count(count: int) -> str:
    """Return a whole number with a space between groups of three digits."""
    return f"{count:,}".replace(",", "\u202f")


def format_mib(size: int) -> str:
    """Return a number of bytes in MiB."""
    return f"{size / _BYTES_PER_MIB:.1f} MiB"


def tell_time(seconds: float) -> str:
    """Return a duration in hours, minutes and seconds."""
    if not math.isfinite(seconds):
        return "-"
    minutes, left_s = divmod(int(seconds), _S_PER_MIN)
    hours, minutes = divmod(minutes, _MIN_PER_H)
    return f"{hours}:{minutes:02}:{left_s:02}"


def _three_digits(value: float) -> str:
    size = abs(value)
    return f"{value:.0f}" if size >= 100 else f"{value:.1f}" if size >= 10 else f"{value:.2f}"
