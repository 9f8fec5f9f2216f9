# SPDX-License-Identifier: GPL-2.0-or-later
"""What was seen: the oracle outside the guest, and the guest's own account of itself."""
