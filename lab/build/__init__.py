# SPDX-License-Identifier: GPL-2.0-or-later
"""Recipes that turn images/ into files to boot, kept in a cache by the content of what they were made from."""
