# SPDX-License-Identifier: GPL-2.0-or-later
"""Frozen values that every room speaks in: what is asked for, what was seen, what was concluded. No I/O."""
