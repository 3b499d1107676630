# SPDX-License-Identifier: BSD-3-Clause
"""Certificate chains and their private keys, as programs give them: read and checked."""

from __future__ import annotations

import datetime as dt
import errno
import itertools
from dataclasses import dataclass, field

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes

from ssad.errors import Refused
from ssad.identity import UNREADABLE, Names, is_authority, names_of, subject

# What TLS can sign with (RFC 8446, 4.2.3), by the names that sentences use.
_KINDS = {
    rsa.RSAPrivateKey: "RSA",
    ec.EllipticCurvePrivateKey: "ECDSA",
    ed25519.Ed25519PrivateKey: "Ed25519",
    ed448.Ed448PrivateKey: "Ed448",
}


# More of these would cost time that all others wait; what is in use has far less.
_RSA_BITS_MAX = 8192
_CHAIN_MAX = 16
_NAMES_MAX = 1000


@dataclass(frozen=True, slots=True)
class Identity:
    """A certificate chain and its key: what a socket can show of itself."""

    chain: bytes = field(repr=False)  # PEM, the socket's own certificate first
    private_key: bytes = field(repr=False)  # PEM
    names: Names
    kind: str  # of the key, one of _KINDS


def load_chain(value: bytes) -> bytes:
    """Read TLS_CERTIFICATE_CHAIN, PEM or DER, and return it as PEM without anything else.

    Raises Refused with EINVAL if it can't be read or is in the wrong order.
    """
    try:
        if _is_pem(value):
            chain = x509.load_pem_x509_certificates(value)
        else:
            chain = [x509.load_der_x509_certificate(value)]
        chain[0].public_key()
        names = len(_names(chain[0]).dns)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise _invalid(
            "TLS_CERTIFICATE_CHAIN holds no PEM or DER certificate, or one that can't be read."
        ) from error
    if len(chain) > _CHAIN_MAX or names > _NAMES_MAX:
        raise _invalid(
            f"TLS_CERTIFICATE_CHAIN holds {len(chain)} certificates, the first one for {names} "
            f"host names; {_CHAIN_MAX} and {_NAMES_MAX} are the most."
        )
    _check_order(chain)
    return b"".join(c.public_bytes(serialization.Encoding.PEM) for c in chain)


def pair(chain: bytes, value: bytes) -> Identity:
    """Read TLS_PRIVATE_KEY, PEM or DER, and join it with its chain.

    Raises Refused with EINVAL if it can't be read, is encrypted, is another certificate's, or of
    no use for TLS.
    """
    key = _load_private_key(value)
    certificates = x509.load_pem_x509_certificates(chain)
    _check_key(key, certificates)
    return Identity(
        chain,
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        ),
        _names(certificates[0]),
        _kind(key),
    )


def warnings(identity: Identity) -> list[str]:
    """Say in sentences why peers are likely to refuse a certificate; see
    Settings.listen_warnings."""
    chain = x509.load_pem_x509_certificates(identity.chain)
    now = dt.datetime.now(dt.UTC)
    found = []
    for certificate in chain:
        name = subject(certificate)
        if now > certificate.not_valid_after_utc:
            found.append(
                f"The certificate of {name} has expired, on "
                f"{certificate.not_valid_after_utc:%Y-%m-%d %H:%M:%S} UTC; "
                "clients will refuse it."
            )
        if now < certificate.not_valid_before_utc:
            found.append(
                f"The certificate of {name} is not valid before "
                f"{certificate.not_valid_before_utc:%Y-%m-%d %H:%M:%S} UTC; "
                "clients will refuse it."
            )
    if len(chain) == 1 and chain[0].issuer != chain[0].subject:
        found.append(
            f"TLS_CERTIFICATE_CHAIN holds nothing but the certificate of {subject(chain[0])}; "
            f"clients will refuse it unless they know its issuer, {_issuer(chain[0])}. "
            "Append the issuer's certificate if that is no root."
        )
    return found


def _check_order(chain: list[x509.Certificate]) -> None:
    """Refuse a chain in which a certificate is not issued by the next (RFC 5246, 7.4.2)."""
    others = [certificate for certificate in chain if not is_authority(certificate)]
    if others and others[0] is not chain[0]:
        raise _invalid(
            f"TLS_CERTIFICATE_CHAIN is in the wrong order: the certificate of {subject(others[0])} "
            f"has to come first and its issuers after it, but {subject(chain[0])} is first."
        )
    for certificate, issuer in itertools.pairwise(chain):
        if not _issued(certificate, issuer):
            raise _invalid(
                f"TLS_CERTIFICATE_CHAIN is in the wrong order: {subject(issuer)} follows the "
                f"certificate of {subject(certificate)}, but did not issue it; its issuer is "
                f"{_issuer(certificate)}."
            )


def _issued(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(issuer)
    except (TypeError, UnsupportedAlgorithm):
        return True  # with an algorithm that is not known here; clients may know it
    except (ValueError, InvalidSignature):
        return False
    return True


def _issuer(certificate: x509.Certificate) -> str:
    return certificate.issuer.rfc4514_string() or "an issuer without a name"


def _check_key(key: PrivateKeyTypes, chain: list[x509.Certificate]) -> None:
    public = key.public_key()
    if public == chain[0].public_key():
        return
    for certificate in chain[1:]:
        if public == certificate.public_key():
            raise _invalid(
                f"TLS_PRIVATE_KEY is the key of {subject(certificate)}, whose certificate has to "
                f"come first in TLS_CERTIFICATE_CHAIN, but {subject(chain[0])} is first."
            )
    raise _invalid(
        "TLS_PRIVATE_KEY is not the key of the certificate that was set with "
        f"TLS_CERTIFICATE_CHAIN ({subject(chain[0])})."
    )


def _kind(key: PrivateKeyTypes) -> str:
    for type_, name in _KINDS.items():
        if isinstance(key, type_):
            return name
    raise _invalid(
        "TLS_PRIVATE_KEY is of a kind that TLS has no use for; "
        f"{', '.join(_KINDS.values())} would do."
    )


def _names(certificate: x509.Certificate) -> Names:
    try:
        return names_of(certificate)
    except UNREADABLE:
        return Names()  # whoever asks for a name does not get it


def _load_private_key(value: bytes) -> PrivateKeyTypes:
    # To prove that an RSA key's primes are prime takes seconds, or hours for one that was made so;
    # a wrong key does its owner no good, whose handshakes fail.
    try:
        if _is_pem(value):
            key = serialization.load_pem_private_key(
                value, password=None, unsafe_skip_rsa_key_validation=True
            )
        else:
            key = serialization.load_der_private_key(
                value, password=None, unsafe_skip_rsa_key_validation=True
            )
    except TypeError as error:
        # How cryptography says that a password is wanted.
        raise _invalid(
            "TLS_PRIVATE_KEY is encrypted and there is no way to ask for its password; "
            "decrypt it first (openssl pkey -in KEY -out PLAIN_KEY)."
        ) from error
    except (ValueError, UnsupportedAlgorithm) as error:
        # The error's own text is left out: it could quote the key.
        raise _invalid("TLS_PRIVATE_KEY holds no readable PEM or DER private key.") from error
    if isinstance(key, rsa.RSAPrivateKey) and key.key_size > _RSA_BITS_MAX:
        raise _invalid(
            f"TLS_PRIVATE_KEY is an RSA key of {key.key_size} bits; {_RSA_BITS_MAX} are the most."
        )
    return key


def _is_pem(value: bytes) -> bool:
    return b"-----BEGIN " in value


def _invalid(text: str) -> Refused:
    return Refused(errno.EINVAL, text)
