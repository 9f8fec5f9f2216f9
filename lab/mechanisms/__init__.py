# SPDX-License-Identifier: GPL-2.0-or-later
"""The mechanisms under test, with their landmarks and promises, and the traits of each kernel. No I/O."""
