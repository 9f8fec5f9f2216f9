# SPDX-License-Identifier: GPL-2.0-or-later
"""Campaigns for a night: planned by number, run by many workers, nothing lost and nothing counted twice."""
