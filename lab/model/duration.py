# SPDX-License-Identifier: GPL-2.0-or-later
"""Durations in the form that people write: a number and its unit."""

import re
from typing import Final

from lab.errors import UsageError

_DURATION: Final = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,6})?)([smhd])", re.ASCII)
_SECONDS: Final = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}


def read_seconds(option: str, text: str) -> float:
    """Return the number of seconds of a text such as 90s, 30m, 8h or 2d.

    :param option: the name of the option, for the error
    :raise UsageError: the text is not a duration, or the duration is zero
    """
    match = _DURATION.fullmatch(text)
    if match is None or float(match[1]) == 0:
        raise UsageError(f"{option} is '{text}': allowed is a number above 0 with s, m, h or d, such as 30m or 8h")
    return float(match[1]) * _SECONDS[match[2]]
