# SPDX-License-Identifier: BSD-3-Clause
"""Why a peer's certificate chain was refused, in a sentence."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from typing import Literal

from cryptography import x509
from OpenSSL.SSL import X509VerificationCodes as Code

from ssad.identity import UNREADABLE, Address, mismatches, names_of, subject

# openssl/x509_vfy.h; pyOpenSSL does not name these.
_EE_KEY_TOO_SMALL = 66
_CA_KEY_TOO_SMALL = 67
_CA_MD_TOO_WEAK = 68
_INVALID_CA = 79  # since OpenSSL 3.0; 24 before

IDENTITY_MISMATCHES = frozenset(
    (Code.ERR_HOSTNAME_MISMATCH, Code.ERR_IP_ADDRESS_MISMATCH),
)

_NO_ISSUER = (
    "The certificate of {subject} was issued by {issuer}, whose certificate the peer did not send "
    "and {trust} lacks; the policy wants a complete chain up to a trusted authority."
)
_NO_AUTHORITY = (
    "The certificate of {subject} issued another one, yet it is not a certificate authority's; "
    "the policy wants CA:TRUE and the key usage keyCertSign of every issuer."
)
_NAME_CONSTRAINTS = (
    "The certificate of {subject} has a name that the name constraints of its issuers, "
    "{issuer} among them, do not allow."
)
_TOO_LONG = "The chain above the certificate of {subject} is longer than allowed."
_TOO_DEEP = (
    "The chain is too long: between the peer's own certificate and a trusted one there are more "
    "than the policy allows (trust.depth), the one of {subject} among them."
)
_TOO_WEAK = (
    "The certificate of {subject} has a key or a signature that is too weak; "
    "the policy wants 112 bits of security (RSA-2048, P-256, SHA-256 or better)."
)
_BAD_SIGNATURE = (
    "The certificate of {subject} has a signature that is not that of its issuer {issuer}."
)
_SENTENCES = {
    Code.ERR_CERT_HAS_EXPIRED: (
        "The certificate of {subject} expired on {last}; the policy wants a valid one."
    ),
    Code.ERR_CERT_NOT_YET_VALID: (
        "The certificate of {subject} is not valid before {first}; the policy wants a valid one."
    ),
    Code.ERR_DEPTH_ZERO_SELF_SIGNED_CERT: (
        "The certificate of {subject} is self-signed; the policy wants one issued by an authority "
        "in {trust}, or this very certificate there."
    ),
    Code.ERR_SELF_SIGNED_CERT_IN_CHAIN: (
        "The peer's chain ends with {subject}, an unknown authority; "
        "the policy wants a chain up to one in {trust}."
    ),
    Code.ERR_UNABLE_TO_GET_ISSUER_CERT: _NO_ISSUER,
    Code.ERR_UNABLE_TO_GET_ISSUER_CERT_LOCALLY: _NO_ISSUER,
    Code.ERR_UNABLE_TO_VERIFY_LEAF_SIGNATURE: _NO_ISSUER,
    Code.ERR_CERT_UNTRUSTED: _NO_ISSUER,
    Code.ERR_INVALID_CA: _NO_AUTHORITY,
    _INVALID_CA: _NO_AUTHORITY,
    Code.ERR_INVALID_NON_CA: _NO_AUTHORITY,
    Code.ERR_KEYUSAGE_NO_CERTSIGN: _NO_AUTHORITY,
    Code.ERR_INVALID_PURPOSE: (
        "The certificate of {subject} is not for TLS {peer}s ({usages}); the policy wants "
        "the key usage digitalSignature and the extended key usage {peer}Auth."
    ),
    Code.ERR_PERMITTED_VIOLATION: _NAME_CONSTRAINTS,
    Code.ERR_EXCLUDED_VIOLATION: _NAME_CONSTRAINTS,
    Code.ERR_SUBTREE_MINMAX: _NAME_CONSTRAINTS,
    Code.ERR_UNSUPPORTED_CONSTRAINT_TYPE: _NAME_CONSTRAINTS,
    Code.ERR_UNSUPPORTED_CONSTRAINT_SYNTAX: _NAME_CONSTRAINTS,
    Code.ERR_UNSUPPORTED_NAME_SYNTAX: _NAME_CONSTRAINTS,
    Code.ERR_CERT_CHAIN_TOO_LONG: _TOO_DEEP,
    Code.ERR_PATH_LENGTH_EXCEEDED: _TOO_LONG,
    _EE_KEY_TOO_SMALL: _TOO_WEAK,
    _CA_KEY_TOO_SMALL: _TOO_WEAK,
    _CA_MD_TOO_WEAK: _TOO_WEAK,
    Code.ERR_CERT_SIGNATURE_FAILURE: _BAD_SIGNATURE,
    Code.ERR_UNABLE_TO_DECRYPT_CERT_SIGNATURE: _BAD_SIGNATURE,
    Code.ERR_UNABLE_TO_DECODE_ISSUER_PUBLIC_KEY: _BAD_SIGNATURE,
    Code.ERR_UNHANDLED_CRITICAL_EXTENSION: (
        "The certificate of {subject} has a critical extension that is not known here."
    ),
}
_OTHER = (
    "The certificate of {subject} was refused: number {code} of OpenSSL's verification errors "
    "(X509_STORE_CTX_get_error(3)), {depth} steps above the peer's own."
)


@dataclass(frozen=True, slots=True)
class Fault:
    """The first thing that is wrong with a chain: OpenSSL's number for it, how far above the
    peer's own certificate, and the certificate there."""

    code: int
    depth: int
    certificate: x509.Certificate


def sentence(fault: Fault, trust: str, peer: Literal["server", "client"] = "server") -> str:
    """Say why a chain was refused. `trust` is where trusted certificates come from, `peer` what
    the one is that showed it."""
    certificate = fault.certificate
    return _SENTENCES.get(fault.code, _OTHER).format(
        subject=subject(certificate),
        issuer=certificate.issuer.rfc4514_string() or "an issuer without a name",
        first=_time(certificate.not_valid_before_utc),
        last=_time(certificate.not_valid_after_utc),
        usages=_usages(certificate),
        trust=trust,
        peer=peer,
        code=fault.code,
        depth=fault.depth,
    )


def wrong_identity(
    certificate: x509.Certificate, wanted: str | Address, *, refused: bool = False
) -> str:
    """Say that a certificate is not the wanted peer's; empty if it is.

    `refused`: OpenSSL has decided already that it is not.
    """
    names = names_of(certificate)
    if not refused and not mismatches(names, wanted):
        return ""
    return (
        f"The certificate of {subject(certificate)} is for {names}; "
        f"the policy wants one for {wanted}."
    )


def signs(certificate: x509.Certificate) -> bool:
    """Tell whether a certificate's key may sign handshakes, as it does in every suite that we
    offer (RFC 8446, 4.4.2.2). OpenSSL looks at it for some keys only."""
    try:
        usage = certificate.extensions.get_extension_for_class(x509.KeyUsage).value
    except x509.ExtensionNotFound:
        return True
    except UNREADABLE:
        return False
    return usage.digital_signature


def _usages(certificate: x509.Certificate) -> str:
    """List what a certificate may be used for."""
    usages = []
    try:
        extensions = certificate.extensions
    except UNREADABLE:
        return "its extensions can't be read"
    for extension in extensions:
        value = extension.value
        if isinstance(value, x509.ExtendedKeyUsage):
            # pyca's name for an OID is only in its repr; the dotted number is the fallback.
            names = ", ".join(_EXTENDED.get(oid.dotted_string, oid.dotted_string) for oid in value)
            usages.append(f"extended key usage {names}")
        if isinstance(value, x509.KeyUsage):
            names = ", ".join(name for field, name in _USAGES if getattr(value, field))
            usages.append(f"key usage {names or 'none'}")
    return "; ".join(usages) or "its key usage is not restricted"


_EXTENDED = {
    "1.3.6.1.5.5.7.3.1": "serverAuth",
    "1.3.6.1.5.5.7.3.2": "clientAuth",
    "1.3.6.1.5.5.7.3.3": "codeSigning",
    "1.3.6.1.5.5.7.3.4": "emailProtection",
    "1.3.6.1.5.5.7.3.8": "timeStamping",
    "1.3.6.1.5.5.7.3.9": "OCSPSigning",
}
_USAGES = (
    ("digital_signature", "digitalSignature"),
    ("content_commitment", "nonRepudiation"),
    ("key_encipherment", "keyEncipherment"),
    ("data_encipherment", "dataEncipherment"),
    ("key_agreement", "keyAgreement"),
    ("key_cert_sign", "keyCertSign"),
    ("crl_sign", "cRLSign"),
)


def _time(when: dt.datetime) -> str:
    return f"{when:%Y-%m-%d %H:%M:%S} UTC"
