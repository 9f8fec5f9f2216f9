# SPDX-License-Identifier: GPL-2.0-or-later
"""Many trials: what was asked for, what came of each, and whether the mechanisms did what they must."""
