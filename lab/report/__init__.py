# SPDX-License-Identifier: GPL-2.0-or-later
"""A run as one page to read: what each mechanism let its siblings execute, the proof, and the price."""
