# SPDX-License-Identifier: BSD-3-Clause
"""Sentences for the verification errors that are hard to make a certificate for."""

from __future__ import annotations

import pytest
from cryptography import x509
from OpenSSL.SSL import X509VerificationCodes as Code

from ssad import verification
from ssad.verification import Fault, sentence
from tests.peers.pki import HOST, Pki

NUMBERS = sorted(
    {number for name, number in vars(Code).items() if name.startswith("ERR_")} | set(range(90))
)


@pytest.fixture
def certificate(pki: Pki) -> x509.Certificate:
    return x509.load_pem_x509_certificate(pki.ecdsa.chain.read_bytes())


@pytest.mark.parametrize("number", NUMBERS)
def test_every_error_has_a_sentence_that_names_the_certificate(
    certificate: x509.Certificate, number: int
) -> None:
    text = sentence(Fault(number, 0, certificate), "/store.pem")

    assert f"CN={HOST}" in text
    assert text.endswith(".")
    assert "{" not in text


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (Code.ERR_PATH_LENGTH_EXCEEDED, "is longer than allowed"),
        (Code.ERR_PERMITTED_VIOLATION, "name constraints of its issuers, CN=Test Intermediate"),
        (66, "too weak; the policy wants 112 bits of security"),
        (Code.ERR_CERT_SIGNATURE_FAILURE, "is not that of its issuer CN=Test Intermediate"),
        (Code.ERR_UNHANDLED_CRITICAL_EXTENSION, "critical extension"),
        (Code.ERR_INVALID_PURPOSE, "(key usage digitalSignature; extended key usage serverAuth)"),
        (Code.ERR_UNNESTED_RESOURCE, "number 46 of OpenSSL's verification errors"),
    ],
)
def test_a_sentence_says_what_is_wrong(
    certificate: x509.Certificate, code: int, words: str
) -> None:
    text = sentence(Fault(code, 0, certificate), "/store.pem")

    assert words in text


def test_a_clients_certificate_is_for_clients(certificate: x509.Certificate) -> None:
    text = sentence(Fault(Code.ERR_INVALID_PURPOSE, 0, certificate), "/store.pem", "client")

    assert "is not for TLS clients" in text
    assert text.endswith("the key usage digitalSignature and the extended key usage clientAuth.")


def test_a_key_may_sign_unless_its_usage_says_otherwise(pki: Pki) -> None:
    good = x509.load_pem_x509_certificate(pki.ecdsa.chain.read_bytes())
    bad = x509.load_pem_x509_certificate(pki.wrong_key_usage.chain.read_bytes())

    assert verification.signs(good)
    assert not verification.signs(bad)
