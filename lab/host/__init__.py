# SPDX-License-Identifier: GPL-2.0-or-later
"""Access to the host: processes, deadlines, folders, and the budget of vCPUs that all guests share."""
