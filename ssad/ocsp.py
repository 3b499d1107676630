# SPDX-License-Identifier: BSD-3-Clause
"""OCSP: the question about one certificate, and the check of the answer (RFC 6960).

Knows nothing of connections: an answer may have been stapled, or come from a responder.
"""

from __future__ import annotations

import datetime as dt

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, padding, rsa
from cryptography.x509 import ocsp
from cryptography.x509.oid import AuthorityInformationAccessOID, ExtendedKeyUsageOID

from ssad.answer import (
    UNREADABLE_ANSWER,
    Answer,
    Status,
    Unusable,
    check_digest,
    reason_name,
    validity,
)
from ssad.identity import UNREADABLE

RESPONSE_MAX = 64 * 1024  # bytes; one with a responder's RSA-4096 certificate has about 4 KiB
REQUEST_TYPE = "application/ocsp-request"

# More than one is for certificates, responses and responders that are somebody's mistake.
_RESPONSES_MAX = 64
_CERTIFICATES_MAX = 4

_STATUSES = {
    ocsp.OCSPCertStatus.GOOD: Status.GOOD,
    ocsp.OCSPCertStatus.REVOKED: Status.REVOKED,
    ocsp.OCSPCertStatus.UNKNOWN: Status.UNKNOWN,
}


class NoAnswer(Unusable):
    """The responder says that it can't answer. Anybody could say so: it is not signed."""


def urls(certificate: x509.Certificate) -> list[str]:
    """Return where a certificate says that it can be asked for (RFC 5280, 4.2.2.1)."""
    try:
        found = certificate.extensions.get_extension_for_class(x509.AuthorityInformationAccess)
    except (x509.ExtensionNotFound, *UNREADABLE):
        return []
    return [
        one.access_location.value
        for one in found.value
        if one.access_method == AuthorityInformationAccessOID.OCSP
        and isinstance(one.access_location, x509.UniformResourceIdentifier)
    ]


def must_staple(certificate: x509.Certificate) -> bool:
    """Tell whether a server with this certificate has to staple (RFC 7633). One whose extensions
    can't be read has not said that it need not."""
    try:
        features = certificate.extensions.get_extension_for_class(x509.TLSFeature).value
    except x509.ExtensionNotFound:
        return False
    except UNREADABLE:
        return True
    return x509.TLSFeatureType.status_request in features


def request(certificate: x509.Certificate, issuer: x509.Certificate) -> bytes:
    """Ask for one certificate, in DER. SHA-1 only names it, and is what every responder knows
    (RFC 5019, 2.1.1). There is no nonce, which most responders would ignore.

    Raises Unusable if that can't be put into words.
    """
    try:
        question = _question(certificate, issuer, hashes.SHA1())  # noqa: S303
    except UNREADABLE_ANSWER as error:
        raise Unusable(f"can't be asked about it ({error})") from error
    return question.public_bytes(serialization.Encoding.DER)


def check(
    response: bytes, certificate: x509.Certificate, issuer: x509.Certificate, now: dt.datetime
) -> Answer:
    """Verify a response about a certificate and return what it says.

    Raises NoAnswer if the responder could not answer; Unusable if the response can't be read, is
    about another certificate, does not hold now, or is not signed by `issuer` or by whom it has
    authorised (RFC 6960, 3.2 and 4.2.2.2).
    """
    try:
        found = ocsp.load_der_ocsp_response(response)
        if found.response_status is not ocsp.OCSPResponseStatus.SUCCESSFUL:
            raise NoAnswer(f"says {found.response_status.name.lower()}")
        _check_extensions(found.extensions)
        _check_signature(found, _signer(found, issuer, now))
        single = _single(found, certificate, issuer)
        since, until = validity(single.this_update_utc, single.next_update_utc, now)
        status = _STATUSES[single.certificate_status]
        return Answer(
            status,
            since,
            until,
            single.revocation_time_utc if status is Status.REVOKED else None,
            reason_name(single.revocation_reason) if status is Status.REVOKED else "",
        )
    except UNREADABLE_ANSWER as error:
        raise Unusable(f"can't be read ({error})") from error


def _question(
    certificate: x509.Certificate, issuer: x509.Certificate, algorithm: hashes.HashAlgorithm
) -> ocsp.OCSPRequest:
    return ocsp.OCSPRequestBuilder().add_certificate(certificate, issuer, algorithm).build()


def _check_extensions(extensions: x509.Extensions) -> None:
    for one in extensions:
        if one.critical and isinstance(one.value, x509.UnrecognizedExtension):
            raise Unusable(f"has the unknown critical extension {one.oid.dotted_string}")


def _single(
    response: ocsp.OCSPResponse, certificate: x509.Certificate, issuer: x509.Certificate
) -> ocsp.OCSPSingleResponse:
    """Return the newest part of a response that is about this certificate."""
    found: list[ocsp.OCSPSingleResponse] = []
    for number, one in enumerate(response.responses):
        if number == _RESPONSES_MAX:
            break
        if one.serial_number != certificate.serial_number:
            continue
        wanted = _question(certificate, issuer, one.hash_algorithm)
        if (one.issuer_name_hash, one.issuer_key_hash) == (
            wanted.issuer_name_hash,
            wanted.issuer_key_hash,
        ):
            found.append(one)
    if not found:
        raise Unusable("is about another certificate")
    return max(found, key=lambda one: one.this_update_utc)


def _signer(
    response: ocsp.OCSPResponse, issuer: x509.Certificate, now: dt.datetime
) -> x509.Certificate:
    """Return the certificate of the one that signed, who must be authorised to."""
    if _is_responder(response, issuer):
        return issuer
    for candidate in response.certificates[:_CERTIFICATES_MAX]:
        if _is_responder(response, candidate):
            _check_delegate(candidate, issuer, now)
            return candidate
    raise Unusable("is signed by somebody else than the certificate's issuer")


def _is_responder(response: ocsp.OCSPResponse, candidate: x509.Certificate) -> bool:
    if response.responder_name is not None:
        return candidate.subject == response.responder_name
    digest = x509.SubjectKeyIdentifier.from_public_key(candidate.public_key()).digest
    return digest == response.responder_key_hash


def _check_delegate(delegate: x509.Certificate, issuer: x509.Certificate, now: dt.datetime) -> None:
    """Raise Unusable unless the issuer itself has made this one its responder.

    It is not checked for revocation in turn: those in use last for days and say so
    (RFC 6960, 4.2.2.2.1).
    """
    try:
        delegate.verify_directly_issued_by(issuer)
    except InvalidSignature as error:
        raise Unusable("is signed by one that the certificate's issuer did not certify") from error
    except ValueError as error:
        raise Unusable("is signed by one whose issuer is not the certificate's") from error
    check_digest(delegate.signature_hash_algorithm)
    if not delegate.not_valid_before_utc <= now <= delegate.not_valid_after_utc:
        raise Unusable("is signed by a responder whose own certificate is not valid now")
    try:
        usages = list(delegate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)
    except x509.ExtensionNotFound:
        usages = []
    if ExtendedKeyUsageOID.OCSP_SIGNING not in usages:
        raise Unusable("is signed by one that the certificate's issuer did not make its responder")


def _check_signature(response: ocsp.OCSPResponse, signer: x509.Certificate) -> None:
    key = signer.public_key()
    signature, signed = response.signature, response.tbs_response_bytes
    try:
        if isinstance(key, ed25519.Ed25519PublicKey | ed448.Ed448PublicKey):
            key.verify(signature, signed)
            return
        algorithm = response.signature_hash_algorithm
        if algorithm is None:
            raise Unusable("is signed in a way that does not fit the key")
        check_digest(algorithm)
        if isinstance(key, rsa.RSAPublicKey) and key.key_size >= 2048:
            key.verify(signature, signed, padding.PKCS1v15(), algorithm)
        elif isinstance(key, ec.EllipticCurvePublicKey) and key.key_size >= 224:
            key.verify(signature, signed, ec.ECDSA(algorithm))
        else:
            raise Unusable("is signed with a key that is too weak or not known here")
    except InvalidSignature as error:
        raise Unusable("has a signature that is wrong") from error
