# SPDX-License-Identifier: GPL-2.0-or-later
"""Campaigns on many hosts, by Dask. No other room needs it."""
