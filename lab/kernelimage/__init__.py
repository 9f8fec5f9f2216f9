# SPDX-License-Identifier: GPL-2.0-or-later
"""What a vmlinux says: symbols, code, control flow, and from them the landmarks. Nothing is run to find out."""
