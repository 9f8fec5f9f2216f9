# SPDX-License-Identifier: GPL-2.0-or-later
"""The commit of a kernel's history from which on a scenario fails: ``git bisect run`` over builds and trials."""
