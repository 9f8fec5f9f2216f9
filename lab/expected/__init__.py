# SPDX-License-Identifier: GPL-2.0-or-later
"""What the lab expects of a mechanism in a scenario, and whether records show it. Pure."""
