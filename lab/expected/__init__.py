# SPDX-License-Identifier: GPL-2.0-or-later
"""What is expected of a mechanism in a scenario, and whether records show it. Pure."""
