# SPDX-License-Identifier: GPL-2.0-or-later
"""Readers of a vmlinux: symbols, code and control flow, and the landmarks from them. Nothing in it is executed."""
