# SPDX-License-Identifier: BSD-3-Clause
"""Authorities that say what became of their certificates: OCSP responses and CRLs, good and bad."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509 import ocsp
from cryptography.x509.oid import AuthorityInformationAccessOID, ExtendedKeyUsageOID, NameOID

from tests.peers import pki
from tests.peers.pki import HOST, Identity

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

HOUR = dt.timedelta(hours=1)
MUST_STAPLE = x509.TLSFeature([x509.TLSFeatureType.status_request])


def now() -> dt.datetime:
    """Return the time, as answers have it."""
    return dt.datetime.now(dt.UTC).replace(microsecond=0)


def sources(*, ocsp_url: str = "", crl_url: str = "") -> list[x509.ExtensionType]:
    """Make the extensions that say who can be asked about a certificate."""
    made: list[x509.ExtensionType] = []
    if ocsp_url:
        location = x509.UniformResourceIdentifier(ocsp_url)
        made.append(
            x509.AuthorityInformationAccess(
                [x509.AccessDescription(AuthorityInformationAccessOID.OCSP, location)]
            )
        )
    if crl_url:
        name = x509.UniformResourceIdentifier(crl_url)
        made.append(x509.CRLDistributionPoints([x509.DistributionPoint([name], None, None, None)]))
    return made


@dataclass(frozen=True)
class Authority:
    """One that issues certificates and answers for them. `above`: certificates up to below the
    root."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey
    above: tuple[x509.Certificate, ...] = ()

    @classmethod
    def load(cls, identity: Identity) -> Authority:
        """Be the authority of a PKI."""
        key = serialization.load_pem_private_key(identity.key.read_bytes(), None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        return cls(x509.load_pem_x509_certificate(identity.chain.read_bytes()), key)

    def impostor(self) -> Authority:
        """Make an authority that has this one's name and another key."""
        name = self.certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value
        assert isinstance(name, str)
        made = pki._authority(name, None, now())
        return Authority(made.certificate, made.key)

    def subordinate(self, name: str, *further: x509.ExtensionType) -> Authority:
        """Make an authority below this one."""
        own = pki._Authority(self.certificate, self.key)
        made = pki._authority(name, own, now(), further)
        return Authority(made.certificate, made.key)

    def issue(
        self,
        *further: x509.ExtensionType,
        key: ec.EllipticCurvePrivateKey | None = None,
        name: str = HOST,
        purpose: x509.ObjectIdentifier = ExtendedKeyUsageOID.SERVER_AUTH,
        last: dt.datetime | None = None,
    ) -> x509.Certificate:
        """Issue a certificate, for servers unless something else is said."""
        return pki._leaf(
            key or ec.generate_private_key(ec.SECP256R1()),
            pki._Authority(self.certificate, self.key),
            now(),
            common_name=name,
            names=[name],
            last=last,
            purpose=purpose,
            further=further,
        )

    def identity(self, directory: Path, certificate: x509.Certificate, key: Path) -> Identity:
        """Write a chain whose key is in a file, for a server to show."""
        path = directory / f"{certificate.serial_number:x}.pem"
        chain = [certificate, self.certificate, *self.above]
        path.write_bytes(b"".join(c.public_bytes(serialization.Encoding.PEM) for c in chain))
        return Identity(path, key)

    def ocsp(
        self,
        certificate: x509.Certificate,
        status: ocsp.OCSPCertStatus = ocsp.OCSPCertStatus.GOOD,
        *,
        responder: Authority | None = None,
        shown: Sequence[x509.Certificate] = (),
        since: dt.datetime | None = None,
        until: dt.datetime | None = None,
        endless: bool = False,
        encoding: ocsp.OCSPResponderEncoding = ocsp.OCSPResponderEncoding.HASH,
        algorithm: hashes.HashAlgorithm | None = None,
    ) -> bytes:
        """Make a response about a certificate of this authority, signed by `responder`."""
        since = since or now() - HOUR
        signer = responder or self
        revoked = status is ocsp.OCSPCertStatus.REVOKED
        builder = (
            ocsp.OCSPResponseBuilder()
            .add_response(
                certificate,
                self.certificate,
                algorithm or hashes.SHA1(),  # noqa: S303 - it is only a name
                status,
                since,
                None if endless else until or now() + HOUR,
                since if revoked else None,
                x509.ReasonFlags.key_compromise if revoked else None,
            )
            .responder_id(encoding, signer.certificate)
        )
        if shown:
            builder = builder.certificates(shown)
        response = builder.sign(signer.key, hashes.SHA256())
        return response.public_bytes(serialization.Encoding.DER)

    def crl(
        self,
        revoked: Mapping[x509.Certificate, x509.ReasonFlags | None] | None = None,
        *further: x509.ExtensionType,
        since: dt.datetime | None = None,
        until: dt.datetime | None = None,
        encoding: serialization.Encoding = serialization.Encoding.DER,
    ) -> bytes:
        """Make a list with these certificates in it."""
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self.certificate.subject)
            .last_update(since or now() - HOUR)
            .next_update(until or now() + HOUR)
        )
        for extension in further:
            builder = builder.add_extension(extension, critical=True)
        for certificate, reason in (revoked or {}).items():
            entry = x509.RevokedCertificateBuilder().serial_number(certificate.serial_number)
            entry = entry.revocation_date(now() - HOUR)
            if reason is not None:
                entry = entry.add_extension(x509.CRLReason(reason), critical=False)
            builder = builder.add_revoked_certificate(entry.build())
        return builder.sign(self.key, hashes.SHA256()).public_bytes(encoding)
