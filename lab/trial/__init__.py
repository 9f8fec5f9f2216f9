# SPDX-License-Identifier: GPL-2.0-or-later
"""One late load, from its plan to its verdict, and the folder of evidence that it leaves behind."""
