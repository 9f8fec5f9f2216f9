# SPDX-License-Identifier: GPL-2.0-or-later
"""The evidence folder of a trial: written, and read back without trusting it."""
