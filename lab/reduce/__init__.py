# SPDX-License-Identifier: GPL-2.0-or-later
"""One kept trial again: replayed, and made smaller."""
