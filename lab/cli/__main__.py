# SPDX-License-Identifier: GPL-2.0-or-later
"""``python -m lab.cli``: the same as ``lab``."""

from lab.cli.main import main

main()
