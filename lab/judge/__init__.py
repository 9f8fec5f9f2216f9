# SPDX-License-Identifier: GPL-2.0-or-later
"""From evidence to verdict: the invariants of design section 7, one small function each. Pure: no I/O, no clock."""

from lab.judge.judging import judge

__all__ = ["judge"]
