# SPDX-License-Identifier: GPL-2.0-or-later
"""A lab that boots SMT guests, updates their microcode under NMIs, and judges what was seen."""

__version__ = "0.2.0"
