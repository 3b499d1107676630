# SPDX-License-Identifier: BSD-3-Clause
"""The certificates that peers' are verified with: the system's, or the program's own."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from cryptography import x509
from OpenSSL import SSL, crypto

from ssad.errors import HandshakeError
from ssad.policy import Policy
from ssad.settings import Settings


@dataclass(frozen=True, slots=True)
class TrustStore:
    """A file of trusted certificates, in the state in which it is now."""

    path: Path
    state: tuple[int, int, int]


def source(settings: Settings, policy: Policy) -> str:
    """Say where trusted certificates come from."""
    return str(policy.trust_store) if settings.trusted is None else "TLS_TRUSTED_PEER_CERTIFICATES"


def trusted(settings: Settings, policy: Policy) -> bytes | TrustStore:
    """Return what a socket trusts: a program's certificates as PEM, or a file.

    Raises HandshakeError if there is no such file, or if programs have no say in it.
    """
    if settings.trusted is None:
        return _trust_store(policy.trust_store)
    if policy.program_trust:
        return settings.trusted
    raise HandshakeError(errno.EPROTO, "The policy does not let programs choose whom they trust.")


def _trust_store(path: Path) -> TrustStore:
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
    except OSError as error:
        raise _unusable(path, error.strerror or str(error)) from error
    return TrustStore(path, (status.st_ino, status.st_size, status.st_mtime_ns))


def _unusable(path: Path, why: str) -> HandshakeError:
    return HandshakeError(
        errno.EPROTO,
        f"The trust store {path} can't be used: {why}. No certificate can be verified without it; "
        "install the package ca-certificates or name another file in the policy.",
    )


def load(context: SSL.Context, trusted: bytes | TrustStore) -> None:
    """Let a context trust these certificates. Raises HandshakeError if the file has none."""
    store = store_of(context)
    # Whatever is in the store is trusted, whether or not it signed itself.
    store.set_flags(crypto.X509StoreFlags.PARTIAL_CHAIN)
    if isinstance(trusted, TrustStore):
        try:
            context.load_verify_locations(str(trusted.path))
        except SSL.Error as error:
            raise _unusable(trusted.path, "it holds no readable PEM certificate") from error
        return
    for certificate in x509.load_pem_x509_certificates(trusted):
        store.add_cert(crypto.X509.from_cryptography(certificate))


def store_of(context: SSL.Context) -> crypto.X509Store:
    """Return what a context trusts."""
    return cast("crypto.X509Store", context.get_cert_store())  # OpenSSL makes one for each context
