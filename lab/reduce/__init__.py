# SPDX-License-Identifier: GPL-2.0-or-later
"""Replays one kept trial, and makes a failing trial smaller."""
