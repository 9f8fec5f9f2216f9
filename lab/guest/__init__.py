# SPDX-License-Identifier: GPL-2.0-or-later
"""One running machine: QEMU's command line and process, its two control channels, its console, a shell in the guest."""
