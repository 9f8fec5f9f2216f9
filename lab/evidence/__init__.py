# SPDX-License-Identifier: GPL-2.0-or-later
"""The evidence folder of a trial: write the folder, and read it back without trust in its content."""
