# SPDX-License-Identifier: GPL-2.0-or-later
"""The lab as fixtures and options of pytest."""
