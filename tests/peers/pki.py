# SPDX-License-Identifier: BSD-3-Clause
"""A private PKI: good certificates of servers and clients, and one of every kind that must be
refused.

`python -m tests.peers.pki DIRECTORY` writes it all as PEM files. Making it costs one RSA and a few
elliptic-curve keys: the certificates differ, the keys are shared, so that it is quick even in an
emulated machine. A directory that holds a PKI already is used as it is.
"""

from __future__ import annotations

import datetime as dt
import ipaddress
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

if TYPE_CHECKING:
    from collections.abc import Sequence

HOST = "server.test"
ALIAS = "www.server.test"
OTHER_HOST = "other.test"
ADDRESSES = ("127.0.0.1", "::1")
OTHER_ADDRESS = "192.0.2.1"  # RFC 5737: no host has it
# Names that one server has besides HOST, each with a certificate and a key of its own.
SITE = "site.test"
WILD = "*.wild.test"
INTERNATIONAL = "xn--bcher-kva.test"  # bücher.test
CLIENT = "client.test"
PASSWORD = b"password"

_PrivateKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey

_DAY = dt.timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Identity:
    """What a server shows: the PEM files of its chain, own certificate first, and of its key."""

    chain: Path
    key: Path


@dataclass(frozen=True, slots=True)
class Pki:
    """A directory of identities. Those whose names begin with `client` and `encrypted_key` apart,
    every identity is a server's; `client_only` is shown by a server too."""

    directory: Path

    @property
    def root(self) -> Path:
        """Trust store: the root of everything but what says otherwise."""
        return self.directory / "root.pem"

    @property
    def unknown_root(self) -> Path:
        """Trust store: the root of `unknown_ca`."""
        return self.directory / "unknown_root.pem"

    @property
    def rsa(self) -> Identity:
        """RSA-2048, valid for HOST, ALIAS and ADDRESSES."""
        return self._identity("rsa")

    @property
    def ecdsa(self) -> Identity:
        """ECDSA P-256, valid for HOST, ALIAS and ADDRESSES."""
        return self._identity("ecdsa")

    @property
    def expired(self) -> Identity:
        return self._identity("expired")

    @property
    def not_yet_valid(self) -> Identity:
        return self._identity("not_yet_valid")

    @property
    def self_signed(self) -> Identity:
        return self._identity("self_signed")

    @property
    def unknown_ca(self) -> Identity:
        """A complete chain up to a root that is in no trust store."""
        return self._identity("unknown_ca")

    @property
    def wrong_host(self) -> Identity:
        """Valid for OTHER_HOST and OTHER_ADDRESS only."""
        return self._identity("wrong_host")

    @property
    def international(self) -> Identity:
        """Valid for INTERNATIONAL only."""
        return self._identity("international")

    @property
    def no_address(self) -> Identity:
        """Valid for HOST, for no IP address."""
        return self._identity("no_address")

    @property
    def missing_intermediate(self) -> Identity:
        """A good certificate whose issuer the server does not send."""
        return self._identity("missing_intermediate")

    @property
    def issued_by_leaf(self) -> Identity:
        """Issued by a certificate that is no certificate authority (CA:FALSE)."""
        return self._identity("issued_by_leaf")

    @property
    def client_only(self) -> Identity:
        """Extended key usage clientAuth only."""
        return self._identity("client_only")

    @property
    def wrong_key_usage(self) -> Identity:
        """Key usage cRLSign only."""
        return self._identity("wrong_key_usage")

    @property
    def site(self) -> Identity:
        """ECDSA P-256, valid for SITE only."""
        return self._identity("site", "site")

    @property
    def site_rsa(self) -> Identity:
        """RSA-2048, valid for SITE only."""
        return self._identity("site_rsa", "rsa")

    @property
    def wild(self) -> Identity:
        """ECDSA P-256, valid for WILD only."""
        return self._identity("wild", "wild")

    @property
    def wrong_order(self) -> Identity:
        """A good chain whose file begins with the issuer."""
        return self._identity("wrong_order")

    @property
    def mismatching_key(self) -> Identity:
        """A good chain with the key of another one."""
        return Identity(self.ecdsa.chain, self.rsa.key)

    @property
    def encrypted_key(self) -> Identity:
        """A good chain whose key wants PASSWORD."""
        return self._identity("ecdsa", "encrypted")

    @property
    def client(self) -> Identity:
        """A good client: CN=CLIENT, extended key usage clientAuth."""
        return self._identity("client", "client")

    @property
    def client_expired(self) -> Identity:
        return self._identity("client_expired", "client")

    @property
    def client_unknown_ca(self) -> Identity:
        """A good client below `unknown_root`."""
        return self._identity("client_unknown_ca", "client")

    @property
    def client_not_for_clients(self) -> Identity:
        """Extended key usage serverAuth only."""
        return self._identity("client_not_for_clients", "client")

    @property
    def intermediate(self) -> Identity:
        """The authority below the root that issues what says nothing else."""
        return self._identity("intermediate", "intermediate")

    @property
    def top(self) -> Identity:
        """The root, as an authority."""
        return self._identity("root", "root")

    def _identity(self, name: str, key: str | None = None) -> Identity:
        key = key or ("rsa" if name == "rsa" else "ecdsa")
        return Identity(self.directory / f"{name}.pem", self.directory / f"{key}.key")


@dataclass(frozen=True, slots=True)
class _Authority:
    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey


def create(directory: Path) -> Pki:
    """Write the PKI into `directory`, unless it is there already."""
    pki = Pki(directory)
    complete = directory / "complete"
    if complete.exists():
        return pki
    directory.mkdir(parents=True, exist_ok=True)
    now = dt.datetime.now(dt.UTC).replace(microsecond=0)

    root = _authority("Test Root", None, now)
    intermediate = _authority("Test Intermediate", root, now)
    unknown_root = _authority("Unknown Root", None, now)
    rsa_key = rsa.generate_private_key(65537, 2048)
    ecdsa_key = ec.generate_private_key(ec.SECP256R1())
    _write_key(directory / "rsa.key", rsa_key)
    _write_key(directory / "ecdsa.key", ecdsa_key)
    _write_chain(directory / "root.pem", [root.certificate])
    _write_chain(directory / "unknown_root.pem", [unknown_root.certificate])
    _write_chain(directory / "intermediate.pem", [intermediate.certificate])
    _write_key(directory / "intermediate.key", intermediate.key)
    _write_key(directory / "root.key", root.key)

    def write(name: str, certificate: x509.Certificate, *issuers: x509.Certificate) -> None:
        _write_chain(directory / f"{name}.pem", [certificate, *issuers])

    above = intermediate.certificate
    good = _leaf(ecdsa_key, intermediate, now)
    write("rsa", _leaf(rsa_key, intermediate, now), above)
    write("ecdsa", good, above)
    write(
        "expired",
        _leaf(ecdsa_key, intermediate, now, first=now - 20 * _DAY, last=now - 10 * _DAY),
        above,
    )
    write(
        "not_yet_valid",
        _leaf(ecdsa_key, intermediate, now, first=now + 10 * _DAY, last=now + 20 * _DAY),
        above,
    )
    write("self_signed", _leaf(ecdsa_key, None, now))
    write("unknown_ca", _leaf(ecdsa_key, unknown_root, now), unknown_root.certificate)
    write(
        "wrong_host",
        _leaf(ecdsa_key, intermediate, now, names=[OTHER_HOST], addresses=[OTHER_ADDRESS]),
        above,
    )
    write("no_address", _leaf(ecdsa_key, intermediate, now, addresses=[]), above)
    write(
        "international",
        _leaf(ecdsa_key, intermediate, now, names=[INTERNATIONAL], addresses=[]),
        above,
    )
    write("missing_intermediate", good)
    # Its key usage would do, so that CA:FALSE alone forbids it to issue anything.
    no_authority = _leaf(
        ecdsa_key, intermediate, now, common_name="No Authority", usage=_key_usage(cert_sign=True)
    )
    write(
        "issued_by_leaf",
        _leaf(ecdsa_key, _Authority(no_authority, ecdsa_key), now),
        no_authority,
        above,
    )
    write(
        "client_only",
        _leaf(ecdsa_key, intermediate, now, purpose=ExtendedKeyUsageOID.CLIENT_AUTH),
        above,
    )
    write(
        "wrong_key_usage",
        _leaf(ecdsa_key, intermediate, now, usage=_key_usage(crl_sign=True)),
        above,
    )
    _write_chain(directory / "wrong_order.pem", [above, good])
    _write_key(directory / "encrypted.key", ecdsa_key, PASSWORD)
    for name, names in (("site", [SITE]), ("wild", [WILD])):
        key = ec.generate_private_key(ec.SECP256R1())
        _write_key(directory / f"{name}.key", key)
        write(
            name, _leaf(key, intermediate, now, common_name=name, names=names, addresses=[]), above
        )
    site_rsa = _leaf(rsa_key, intermediate, now, common_name="site", names=[SITE], addresses=[])
    write("site_rsa", site_rsa, above)
    _create_clients(directory, intermediate, unknown_root, now)
    complete.touch()
    return pki


def _create_clients(
    directory: Path, intermediate: _Authority, unknown_root: _Authority, now: dt.datetime
) -> None:
    """Write the identities of clients, which share a key."""
    key = ec.generate_private_key(ec.SECP256R1())
    _write_key(directory / "client.key", key)

    def write(
        name: str,
        issuer: _Authority,
        *,
        days: tuple[int, int] = (-1, 365),
        purpose: x509.ObjectIdentifier = ExtendedKeyUsageOID.CLIENT_AUTH,
    ) -> None:
        certificate = _leaf(
            key,
            issuer,
            now,
            common_name=CLIENT,
            names=[CLIENT],
            addresses=[],
            first=now + days[0] * _DAY,
            last=now + days[1] * _DAY,
            purpose=purpose,
        )
        _write_chain(directory / f"{name}.pem", [certificate, issuer.certificate])

    write("client", intermediate)
    write("client_expired", intermediate, days=(-20, -10))
    write("client_unknown_ca", unknown_root)
    write("client_not_for_clients", intermediate, purpose=ExtendedKeyUsageOID.SERVER_AUTH)


def _authority(
    name: str,
    issuer: _Authority | None,
    now: dt.datetime,
    further: Sequence[x509.ExtensionType] = (),
) -> _Authority:
    key = ec.generate_private_key(ec.SECP256R1())
    builder = (
        _builder(name, key, issuer, now - _DAY, now + 3650 * _DAY)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(_key_usage(cert_sign=True, crl_sign=True), critical=True)
    )
    for extension in further:
        builder = builder.add_extension(extension, critical=False)
    return _Authority(builder.sign((issuer.key if issuer else key), hashes.SHA256()), key)


def _leaf(
    key: _PrivateKey,
    issuer: _Authority | None,
    now: dt.datetime,
    *,
    common_name: str = HOST,
    names: Sequence[str] = (HOST, ALIAS),
    addresses: Sequence[str] = ADDRESSES,
    first: dt.datetime | None = None,
    last: dt.datetime | None = None,
    purpose: x509.ObjectIdentifier = ExtendedKeyUsageOID.SERVER_AUTH,
    usage: x509.KeyUsage | None = None,
    further: Sequence[x509.ExtensionType] = (),
) -> x509.Certificate:
    alternatives: list[x509.GeneralName] = [x509.DNSName(name) for name in names]
    alternatives += [x509.IPAddress(ipaddress.ip_address(address)) for address in addresses]
    builder = (
        _builder(common_name, key, issuer, first or now - _DAY, last or now + 365 * _DAY)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(usage or _key_usage(digital_signature=True), critical=True)
        .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
        .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
    )
    for extension in further:
        builder = builder.add_extension(extension, critical=False)
    return builder.sign(issuer.key if issuer else key, hashes.SHA256())


def _builder(
    name: str,
    key: _PrivateKey,
    issuer: _Authority | None,
    first: dt.datetime,
    last: dt.datetime,
) -> x509.CertificateBuilder:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    issuer_key = issuer.key if issuer else key
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.certificate.subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(first)
        .not_valid_after(last)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()),
            critical=False,
        )
    )


def _key_usage(
    *, digital_signature: bool = False, cert_sign: bool = False, crl_sign: bool = False
) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=cert_sign,
        crl_sign=crl_sign,
        encipher_only=False,
        decipher_only=False,
    )


def _write_chain(path: Path, chain: Sequence[x509.Certificate]) -> None:
    path.write_bytes(b"".join(c.public_bytes(serialization.Encoding.PEM) for c in chain))


def _write_key(path: Path, key: _PrivateKey, password: bytes | None = None) -> None:
    encryption: serialization.KeySerializationEncryption = serialization.NoEncryption()
    if password is not None:
        encryption = serialization.BestAvailableEncryption(password)
    path.touch(mode=0o600)
    path.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)
    )


if __name__ == "__main__":
    create(Path(sys.argv[1]))
