# SPDX-License-Identifier: BSD-3-Clause
"""Certificate revocation lists: which are relied on, what they say, and why others are not."""

from __future__ import annotations

import datetime as dt

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from ssad import crl
from ssad.answer import SKEW, Answer, Status, Unusable
from tests.peers.authority import HOUR, Authority, now, sources
from tests.peers.pki import Pki

URL = "http://crl.test/1.crl"


@pytest.fixture(scope="module")
def ca(pki: Pki) -> Authority:
    return Authority.load(pki.intermediate)


@pytest.fixture(scope="module")
def leaf(ca: Authority) -> x509.Certificate:
    return ca.issue(*sources(crl_url=URL))


def scope(url: str | None = None, *kinds: str) -> x509.IssuingDistributionPoint:
    flags = {
        "only_contains_user_certs": False,
        "only_contains_ca_certs": False,
        "indirect_crl": False,
        "only_contains_attribute_certs": False,
    }
    name = None if url is None else [x509.UniformResourceIdentifier(url)]
    return x509.IssuingDistributionPoint(
        name, None, only_some_reasons=None, **(flags | dict.fromkeys(kinds, True))
    )


def look_up(data: bytes, certificate: x509.Certificate, issuer: Authority) -> Answer:
    return crl.read(data, issuer.certificate).answer(certificate, now())


def unusable(data: bytes, certificate: x509.Certificate, issuer: Authority) -> str:
    """Look something up in a list that proves nothing; return why."""
    with pytest.raises(Unusable) as caught:
        look_up(data, certificate, issuer)
    return str(caught.value)


@pytest.mark.parametrize("encoding", [serialization.Encoding.DER, serialization.Encoding.PEM])
def test_what_is_not_listed_is_good(
    leaf: x509.Certificate, ca: Authority, encoding: serialization.Encoding
) -> None:
    since, until = now() - HOUR, now() + HOUR
    data = ca.crl({ca.issue(): None}, since=since, until=until, encoding=encoding)
    assert look_up(data, leaf, ca) == Answer(Status.GOOD, since, until + SKEW)


@pytest.mark.parametrize(
    ("flag", "reason"),
    [
        (None, ""),
        (x509.ReasonFlags.unspecified, ""),
        (x509.ReasonFlags.superseded, "superseded"),
        (x509.ReasonFlags.certificate_hold, "certificateHold"),
    ],
)
def test_what_is_listed_is_revoked(
    leaf: x509.Certificate, ca: Authority, flag: x509.ReasonFlags | None, reason: str
) -> None:
    found = look_up(ca.crl({ca.issue(): None, leaf: flag}), leaf, ca)
    assert (found.status, found.reason) == (Status.REVOKED, reason)
    assert found.revoked_on is not None
    assert found.revoked_on <= now() - HOUR


def test_the_list_of_another_issuer(leaf: x509.Certificate, ca: Authority, pki: Pki) -> None:
    assert "another issuer" in unusable(Authority.load(pki.top).crl(), leaf, ca)


def test_a_forged_list(leaf: x509.Certificate, ca: Authority) -> None:
    liar = Authority(ca.certificate, ec.generate_private_key(ec.SECP256R1()))
    assert "signature" in unusable(liar.crl(), leaf, ca)
    data = bytearray(ca.crl({leaf: None}))
    data[data.index(leaf.serial_number.to_bytes(20).lstrip(b"\0"))] ^= 1
    assert "signature" in unusable(bytes(data), leaf, ca)


def test_an_issuer_that_may_not_sign_lists(ca: Authority) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    signer = Authority(ca.issue(key=key), key)
    assert "may not sign lists" in unusable(signer.crl(), ca.issue(), signer)


def test_a_list_whose_time_is_over_or_to_come(leaf: x509.Certificate, ca: Authority) -> None:
    minute = dt.timedelta(minutes=1)
    old = ca.crl(since=now() - 2 * HOUR, until=now() - SKEW - minute)
    assert "held until" in unusable(old, leaf, ca)
    assert "begins" in unusable(
        ca.crl(since=now() + SKEW + minute, until=now() + 2 * HOUR), leaf, ca
    )


def test_one_of_several_lists_of_an_issuer(leaf: x509.Certificate, ca: Authority) -> None:
    """Another of its lists has its signature as well, and not the certificate."""
    assert look_up(ca.crl(None, scope(URL)), leaf, ca).status is Status.GOOD
    other = ca.crl(None, scope("http://crl.test/2.crl"))
    assert "for other certificates" in unusable(other, leaf, ca)


@pytest.mark.parametrize(
    "kind", ["only_contains_ca_certs", "only_contains_attribute_certs", "indirect_crl"]
)
def test_a_list_about_others(leaf: x509.Certificate, ca: Authority, kind: str) -> None:
    why = unusable(ca.crl(None, scope(None, kind)), leaf, ca)
    assert "not about this kind" in why


def test_a_list_about_users_or_authorities(leaf: x509.Certificate, ca: Authority) -> None:
    users = ca.crl(None, scope(None, "only_contains_user_certs"))
    authorities = ca.crl(None, scope(None, "only_contains_ca_certs"))
    below = ca.subordinate("Below").certificate
    assert look_up(users, leaf, ca).status is Status.GOOD
    assert look_up(authorities, below, ca).status is Status.GOOD
    assert "not about this kind" in unusable(users, below, ca)


def test_changes_to_a_list_and_what_is_not_known(leaf: x509.Certificate, ca: Authority) -> None:
    assert "changes to another" in unusable(ca.crl(None, x509.DeltaCRLIndicator(1)), leaf, ca)
    unknown = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\5\0")
    assert "1.2.3.4" in unusable(ca.crl(None, unknown), leaf, ca)


def test_garbage(leaf: x509.Certificate, ca: Authority) -> None:
    good = ca.crl()
    for data in (b"", b"garbage", good[:-1], b"-----BEGIN X509 CRL-----\n!\n"):
        assert "can't be read" in unusable(data, leaf, ca)


def test_which_lists_a_certificate_names(leaf: x509.Certificate, ca: Authority) -> None:
    assert crl.urls(leaf) == [URL]
    assert crl.urls(ca.issue()) == []
    name = x509.UniformResourceIdentifier(URL)
    for point in (
        x509.DistributionPoint([name], None, None, [x509.DirectoryName(ca.certificate.subject)]),
        x509.DistributionPoint([name], None, frozenset([x509.ReasonFlags.superseded]), None),
    ):
        assert crl.urls(ca.issue(x509.CRLDistributionPoints([point]))) == []
