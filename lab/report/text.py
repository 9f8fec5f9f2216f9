# SPDX-License-Identifier: GPL-2.0-or-later
"""Text that came from guests, made fit for a page, and numbers as a reader wants them."""

import math
import re

from markupsafe import Markup

#: Longer text is cut: a guest must not fill the page.
MAX_TEXT_CHARS = 600

_ANSI = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[ -/]*[0-~])")
#: Controls (C0 but tab and newline, DEL, C1), and what reorders, hides or breaks the text around it.
_UNFIT = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ufff9-\ufffb\ud800-\udfff]"
)

US_PER_MS = 1_000.0
US_PER_S = 1_000_000.0
_S_PER_MIN = 60
_MIN_PER_H = 60
_BYTES_PER_MIB = 1_024 * 1_024


def clean(text: str) -> str:
    """Strip escape sequences and control characters, and cut what is too long."""
    text = _UNFIT.sub("", _ANSI.sub("", text[: 4 * MAX_TEXT_CHARS]))
    return text if len(text) <= MAX_TEXT_CHARS else text[: MAX_TEXT_CHARS - 1] + "…"


def finalize(value: object) -> object:
    """Clean everything that a template prints, before it is escaped; what a macro made is clean already."""
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
    """Return a time in microseconds with one digit behind the point, so that neighbours can be told apart."""
    return f"{us:,.1f}".replace(",", "\u202f") + " µs" if math.isfinite(us) else "-"


def format_count(count: int) -> str:
    """Return a whole number, its thousands apart."""
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
