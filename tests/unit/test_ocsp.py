# SPDX-License-Identifier: BSD-3-Clause
"""OCSP responses: which are relied on, and why others are not."""

from __future__ import annotations

import datetime as dt

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509 import ocsp as x509_ocsp
from cryptography.x509.oid import AuthorityInformationAccessOID, ExtendedKeyUsageOID

from ssad import ocsp
from ssad.answer import SKEW, Answer, Status, Unusable, refusal
from tests.peers.authority import HOUR, MUST_STAPLE, Authority, now, sources
from tests.peers.pki import HOST, Pki

SIGNING = ExtendedKeyUsageOID.OCSP_SIGNING
HASH, NAME = x509_ocsp.OCSPResponderEncoding.HASH, x509_ocsp.OCSPResponderEncoding.NAME
MINUTE = dt.timedelta(minutes=1)


@pytest.fixture(scope="module")
def ca(pki: Pki) -> Authority:
    return Authority.load(pki.intermediate)


@pytest.fixture(scope="module")
def leaf(ca: Authority) -> x509.Certificate:
    return ca.issue()


def delegate(
    issuer: Authority,
    purpose: x509.ObjectIdentifier = SIGNING,
    last: dt.datetime | None = None,
) -> Authority:
    """Make a responder with a certificate of its own."""
    key = ec.generate_private_key(ec.SECP256R1())
    return Authority(issuer.issue(key=key, name="responder", purpose=purpose, last=last), key)


def check(response: bytes, leaf: x509.Certificate, ca: Authority) -> Answer:
    return ocsp.check(response, leaf, ca.certificate, now())


def unusable(response: bytes, leaf: x509.Certificate, ca: Authority) -> str:
    """Check a response that proves nothing; return why."""
    with pytest.raises(Unusable) as caught:
        check(response, leaf, ca)
    return str(caught.value)


@pytest.mark.parametrize("encoding", [HASH, NAME])
@pytest.mark.parametrize("algorithm", [hashes.SHA1(), hashes.SHA256(), hashes.SHA512()])  # noqa: S303
def test_a_good_one_of_the_issuer(
    leaf: x509.Certificate,
    ca: Authority,
    encoding: x509_ocsp.OCSPResponderEncoding,
    algorithm: hashes.HashAlgorithm,
) -> None:
    until = now() + HOUR
    found = check(ca.ocsp(leaf, encoding=encoding, algorithm=algorithm, until=until), leaf, ca)
    assert found.status is Status.GOOD
    assert found.until == until + SKEW
    assert refusal(leaf, found, "it") == ""


@pytest.mark.parametrize("encoding", [HASH, NAME])
def test_a_good_one_of_whom_the_issuer_authorised(
    leaf: x509.Certificate, ca: Authority, encoding: x509_ocsp.OCSPResponderEncoding
) -> None:
    responder = delegate(ca)
    response = ca.ocsp(leaf, responder=responder, shown=[responder.certificate], encoding=encoding)
    assert check(response, leaf, ca).status is Status.GOOD


def test_one_that_was_revoked(leaf: x509.Certificate, ca: Authority) -> None:
    found = check(ca.ocsp(leaf, x509_ocsp.OCSPCertStatus.REVOKED), leaf, ca)
    assert found.status is Status.REVOKED
    why = refusal(leaf, found, "the register")
    assert f"CN={HOST} was revoked on {found.revoked_on:%Y-%m-%d %H:%M:%S} UTC" in why
    assert "(keyCompromise), says the register" in why


def test_one_that_is_unknown(leaf: x509.Certificate, ca: Authority) -> None:
    found = check(ca.ocsp(leaf, x509_ocsp.OCSPCertStatus.UNKNOWN), leaf, ca)
    assert found.status is Status.UNKNOWN
    assert "unknown to its authority" in refusal(leaf, found, "the register")


def test_a_time_that_is_over_or_to_come(leaf: x509.Certificate, ca: Authority) -> None:
    old = ca.ocsp(leaf, since=now() - 2 * HOUR, until=now() - SKEW - MINUTE)
    assert "held until" in unusable(old, leaf, ca)
    new = ca.ocsp(leaf, since=now() + SKEW + MINUTE)
    assert "begins to hold on" in unusable(new, leaf, ca)


def test_clocks_may_differ_a_little(leaf: x509.Certificate, ca: Authority) -> None:
    for response in (
        ca.ocsp(leaf, since=now() + SKEW - MINUTE),
        ca.ocsp(leaf, since=now() - HOUR, until=now() - SKEW + MINUTE),
    ):
        assert check(response, leaf, ca).status is Status.GOOD


def test_one_without_an_end_holds_for_minutes(leaf: x509.Certificate, ca: Authority) -> None:
    fresh = check(ca.ocsp(leaf, since=now() - MINUTE, endless=True), leaf, ca)
    assert fresh.until - now() < SKEW
    assert "held until" in unusable(ca.ocsp(leaf, endless=True), leaf, ca)


def test_another_certificates(leaf: x509.Certificate, ca: Authority, pki: Pki) -> None:
    assert "another certificate" in unusable(ca.ocsp(ca.issue()), leaf, ca)
    # The same number of another issuer.
    root = Authority.load(pki.top)
    other = Authority(root.certificate, ca.key)
    why = unusable(other.ocsp(leaf, responder=ca), leaf, ca)
    assert "another certificate" in why


def test_a_stranger_as_its_signer(leaf: x509.Certificate, ca: Authority, pki: Pki) -> None:
    stranger = delegate(Authority.load(pki.top))
    shown = [stranger.certificate]
    why = unusable(ca.ocsp(leaf, responder=stranger, shown=shown), leaf, ca)
    assert "issuer is not the certificate's" in why
    assert "somebody else" in unusable(ca.ocsp(leaf, responder=stranger), leaf, ca)


def test_one_who_has_the_issuers_name_only(leaf: x509.Certificate, ca: Authority) -> None:
    liar = ca.impostor()
    issued = delegate(liar)
    why = unusable(ca.ocsp(leaf, responder=issued, shown=[issued.certificate]), leaf, ca)
    assert "did not certify" in why
    forged = ca.ocsp(leaf, responder=liar, encoding=NAME)
    assert "signature that is wrong" in unusable(forged, leaf, ca)
    forged = ca.ocsp(leaf, responder=liar, shown=[liar.certificate])
    assert "did not certify" in unusable(forged, leaf, ca)


def test_a_server_of_the_issuers_is_no_responder(leaf: x509.Certificate, ca: Authority) -> None:
    server = delegate(ca, purpose=ExtendedKeyUsageOID.SERVER_AUTH)
    why = unusable(ca.ocsp(leaf, responder=server, shown=[server.certificate]), leaf, ca)
    assert "did not make its responder" in why
    # Nor does the certificate in question speak for itself.
    why = unusable(
        ca.ocsp(server.certificate, responder=server, shown=[server.certificate]),
        server.certificate,
        ca,
    )
    assert "did not make its responder" in why


def test_a_responder_whose_time_is_over(leaf: x509.Certificate, ca: Authority) -> None:
    late = delegate(ca, last=now() - MINUTE)
    why = unusable(ca.ocsp(leaf, responder=late, shown=[late.certificate]), leaf, ca)
    assert "not valid now" in why


def test_a_responder_that_can_not_answer(leaf: x509.Certificate, ca: Authority) -> None:
    response = x509_ocsp.OCSPResponseBuilder.build_unsuccessful(
        x509_ocsp.OCSPResponseStatus.TRY_LATER
    )
    with pytest.raises(ocsp.NoAnswer, match="try_later"):
        check(response.public_bytes(serialization.Encoding.DER), leaf, ca)


def test_garbage(leaf: x509.Certificate, ca: Authority) -> None:
    good = ca.ocsp(leaf)
    for response in (b"", b"garbage", good[:-1], good + b"\0", b"0" * 1000):
        assert "can't be read" in unusable(response, leaf, ca)


def test_every_byte_counts(leaf: x509.Certificate, ca: Authority) -> None:
    """No single changed byte makes a response about a revoked certificate speak for it."""
    response = ca.ocsp(leaf, x509_ocsp.OCSPCertStatus.REVOKED)
    for place in range(len(response)):
        changed = bytearray(response)
        changed[place] ^= 1
        try:
            assert check(bytes(changed), leaf, ca).status is Status.REVOKED
        except Unusable:
            continue


def test_a_request_names_the_certificate(leaf: x509.Certificate, ca: Authority) -> None:
    found = x509_ocsp.load_der_ocsp_request(ocsp.request(leaf, ca.certificate))
    assert found.serial_number == leaf.serial_number
    digest = x509.SubjectKeyIdentifier.from_public_key(ca.key.public_key()).digest
    assert found.issuer_key_hash == digest


def test_what_a_certificate_says(leaf: x509.Certificate, ca: Authority) -> None:
    assert ocsp.urls(leaf) == []
    assert not ocsp.must_staple(leaf)
    url = "http://ocsp.test/"
    other = x509.AuthorityInformationAccess(
        [
            x509.AccessDescription(
                AuthorityInformationAccessOID.CA_ISSUERS, x509.UniformResourceIdentifier(url)
            )
        ]
    )
    assert ocsp.urls(ca.issue(other)) == []
    told = ca.issue(*sources(ocsp_url=url), MUST_STAPLE)
    assert ocsp.urls(told) == [url]
    assert ocsp.must_staple(told)
