# SPDX-License-Identifier: GPL-2.0-or-later
"""Recipes that turn images/ into files to boot. A cache keeps the results by the content of their sources."""
