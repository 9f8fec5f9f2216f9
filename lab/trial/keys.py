# SPDX-License-Identifier: GPL-2.0-or-later
"""Keys for one guest, made by the build room and handed to the guest room."""

from lab.build.initramfs import make_key_archive
from lab.build.keys import make_run_keys
from lab.guest.config import GuestKeys


def make_guest_keys() -> GuestKeys:
    """Return fresh keys for one guest, with the archive that puts its halves in place."""
    keys = make_run_keys()
    return GuestKeys(
        client_key=keys.client_key,
        host_public=keys.host_public,
        archive=make_key_archive(keys.authorized_key, keys.host_key),
    )
