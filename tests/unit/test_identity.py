# SPDX-License-Identifier: BSD-3-Clause
"""Whom a certificate is for."""

from __future__ import annotations

import datetime as dt
import ipaddress

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from ssad.identity import Names, is_authority, mismatches, names_of, subject, wanted
from tests.peers.pki import Pki

IPV4 = ipaddress.ip_address("192.0.2.1")
IPV6 = ipaddress.ip_address("2001:db8::1")


@pytest.mark.parametrize(
    ("dns", "name"),
    [
        (["a.example"], "a.example"),
        (["A.Example"], "a.example"),
        (["b.example", "a.example"], "a.example"),
        (["*.example.org"], "www.example.org"),
        (["xn--bcher-kva.example"], "xn--bcher-kva.example"),
        (["*", "a.example"], "a.example"),
        (["192.0.2.1", "a.example"], "a.example"),
    ],
)
def test_a_name_matches(dns: list[str], name: str) -> None:
    assert mismatches(Names(tuple(dns)), name) == []


@pytest.mark.parametrize(
    ("dns", "name"),
    [
        (["b.example"], "a.example"),
        (["example"], "a.example"),
        (["a.example"], "a.example.org"),
        (["a.example.org"], "a.example"),
        (["*.example.org"], "example.org"),
        (["*.example.org"], "a.b.example.org"),
        (["*.org"], "example.org"),
        (["*"], "localhost"),
        (["w*.example.org"], "www.example.org"),
        (["a.*.org"], "a.example.org"),
        (["*.example.org"], "xn--bcher-kva.example.org"),
        (["a.example\0.b.example"], "a.example"),
        ([""], "a.example"),
    ],
)
def test_a_name_does_not_match(dns: list[str], name: str) -> None:
    assert mismatches(Names(tuple(dns)), name) == dns


@pytest.mark.parametrize(
    ("names", "address", "found"),
    [
        (Names(addresses=(IPV4,)), IPV4, []),
        (Names(addresses=(IPV6, IPV4)), IPV4, []),
        (Names(addresses=(IPV6,)), IPV4, ["2001:db8::1"]),
        (Names(dns=("192.0.2.1",)), IPV4, ["192.0.2.1"]),
        (Names(), IPV4, ["no host name or IP address"]),
    ],
)
def test_addresses_match_addresses_only(names: Names, address: object, found: list[str]) -> None:
    assert isinstance(address, ipaddress.IPv4Address)
    assert mismatches(names, address) == found


@pytest.mark.parametrize(
    ("host_name", "remote", "expected"),
    [
        ("a.example", "192.0.2.9", "a.example"),
        ("192.0.2.1", "192.0.2.9", IPV4),
        ("2001:db8::1", "192.0.2.9", IPV6),
        (None, "192.0.2.1", IPV4),
        (None, "2001:db8::1", IPV6),
        (None, "::ffff:192.0.2.1", IPV4),
        (None, "fe80::1%eth0", ipaddress.ip_address("fe80::1")),
    ],
)
def test_the_host_name_is_wanted_else_the_address(
    host_name: str | None, remote: str, expected: object
) -> None:
    assert wanted(host_name, ipaddress.ip_address(remote)) == expected


@pytest.mark.parametrize(
    ("names", "text"),
    [
        (Names(), "no host name or IP address"),
        (Names(("a", "b"), (IPV4,)), "a, b, 192.0.2.1"),
        (Names(tuple("abcdefg")), "a, b, c, d and 3 more"),
    ],
)
def test_names_are_listed_as_long_as_they_are_few(names: Names, text: str) -> None:
    assert str(names) == text


def certificate(
    common_name: str | None, alternatives: list[x509.GeneralName] | None
) -> x509.Certificate:
    key = ec.generate_private_key(ec.SECP256R1())
    attributes = [x509.NameAttribute(NameOID.COMMON_NAME, common_name)] if common_name else []
    now = dt.datetime.now(dt.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name(attributes))
        .issuer_name(x509.Name([]))
        .public_key(key.public_key())
        .serial_number(0x1234)
        .not_valid_before(now)
        .not_valid_after(now + dt.timedelta(days=1))
    )
    if alternatives is not None:
        names = x509.SubjectAlternativeName(alternatives)
        builder = builder.add_extension(names, critical=False)
    return builder.sign(key, hashes.SHA256())


def test_names_are_the_alternative_names_of_hosts() -> None:
    found = certificate(
        "cn.example",
        [
            x509.DNSName("a.example"),
            x509.RFC822Name("mail@b.example"),
            x509.UniformResourceIdentifier("https://c.example"),
            x509.IPAddress(IPV6),
        ],
    )

    assert names_of(found) == Names(("a.example",), (IPV6,))


def test_the_common_name_is_no_host_name() -> None:
    assert names_of(certificate("a.example", None)) == Names()


@pytest.mark.parametrize(
    ("common_name", "alternatives", "text"),
    [
        ("a.example", None, "CN=a.example"),
        (None, [x509.DNSName("b.example")], "DNS:b.example"),
        (None, [x509.IPAddress(IPV4)], "IP:192.0.2.1"),
        (None, None, "serial number 1234"),
    ],
)
def test_a_certificate_is_called_by_its_subject_or_its_first_name(
    common_name: str | None, alternatives: list[x509.GeneralName] | None, text: str
) -> None:
    assert subject(certificate(common_name, alternatives)) == text


def test_an_authority_may_issue_certificates(pki: Pki) -> None:
    own, issuer = x509.load_pem_x509_certificates(pki.ecdsa.chain.read_bytes())

    assert is_authority(issuer)
    assert not is_authority(own)
