# SPDX-License-Identifier: GPL-2.0-or-later
"""Keeps Dask from depending on the wall clock, which may be set while a campaign runs.

Dask and tornado measure intervals by it. Put forward by more than the time to live of a worker, all workers are taken
for dead and their trials are lost; put back, heartbeats and messages wait until it has caught up; and a certificate
that is valid from now on is not valid yet.
"""

import datetime
import sys
import time
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from distributed.security import Security
from tornado.ioloop import IOLoop

#: The name that Dask's clients expect of a server whose certificate was not asked for by name.
_NAME: Final = "dask-internal"
#: RFC 5280, 4.1.2.5: the earliest that a certificate commonly says, and what stands for no end.
_FIRST: Final = datetime.datetime(1970, 1, 1)
_LAST: Final = datetime.datetime(9999, 12, 31, 23, 59, 59)

_begun_s: Final = time.time() - time.monotonic()


def steady_time() -> float:
    """Return the wall clock's time as it was when the lab began, s since the epoch, plus what has gone by since."""
    return _begun_s + time.monotonic()


def steady_dask() -> None:
    """Have all of Dask and tornado in this process measure by :func:`steady_time`."""
    for name, module in tuple(sys.modules.items()):
        # Each of its modules has taken the function by its name.
        if name.split(".")[0] == "distributed" and getattr(module, "time", None) is time.time:
            module.time = steady_time  # type: ignore[attr-defined]
    IOLoop.time = lambda self: steady_time()  # type: ignore[method-assign]  # noqa: ARG005


def make_security() -> Security:
    """Return a key and a certificate for all parts of one cluster, kept in memory alone and valid at any time."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, _NAME)])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(_NAME)]), critical=False)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(_FIRST)
        .not_valid_after(_LAST)
        .sign(key, hashes.SHA256())
    )
    pem = certificate.public_bytes(Encoding.PEM).decode()
    secret = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
    parts = ("client", "scheduler", "worker")
    words = {f"tls_{part}_{kind}": text for part in parts for kind, text in (("key", secret), ("cert", pem))}
    return Security(require_encryption=True, tls_ca_file=pem, **words)
