# SPDX-License-Identifier: BSD-3-Clause
"""Options that a program sets: what is taken, what is refused and with which errno."""

from __future__ import annotations

import datetime
import errno
import struct
from dataclasses import dataclass, replace

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from ssad.errors import Refused
from ssad.policy import TLS_1_2, TLS_1_3, Policy
from ssad.settings import Settings, known_ciphers, parse_host_name
from ssad.wire import TlsOption

POLICY = Policy()
ONLY_1_2 = replace(POLICY, version_max=TLS_1_2)
ONLY_1_3 = replace(POLICY, version_min=TLS_1_3)
NO_PROGRAM_TRUST = replace(POLICY, program_trust=False)

PEM, DER = serialization.Encoding.PEM, serialization.Encoding.DER


def u32(number: int) -> bytes:
    return struct.pack("=I", number)


@dataclass
class Pair:
    """A self-signed certificate and its key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    def key_bytes(self, encoding: serialization.Encoding = PEM, password: bytes = b"") -> bytes:
        encryption = (
            serialization.BestAvailableEncryption(password)
            if password
            else serialization.NoEncryption()
        )
        return self.key.private_bytes(encoding, serialization.PrivateFormat.PKCS8, encryption)


def make_pair(name: str) -> Pair:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now)
        .not_valid_after(now + datetime.timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    return Pair(certificate, key)


@pytest.fixture(scope="module")
def alice() -> Pair:
    return make_pair("alice")


@pytest.fixture(scope="module")
def bob() -> Pair:
    return make_pair("bob")


def refusal(settings: Settings, option: TlsOption, value: bytes, policy: Policy) -> Refused:
    """Set an option that must be refused; the settings must stay as they were."""
    before = replace(settings)
    with pytest.raises(Refused) as caught:
        settings.set(option, value, policy)
    assert settings == before
    assert caught.value.text.endswith(".")
    return caught.value


@pytest.mark.parametrize(
    ("given", "taken"),
    [
        ("example.com", "example.com"),
        ("EXAMPLE.com.", "example.com"),
        ("a", "a"),
        ("_dmarc.example.com", "_dmarc.example.com"),
        ("1.example.com", "1.example.com"),
        ("bücher.example", "xn--bcher-kva.example"),
        ("Straße.example", "xn--strae-oqa.example"),
        (".".join(["a" * 63] * 3 + ["b" * 61]), ".".join(["a" * 63] * 3 + ["b" * 61])),
        ("192.0.2.1", "192.0.2.1"),
        ("2001:DB8:0::1", "2001:db8::1"),
        ("::ffff:192.0.2.1", "::ffff:c000:201"),
    ],
)
def test_a_host_name_is_taken_in_its_canonical_form(given: str, taken: str) -> None:
    settings = Settings()
    settings.set(TlsOption.TLS_HOSTNAME, given.encode(), POLICY)
    assert settings.host_name == taken
    assert settings.get(TlsOption.TLS_HOSTNAME, POLICY) == taken.encode()


@pytest.mark.parametrize(
    "name",
    [
        b"",
        b".",
        b"..",
        b"a..b",
        b"example.com..",
        b"-a.example",
        b"a-.example",
        b"a" * 64 + b".example",
        b".".join([b"a" * 63] * 3 + [b"b" * 62]),
        b"*.example.com",
        b"ex ample.com",
        b"user@example.com",
        b"https://example.com/",
        b"example.com:443",
        b"127.1",
        b"1.2.3.4.5",
        b"256.1.1.1",
        b"[::1]",
        b"fe80::1%eth0",
        b"example.com\n",
        b"example.com\0.evil.example",
        b"\xff\xfe.example",
        "a\u2028b.example".encode(),
        "\u0301.example".encode(),
    ],
)
def test_what_is_no_host_name_is_refused(name: bytes) -> None:
    assert refusal(Settings(), TlsOption.TLS_HOSTNAME, name, POLICY).errno == errno.EINVAL


def test_a_sentence_quotes_only_the_start_of_a_long_name() -> None:
    with pytest.raises(Refused) as caught:
        parse_host_name("x." * 4000)
    assert len(caught.value.text) < 400


def test_trusted_certificates_are_kept_as_given(alice: Pair, bob: Pair) -> None:
    bundle = (
        alice.certificate.public_bytes(PEM) + b"a comment\n" + bob.certificate.public_bytes(PEM)
    )
    settings = Settings()
    settings.set(TlsOption.TLS_TRUSTED_PEER_CERTIFICATES, bundle, POLICY)
    assert settings.trusted == bundle


def test_trusted_certificates_must_be_certificates(alice: Pair) -> None:
    option = TlsOption.TLS_TRUSTED_PEER_CERTIFICATES
    broken = alice.certificate.public_bytes(PEM).replace(b"MII", b"???")
    for value in (b"", b"no certificate", alice.key_bytes(), broken):
        assert refusal(Settings(), option, value, POLICY).errno == errno.EINVAL


def test_trusted_certificates_can_be_reserved_to_the_policy(alice: Pair) -> None:
    option = TlsOption.TLS_TRUSTED_PEER_CERTIFICATES
    value = alice.certificate.public_bytes(PEM)
    assert refusal(Settings(), option, value, NO_PROGRAM_TRUST).errno == errno.EPROTO


@pytest.mark.parametrize("encoding", [PEM, DER])
def test_a_certificate_and_its_key_are_taken(alice: Pair, encoding: serialization.Encoding) -> None:
    settings = Settings()
    settings.set(TlsOption.TLS_CERTIFICATE_CHAIN, alice.certificate.public_bytes(encoding), POLICY)
    settings.set(TlsOption.TLS_PRIVATE_KEY, alice.key_bytes(encoding), POLICY)
    settings.check(POLICY)
    assert settings.chain == alice.certificate.public_bytes(PEM)
    assert settings.private_key == alice.key_bytes()


def test_a_key_needs_its_certificate_first(alice: Pair) -> None:
    refused = refusal(Settings(), TlsOption.TLS_PRIVATE_KEY, alice.key_bytes(), POLICY)
    assert refused.errno == errno.EINVAL
    assert "TLS_CERTIFICATE_CHAIN first" in refused.text


def test_a_certificate_without_its_key_stops_the_connect(alice: Pair) -> None:
    settings = Settings()
    settings.set(TlsOption.TLS_CERTIFICATE_CHAIN, alice.certificate.public_bytes(PEM), POLICY)
    with pytest.raises(Refused, match="without its key") as caught:
        settings.check(POLICY)
    assert caught.value.errno == errno.EINVAL


def test_another_key_an_encrypted_one_and_garbage_are_refused(alice: Pair, bob: Pair) -> None:
    settings = Settings()
    settings.set(TlsOption.TLS_CERTIFICATE_CHAIN, alice.certificate.public_bytes(PEM), POLICY)
    for value, sentence in [
        (bob.key_bytes(), "not the key of the certificate"),
        (alice.key_bytes(password=b"secret"), "is encrypted"),
        (alice.key_bytes(DER, password=b"secret"), "is encrypted"),
        (b"garbage", "no readable PEM or DER private key"),
        (b"", "no readable PEM or DER private key"),
    ]:
        refused = refusal(settings, TlsOption.TLS_PRIVATE_KEY, value, POLICY)
        assert refused.errno == errno.EINVAL
        assert sentence in refused.text


def test_another_certificate_takes_the_former_key_away(alice: Pair, bob: Pair) -> None:
    settings = Settings()
    settings.set(TlsOption.TLS_CERTIFICATE_CHAIN, alice.certificate.public_bytes(PEM), POLICY)
    settings.set(TlsOption.TLS_PRIVATE_KEY, alice.key_bytes(), POLICY)
    settings.set(TlsOption.TLS_CERTIFICATE_CHAIN, bob.certificate.public_bytes(PEM), POLICY)
    assert settings.private_key is None


@pytest.mark.parametrize(
    ("value", "names"),
    [
        (b"h2", ("h2",)),
        (b"h2,http/1.1", ("h2", "http/1.1")),
        (b"x" * 255, ("x" * 255,)),
    ],
)
def test_alpn_names_are_taken_in_order(value: bytes, names: tuple[str, ...]) -> None:
    settings = Settings()
    settings.set(TlsOption.TLS_ALPN, value, POLICY)
    assert settings.alpn == names
    assert settings.get(TlsOption.TLS_ALPN, POLICY) == value


@pytest.mark.parametrize(
    "value",
    [b"", b",", b"h2,", b"h2,,http/1.1", b"x" * 256, "ä".encode(), b"\xff", b"a," * 32768 + b"a"],
)
def test_what_is_no_alpn_list_is_refused(value: bytes) -> None:
    assert refusal(Settings(), TlsOption.TLS_ALPN, value, POLICY).errno == errno.EINVAL


MIN, MAX = TlsOption.TLS_VERSION_MIN, TlsOption.TLS_VERSION_MAX


@pytest.mark.parametrize(
    ("steps", "policy", "versions"),
    [
        ([], POLICY, (TLS_1_2, TLS_1_3)),
        ([(MIN, TLS_1_3)], POLICY, (TLS_1_3, TLS_1_3)),
        ([(MAX, TLS_1_2)], POLICY, (TLS_1_2, TLS_1_2)),
        ([(MIN, TLS_1_2), (MAX, TLS_1_3)], POLICY, (TLS_1_2, TLS_1_3)),
        ([(MIN, TLS_1_3), (MIN, TLS_1_2)], POLICY, (TLS_1_2, TLS_1_3)),
        ([(MAX, TLS_1_3)], ONLY_1_3, (TLS_1_3, TLS_1_3)),
    ],
)
def test_versions_can_be_narrowed(
    steps: list[tuple[TlsOption, int]], policy: Policy, versions: tuple[int, int]
) -> None:
    settings = Settings()
    for option, version in steps:
        settings.set(option, u32(version), policy)
    assert settings.versions(policy) == versions
    assert settings.get(MIN, policy) == u32(versions[0])
    assert settings.get(MAX, policy) == u32(versions[1])


@pytest.mark.parametrize(
    ("steps", "option", "value", "policy", "number"),
    [
        ([], MIN, u32(TLS_1_2), ONLY_1_3, errno.EPROTO),
        ([], MAX, u32(TLS_1_2), ONLY_1_3, errno.EPROTO),
        ([], MIN, u32(TLS_1_3), ONLY_1_2, errno.EPROTO),
        ([], MAX, u32(TLS_1_3), ONLY_1_2, errno.EPROTO),
        ([], MIN, u32(0x0302), POLICY, errno.EINVAL),
        ([], MAX, u32(0x0305), POLICY, errno.EINVAL),
        ([], MAX, u32(0), POLICY, errno.EINVAL),
        ([], MIN, b"", POLICY, errno.EINVAL),
        ([], MIN, b"\x03\x03", POLICY, errno.EINVAL),
        ([], MIN, u32(TLS_1_2) + b"\0", POLICY, errno.EINVAL),
        ([(MAX, TLS_1_2)], MIN, u32(TLS_1_3), POLICY, errno.EINVAL),
        ([(MIN, TLS_1_3)], MAX, u32(TLS_1_2), POLICY, errno.EINVAL),
    ],
)
def test_versions_outside_the_policy_or_in_the_wrong_order_are_refused(
    steps: list[tuple[TlsOption, int]], option: TlsOption, value: bytes, policy: Policy, number: int
) -> None:
    settings = Settings()
    for earlier, version in steps:
        settings.set(earlier, u32(version), policy)
    assert refusal(settings, option, value, policy).errno == number


TRUSTED = TlsOption.TLS_TRUSTED_CIPHERS
DISABLE = TlsOption.TLS_DISABLE_CIPHER
ENABLE = TlsOption.TLS_ENABLE_CIPHER

AES128_13 = "TLS_AES_128_GCM_SHA256"
AES256_13 = "TLS_AES_256_GCM_SHA384"
RSA_12 = "ECDHE-RSA-AES128-GCM-SHA256"


@pytest.mark.parametrize(
    ("steps", "ciphers"),
    [
        ([], POLICY.cipher_names()),
        ([(TRUSTED, f"{RSA_12}:{AES128_13}")], (RSA_12, AES128_13)),
        ([(TRUSTED, f"{RSA_12}:{RSA_12}")], (RSA_12,)),
        ([(DISABLE, AES128_13)], tuple(n for n in POLICY.cipher_names() if n != AES128_13)),
        ([(DISABLE, AES128_13), (ENABLE, AES128_13)], POLICY.cipher_names()),
        ([(DISABLE, "AES128-SHA")], POLICY.cipher_names()),
        ([(ENABLE, AES128_13)], POLICY.cipher_names()),
        ([(TRUSTED, RSA_12), (ENABLE, AES128_13)], (RSA_12, AES128_13)),
        ([(TRUSTED, f"{RSA_12}:{AES128_13}"), (DISABLE, RSA_12)], (AES128_13,)),
        ([(DISABLE, RSA_12), (TRUSTED, RSA_12)], (RSA_12,)),
    ],
)
def test_ciphers_can_be_narrowed(
    steps: list[tuple[TlsOption, str]], ciphers: tuple[str, ...]
) -> None:
    settings = Settings()
    for option, value in steps:
        settings.set(option, value.encode(), POLICY)
    assert settings.ciphers(POLICY) == ciphers
    assert settings.get(TRUSTED, POLICY) == ":".join(ciphers).encode()


@pytest.mark.parametrize(
    ("option", "value", "number"),
    [
        (TRUSTED, "NO-SUCH-CIPHER", errno.EINVAL),
        (TRUSTED, f"{RSA_12}:NO-SUCH-CIPHER", errno.EINVAL),
        (TRUSTED, "", errno.EINVAL),
        (TRUSTED, "ALL", errno.EINVAL),
        (TRUSTED, f"{RSA_12}:", errno.EINVAL),
        (TRUSTED, f"{RSA_12}:@SECLEVEL=0", errno.EINVAL),
        (TRUSTED, f"{RSA_12}:AES128-SHA", errno.EPROTO),
        (TRUSTED, "TLS_AES_128_CCM_SHA256", errno.EPROTO),
        (ENABLE, "AES128-SHA", errno.EPROTO),
        (ENABLE, "nonsense", errno.EINVAL),
        (DISABLE, "nonsense", errno.EINVAL),
        (DISABLE, f"{RSA_12}:{AES128_13}", errno.EINVAL),
    ],
)
def test_ciphers_unknown_or_outside_the_policy_are_refused(
    option: TlsOption, value: str, number: int
) -> None:
    assert refusal(Settings(), option, value.encode(), POLICY).errno == number


def test_the_last_cipher_cannot_be_disabled() -> None:
    settings = Settings()
    settings.set(TRUSTED, RSA_12.encode(), POLICY)
    assert refusal(settings, DISABLE, RSA_12.encode(), POLICY).errno == errno.EINVAL


def test_a_version_without_a_cipher_is_not_offered() -> None:
    settings = Settings()
    settings.set(TRUSTED, f"{AES256_13}:{AES128_13}".encode(), POLICY)
    assert settings.versions(POLICY) == (TLS_1_3, TLS_1_3)
    assert settings.ciphers13(POLICY) == f"{AES256_13}:{AES128_13}"
    assert settings.ciphers12(POLICY) == ""

    settings.set(TRUSTED, RSA_12.encode(), POLICY)
    assert settings.versions(POLICY) == (TLS_1_2, TLS_1_2)


def test_settings_that_leave_nothing_to_offer_stop_the_connect() -> None:
    settings = Settings()
    settings.set(TRUSTED, RSA_12.encode(), POLICY)
    settings.set(MIN, u32(TLS_1_3), POLICY)
    with pytest.raises(Refused, match="contradict") as caught:
        settings.check(POLICY)
    assert caught.value.errno == errno.EINVAL


@pytest.mark.parametrize("option", [TlsOption.TLS_SESSION_TTL, TlsOption.TLS_PEER_IDENTITY])
def test_other_options_are_not_implemented(option: TlsOption) -> None:
    assert refusal(Settings(), option, u32(1), POLICY).errno == errno.ENOPROTOOPT
    with pytest.raises(Refused) as caught:
        Settings().get(option, POLICY)
    assert caught.value.errno == errno.ENOPROTOOPT


def test_openssl_knows_every_cipher_of_the_default_policy() -> None:
    assert set(POLICY.cipher_names()) <= known_ciphers()
