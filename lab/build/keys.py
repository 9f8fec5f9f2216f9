# SPDX-License-Identifier: GPL-2.0-or-later
"""SSH keys that live for one run: the client's, which the guest lets in, and the guest's, which the client pins."""

import io
import struct

import msgspec
import paramiko
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

_TYPE = b"ssh-ed25519"


class RunKeys(msgspec.Struct, frozen=True, kw_only=True):
    """Both key pairs.

    :param client_key: what the client logs in with
    :param authorized_key: its public half, one line as in ``authorized_keys``
    :param host_key: the guest's private key as dropbear reads it from a file
    :param host_public: its public half, to be pinned
    """

    client_key: paramiko.PKey
    authorized_key: str
    host_key: bytes
    host_public: paramiko.PKey


def make_run_keys() -> RunKeys:
    """Make fresh keys; Ed25519, since signing with it costs a guest under TCG the least."""
    client = Ed25519PrivateKey.generate()
    client_pem = client.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()).decode()
    client_line = client.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
    host = Ed25519PrivateKey.generate()
    secret = host.private_bytes(Encoding.Raw, PrivateFormat.Raw, NoEncryption())
    public = host.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    return RunKeys(
        client_key=paramiko.Ed25519Key(file_obj=io.StringIO(client_pem)),
        authorized_key=client_line,
        # dropbear's buf_put_ed25519_priv_key(): the type, then seed and public key as one string of 64 bytes
        host_key=_pack(_TYPE) + _pack(secret + public),
        host_public=paramiko.Ed25519Key(data=_pack(_TYPE) + _pack(public)),
    )


def _pack(data: bytes) -> bytes:
    """Encode an SSH string (RFC 4251, section 5)."""
    return struct.pack(">I", len(data)) + data
