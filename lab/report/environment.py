# SPDX-License-Identifier: GPL-2.0-or-later
"""Renders pages from templates. Every value is cleaned and escaped, because the values came from guests."""

import shlex
from collections.abc import Sequence
from pathlib import Path

import jinja2

from lab.report.text import finalize, format_count, format_exact_us, format_mib, format_us, tell_time


def make_environment() -> jinja2.Environment:
    """Return the environment that renders the templates of this folder."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        finalize=finalize,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "us": format_us,
        "exact_us": format_exact_us,
        "count": format_count,
        "mib": format_mib,
        "time": tell_time,
    }
    environment.globals |= {"judge_again": judge_again, "shares": _shares}
    return environment


def judge_again(evidence: str) -> str:
    """Return the command that judges a trial's evidence again, for a shell in the run's folder.

    :param evidence: relative to the run's folder; absolute if the evidence is on a path that hosts share
    """
    return shlex.join(("lab", "judge", evidence if evidence.startswith("/") else f"./{evidence}"))


def _shares(parts: Sequence[int]) -> list[float]:
    """Return the share of each part in the whole, in percent."""
    whole = sum(parts) or 1
    return [round(100 * part / whole, 2) for part in parts]
