# SPDX-License-Identifier: GPL-2.0-or-later
"""What there is to try: each mechanism with its landmarks and promises, and the traits of each kernel. No I/O."""
