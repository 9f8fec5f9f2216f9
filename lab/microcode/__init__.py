# SPDX-License-Identifier: GPL-2.0-or-later
"""Microcode update files, good and malformed."""
