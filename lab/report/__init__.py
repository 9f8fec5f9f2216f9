# SPDX-License-Identifier: GPL-2.0-or-later
"""Makes one page of a run: what each mechanism let its siblings execute, the proof, and the price."""
