# SPDX-License-Identifier: BSD-3-Clause
"""Certificate revocation lists: where they are, whether one can be relied on, and what it says
(RFC 5280, 5 and 6.3).

Complete lists of the issuer itself are known; those of others (indirect ones), those for some
reasons only, and changes to a list (delta CRLs) are not.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass, field

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.types import CertificateIssuerPublicKeyTypes

from ssad.answer import (
    UNREADABLE_ANSWER,
    Answer,
    Status,
    Unusable,
    check_digest,
    reason_name,
    validity,
)
from ssad.identity import UNREADABLE, is_authority

SIZE_MAX = 16 * 1024 * 1024  # bytes; the largest in use have about 10 MiB


def urls(certificate: x509.Certificate) -> list[str]:
    """Return where a certificate says that a complete list of its issuer is
    (RFC 5280, 4.2.1.13)."""
    try:
        points = certificate.extensions.get_extension_for_class(x509.CRLDistributionPoints).value
    except (x509.ExtensionNotFound, *UNREADABLE):
        return []
    return [
        name.value
        for point in points
        if point.crl_issuer is None and point.reasons is None
        for name in point.full_name or ()
        if isinstance(name, x509.UniformResourceIdentifier)
    ]


@dataclass(frozen=True, slots=True)
class List:
    """A list that its issuer has signed. To be read once, since it may be long."""

    since: dt.datetime
    until: dt.datetime | None  # as the list itself has it
    size: int  # bytes
    _scope: x509.IssuingDistributionPoint | None
    _crl: x509.CertificateRevocationList = field(repr=False)

    def answer(self, certificate: x509.Certificate, now: dt.datetime) -> Answer:
        """Return what the list says of a certificate of its issuer.

        Raises Unusable if the list is about others, or does not hold now.
        """
        since, until = validity(self.since, self.until, now)
        if self._scope is not None:
            _check_scope(self._scope, certificate)
        try:
            entry = self._crl.get_revoked_certificate_by_serial_number(certificate.serial_number)
            if entry is None:
                return Answer(Status.GOOD, since, until)
            on = entry.revocation_date_utc
        except UNREADABLE_ANSWER as error:
            raise Unusable(f"can't be read ({error})") from error
        return Answer(Status.REVOKED, since, until, on, _reason(entry))


def read(data: bytes, issuer: x509.Certificate) -> List:
    """Read a list, DER or PEM, and verify that it is the issuer's.

    Takes time in proportion to its length. Raises Unusable.
    """
    try:
        if data.lstrip().startswith(b"-----BEGIN "):
            crl = x509.load_pem_x509_crl(data)
        else:
            crl = x509.load_der_x509_crl(data)
        if crl.issuer != issuer.subject:
            raise Unusable("is the list of another issuer")
        _check_signer(issuer)
        check_digest(crl.signature_hash_algorithm)
        if not crl.is_signature_valid(_public_key(issuer)):
            raise Unusable("has a signature that is not the issuer's")
        return List(
            crl.last_update_utc, crl.next_update_utc, len(data), _scope(crl.extensions), crl
        )
    except UNREADABLE_ANSWER as error:
        raise Unusable(f"can't be read ({error})") from error


def _public_key(issuer: x509.Certificate) -> CertificateIssuerPublicKeyTypes:
    return issuer.public_key()  # type: ignore[return-value]  # a TypeError is caught


def _check_signer(issuer: x509.Certificate) -> None:
    try:
        usage = issuer.extensions.get_extension_for_class(x509.KeyUsage).value
    except x509.ExtensionNotFound:
        return
    if not usage.crl_sign:
        raise Unusable("is signed by an issuer whose key may not sign lists")


def _scope(extensions: x509.Extensions) -> x509.IssuingDistributionPoint | None:
    """Return what the list is about, None for all of the issuer's certificates."""
    scope: x509.IssuingDistributionPoint | None = None
    for one in extensions:
        if isinstance(one.value, x509.IssuingDistributionPoint):
            scope = one.value
        elif isinstance(one.value, x509.DeltaCRLIndicator):
            raise Unusable("has the changes to another list only")
        elif one.critical:
            raise Unusable(f"has the unknown critical extension {one.oid.dotted_string}")
    return scope


def _check_scope(scope: x509.IssuingDistributionPoint, certificate: x509.Certificate) -> None:
    """Raise Unusable unless the list is about this certificate (RFC 5280, 6.3.3, (b) and (e)).

    An issuer can have many lists, all with its signature: whoever is in between could hand over
    the one that does not have the certificate.
    """
    authority = is_authority(certificate)
    if (
        scope.indirect_crl
        or scope.only_some_reasons
        or scope.only_contains_attribute_certs
        or scope.relative_name
        or (scope.only_contains_user_certs and authority)
        or (scope.only_contains_ca_certs and not authority)
    ):
        raise Unusable("is a list that is not about this kind of certificate")
    if scope.full_name is not None:
        names = {n.value for n in scope.full_name if isinstance(n, x509.UniformResourceIdentifier)}
        if names.isdisjoint(urls(certificate)):
            raise Unusable("is the issuer's list for other certificates")


def _reason(entry: x509.RevokedCertificate) -> str:
    try:
        return reason_name(entry.extensions.get_extension_for_class(x509.CRLReason).value.reason)
    except (x509.ExtensionNotFound, *UNREADABLE):
        return ""  # it is revoked all the same
