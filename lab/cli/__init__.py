# SPDX-License-Identifier: GPL-2.0-or-later
"""The command line: the one place that prints and exits."""

from lab.cli.main import main

__all__ = ["main"]
