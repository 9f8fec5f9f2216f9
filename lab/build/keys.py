# SPDX-License-Identifier: GPL-2.0-or-later
"""SSH keys for one run: the client's key, which the guest accepts, and the guest's key, which the client pins."""

import io
import struct

import msgspec
import paramiko
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

_TYPE = b"ssh-ed25519"


class RunKeys(msgspec.Struct, frozen=True, kw_only=True):
    """Both key pairs.

    :param client_key: private key that the client logs in with
    :param authorized_key: its public half, one line as in ``authorized_keys``
    :param host_key: the guest's private key in dropbear's file format
    :param host_public: its public half, which the client pins
    """

    client_key: paramiko.PKey
    authorized_key: str
    host_key: bytes
    host_public: paramiko.PKey


def make_run_keys() -> RunKeys:
    """Make new keys. Ed25519: of all key types, its signatures cost a guest under TCG the least time."""
    client = Ed25519PrivateKey.generate()
    client_pem = client.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()).decode()
    client_line = client.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
    host = Ed25519PrivateKey.generate()
    secret = host.private_bytes(Encoding.Raw, PrivateFormat.Raw, NoEncryption())
    public = host.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    return RunKeys(
        client_key=paramiko.Ed25519Key(file_obj=io.StringIO(client_pem)),
        authorized_key=client_line,
        # dropbear's buf_put_ed25519_priv_key(): the type, then seed and public key as one string of 64 bytes.
        host_key=_pack(_TYPE) + _pack(secret + public),
        host_public=paramiko.Ed25519Key(data=_pack(_TYPE) + _pack(public)),
    )


def _pack(data: bytes) -> bytes:
    """Encode an SSH string (RFC 4251, section 5)."""
    return struct.pack(">I", len(data)) + data
