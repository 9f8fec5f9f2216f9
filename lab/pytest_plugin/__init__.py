# SPDX-License-Identifier: GPL-2.0-or-later
"""Fixtures and options of the lab for pytest."""
