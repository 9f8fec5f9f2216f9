# SPDX-License-Identifier: GPL-2.0-or-later
"""Sweeps: one NMI at every place of a late load where a thread of a core can receive an NMI."""
