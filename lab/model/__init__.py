# SPDX-License-Identifier: GPL-2.0-or-later
"""Frozen values that every room uses: requests, observations and conclusions. No I/O."""
