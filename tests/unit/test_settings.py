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
from cryptography.hazmat.primitives.asymmetric import dsa, ec
from cryptography.x509.oid import ExtensionOID, NameOID

from ssad.credentials import Identity
from ssad.errors import Refused
from ssad.identity import Names
from ssad.policy import TLS_1_2, TLS_1_3, Policy
from ssad.settings import (
    AUTH_NONE,
    AUTH_OPTIONAL,
    AUTH_REQUIRED,
    Settings,
    known_ciphers,
    parse_host_name,
)
from ssad.wire import TlsOption
from tests.peers.pki import ADDRESSES, ALIAS, HOST, WILD, Pki
from tests.peers.pki import Identity as Files

POLICY = Policy()
ONLY_1_2 = replace(POLICY, version_max=TLS_1_2)
ONLY_1_3 = replace(POLICY, version_min=TLS_1_3)
NO_PROGRAM_TRUST = replace(POLICY, program_trust=False)

PEM, DER = serialization.Encoding.PEM, serialization.Encoding.DER


def u32(number: int) -> bytes:
    return struct.pack("=I", number)


@dataclass
class Pair:
    """A certificate and its key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    def key_bytes(self, encoding: serialization.Encoding = PEM, password: bytes = b"") -> bytes:
        encryption = (
            serialization.BestAvailableEncryption(password)
            if password
            else serialization.NoEncryption()
        )
        return self.key.private_bytes(encoding, serialization.PrivateFormat.PKCS8, encryption)


def make_pair(
    name: str, extension: x509.ExtensionType | None = None, issuer: Pair | None = None
) -> Pair:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.certificate.subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now)
        .not_valid_after(now + datetime.timedelta(days=1))
    )
    if extension is not None:
        builder = builder.add_extension(extension, critical=False)
    return Pair(builder.sign(issuer.key if issuer else key, hashes.SHA256()), key)


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
    (taken,) = settings.identities
    assert taken == Identity(
        alice.certificate.public_bytes(PEM), alice.key_bytes(), Names(), "ECDSA"
    )


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


CHAIN, KEY = TlsOption.TLS_CERTIFICATE_CHAIN, TlsOption.TLS_PRIVATE_KEY


def give(settings: Settings, *identities: Files) -> None:
    for one in identities:
        settings.set(CHAIN, one.chain.read_bytes(), POLICY)
        settings.set(KEY, one.key.read_bytes(), POLICY)


def test_pairs_are_kept_in_order_with_their_names_and_kinds(pki: Pki) -> None:
    settings = Settings()

    give(settings, pki.rsa, pki.wild, pki.ecdsa)

    assert [one.kind for one in settings.identities] == ["RSA", "ECDSA", "ECDSA"]
    first, wild, _ = settings.identities
    assert first.names.dns == (HOST, ALIAS)
    assert [str(address) for address in first.names.addresses] == list(ADDRESSES)
    assert wild.names == Names((WILD,))
    assert wild.chain == pki.wild.chain.read_bytes()
    assert wild.private_key == pki.wild.key.read_bytes()


def test_a_certificate_whose_names_can_not_be_read_has_none() -> None:
    odd = make_pair(
        "odd", x509.UnrecognizedExtension(ExtensionOID.SUBJECT_ALTERNATIVE_NAME, b"\x04\0")
    )
    settings = Settings()

    settings.set(CHAIN, odd.certificate.public_bytes(PEM), POLICY)
    settings.set(KEY, odd.key_bytes(), POLICY)

    assert settings.identities[0].names == Names()


def test_a_file_may_hold_the_key_and_the_chain(pki: Pki) -> None:
    both = pki.ecdsa.key.read_bytes() + pki.ecdsa.chain.read_bytes()
    settings = Settings()

    settings.set(CHAIN, both, POLICY)
    settings.set(KEY, both, POLICY)

    (taken,) = settings.identities
    assert taken.chain == pki.ecdsa.chain.read_bytes()
    assert taken.private_key == pki.ecdsa.key.read_bytes()


def test_two_chains_in_a_row_are_refused(pki: Pki) -> None:
    settings = Settings()
    settings.set(CHAIN, pki.ecdsa.chain.read_bytes(), POLICY)

    refused = refusal(settings, CHAIN, pki.rsa.chain.read_bytes(), POLICY)

    assert refused.errno == errno.EINVAL
    assert f"the key of the previous chain (CN={HOST}) is missing" in refused.text
    assert "TLS_PRIVATE_KEY" in refused.text


def test_a_chain_in_the_wrong_order_is_refused(pki: Pki) -> None:
    refused = refusal(Settings(), CHAIN, pki.wrong_order.chain.read_bytes(), POLICY)

    assert refused.errno == errno.EINVAL
    assert f"wrong order: the certificate of CN={HOST} has to come first" in refused.text
    assert "CN=Test Intermediate is first" in refused.text


def test_a_chain_whose_certificates_do_not_follow_each_other_is_refused(pki: Pki) -> None:
    value = pki.missing_intermediate.chain.read_bytes() + pki.root.read_bytes()

    refused = refusal(Settings(), CHAIN, value, POLICY)

    assert refused.errno == errno.EINVAL
    assert f"CN=Test Root follows the certificate of CN={HOST}, but did not issue" in refused.text
    assert "its issuer is CN=Test Intermediate" in refused.text


def test_an_issuer_of_the_same_name_with_another_key_did_not_issue(alice: Pair) -> None:
    value = alice.certificate.public_bytes(PEM) + make_pair("alice").certificate.public_bytes(PEM)

    assert "did not issue it" in refusal(Settings(), CHAIN, value, POLICY).text


def test_the_key_of_an_issuer_is_told_from_another_key(alice: Pair) -> None:
    leaf = make_pair("leaf", issuer=alice)
    settings = Settings()
    chain = leaf.certificate.public_bytes(PEM) + alice.certificate.public_bytes(PEM)
    settings.set(CHAIN, chain, POLICY)

    refused = refusal(settings, KEY, alice.key_bytes(), POLICY)

    assert refused.errno == errno.EINVAL
    assert "is the key of CN=alice, whose certificate has to come first" in refused.text
    assert "CN=leaf is first" in refused.text


def test_a_key_that_can_not_sign_in_tls_is_refused() -> None:
    key = dsa.generate_private_key(1024)  # noqa: S505 - takes seconds if it is longer
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "dsa")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), 1, now, now)
        .sign(key, hashes.SHA256())
        .public_bytes(PEM)
    )
    settings = Settings()
    settings.set(CHAIN, certificate, POLICY)
    value = key.private_bytes(PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())

    refused = refusal(settings, KEY, value, POLICY)

    assert refused.errno == errno.EINVAL
    assert "of a kind that TLS has no use for; RSA, ECDSA, Ed25519, Ed448 would do" in refused.text


def test_no_private_key_is_shown(pki: Pki) -> None:
    settings = Settings()
    give(settings, pki.ecdsa)

    assert "PRIVATE" not in repr(settings)


def test_listen_needs_a_certificate(pki: Pki) -> None:
    settings = Settings()
    settings.check(POLICY)

    with pytest.raises(Refused) as caught:
        settings.check_listen(POLICY)

    assert caught.value.errno == errno.EINVAL
    assert caught.value.text == (
        "listen() needs a certificate: set TLS_CERTIFICATE_CHAIN and TLS_PRIVATE_KEY before it."
    )
    give(settings, pki.ecdsa)
    settings.check_listen(POLICY)


def test_listen_wants_a_key_for_every_chain(pki: Pki) -> None:
    settings = Settings()
    give(settings, pki.rsa)
    settings.set(CHAIN, pki.ecdsa.chain.read_bytes(), POLICY)

    with pytest.raises(Refused, match="TLS_PRIVATE_KEY after it") as caught:
        settings.check_listen(POLICY)

    assert caught.value.errno == errno.EINVAL


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("expired", f"The certificate of CN={HOST} has expired, on "),
        ("not_yet_valid", f"The certificate of CN={HOST} is not valid before "),
        ("missing_intermediate", "unless they know its issuer, CN=Test Intermediate."),
    ],
)
def test_what_clients_will_refuse_is_a_warning(pki: Pki, name: str, words: str) -> None:
    settings = Settings()
    give(settings, pki.rsa, getattr(pki, name))

    (warning,) = settings.listen_warnings()

    assert words in warning
    assert warning.endswith(".")


@pytest.mark.parametrize("name", ["rsa", "self_signed", "unknown_ca"])
def test_a_chain_that_may_be_good_is_no_warning(pki: Pki, name: str) -> None:
    settings = Settings()
    give(settings, getattr(pki, name))

    assert settings.listen_warnings() == []


AUTH = TlsOption.TLS_REQUEST_PEER_AUTH


def test_client_certificates_are_not_asked_for_by_default() -> None:
    assert Settings().get(AUTH, POLICY) == u32(AUTH_NONE)


@pytest.mark.parametrize("level", [AUTH_NONE, AUTH_OPTIONAL, AUTH_REQUIRED])
def test_client_certificates_can_be_asked_for(level: int) -> None:
    settings = Settings()
    settings.set(AUTH, u32(level), POLICY)
    assert settings.get(AUTH, POLICY) == u32(level)


@pytest.mark.parametrize("value", [u32(3), u32(2**32 - 1), b"", b"\1", u32(1) + b"\0"])
def test_other_levels_of_client_authentication_are_refused(value: bytes) -> None:
    assert refusal(Settings(), AUTH, value, POLICY).errno == errno.EINVAL


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


@pytest.mark.parametrize("option", [TlsOption.TLS_RESUMED_SESSION, TlsOption.TLS_PEER_IDENTITY])
def test_other_options_are_not_implemented(option: TlsOption) -> None:
    assert refusal(Settings(), option, u32(1), POLICY).errno == errno.ENOPROTOOPT
    with pytest.raises(Refused) as caught:
        Settings().get(option, POLICY)
    assert caught.value.errno == errno.ENOPROTOOPT


def test_openssl_knows_every_cipher_of_the_default_policy() -> None:
    assert set(POLICY.cipher_names()) <= known_ciphers()


def test_a_key_that_is_too_long_is_refused_without_being_proved(pki: Pki) -> None:
    prime = 2**11213 - 1  # to prove that it is one takes minutes
    other = 2**9941 - 1
    exponent = 65537
    private = pow(exponent, -1, (prime - 1) * (other - 1))
    numbers = (0, prime * other, exponent, private, prime, other)
    rest = (private % (prime - 1), private % (other - 1), pow(other, -1, prime))
    body = b"".join(map(_der_integer, (*numbers, *rest)))
    key = b"\x30" + _der_length(len(body)) + body
    sock = Settings()
    sock.set(TlsOption.TLS_CERTIFICATE_CHAIN, pki.rsa.chain.read_bytes(), Policy())
    with pytest.raises(Refused, match="21154 bits") as refused:
        sock.set(TlsOption.TLS_PRIVATE_KEY, key, Policy())
    assert refused.value.errno == errno.EINVAL


def _der_integer(number: int) -> bytes:
    content = number.to_bytes(number.bit_length() // 8 + 1)
    return b"\x02" + _der_length(len(content)) + content


def _der_length(length: int) -> bytes:
    if length < 0x80:
        return bytes([length])
    size = (length.bit_length() + 7) // 8
    return bytes([0x80 | size]) + length.to_bytes(size)
