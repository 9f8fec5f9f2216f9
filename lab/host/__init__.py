# SPDX-License-Identifier: GPL-2.0-or-later
"""What the host gives: processes, deadlines, folders, and the vCPU budget guests share."""
