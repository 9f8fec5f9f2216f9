# SPDX-License-Identifier: GPL-2.0-or-later
"""Times as people write them: a number and its unit."""

import re
from typing import Final

from lab.errors import UsageError

_DURATION: Final = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,6})?)([smhd])", re.ASCII)
_SECONDS: Final = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}


def read_seconds(option: str, text: str) -> float:
    """Return how many seconds 90s, 30m, 8h or 2d are.

    :param option: where it was given, for the error
    :raise UsageError: it is no such time, or none at all
    """
    match = _DURATION.fullmatch(text)
    if match is None or float(match[1]) == 0:
        raise UsageError(f"{option} is '{text}': allowed is a number above 0 with s, m, h or d, such as 30m or 8h")
    return float(match[1]) * _SECONDS[match[2]]
