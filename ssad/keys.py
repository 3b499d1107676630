# SPDX-License-Identifier: BSD-3-Clause
"""From a connection's secrets to the keys that encrypt its records.

TLS 1.3: RFC 8446, 7.1 and 7.3. TLS 1.2: RFC 5246, 6.3, with RFC 5288 for AES-GCM and RFC 7905 for
ChaCha20-Poly1305.
"""

from __future__ import annotations

import enum
import re
import struct
from dataclasses import dataclass, field

from cryptography.hazmat.primitives import hashes, hmac
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from ssad import records
from ssad.policy import TLS_1_2, TLS_1_3

_NONCE_LENGTH = 12
_GCM_SALT_LENGTH = 4
_TAG_LENGTH = 16


class Aead(enum.Enum):
    """A cipher that kernel TLS knows; the value is the length of its key in bytes."""

    AES_128_GCM = "AES-128-GCM", 16
    AES_256_GCM = "AES-256-GCM", 32
    CHACHA20_POLY1305 = "ChaCha20-Poly1305", 32

    @property
    def key_length(self) -> int:
        """In bytes."""
        return self.value[1]


@dataclass(frozen=True, slots=True)
class Suite:
    """What a cipher suite's name says about its records and its key derivation."""

    aead: Aead
    hash: hashes.HashAlgorithm


@dataclass(frozen=True, slots=True)
class TrafficKey:
    """Key of one direction.

    `nonce` has 12 bytes: the static IV, or for AES-GCM in TLS 1.2 the salt and then the first
    explicit nonce to use. `sequence` is the number of the next record.
    """

    key: bytes = field(repr=False)
    nonce: bytes = field(repr=False)
    sequence: int


@dataclass(frozen=True, slots=True)
class KernelKeys:
    """Everything that kernel TLS has to be told about a connection."""

    version: int
    aead: Aead
    send: TrafficKey
    receive: TrafficKey


# Both OpenSSL's and the IANA's names: ECDHE-RSA-AES128-GCM-SHA256, TLS_AES_128_GCM_SHA256. CCM has
# a name that begins likewise, so the hash is asked for as well.
_SUITE_NAMES = (
    (re.compile(r"AES_?128[-_]GCM[-_]SHA256$"), Suite(Aead.AES_128_GCM, hashes.SHA256())),
    (re.compile(r"AES_?256[-_]GCM[-_]SHA384$"), Suite(Aead.AES_256_GCM, hashes.SHA384())),
    (
        re.compile(r"CHACHA20[-_]POLY1305(_SHA256)?$"),
        Suite(Aead.CHACHA20_POLY1305, hashes.SHA256()),
    ),
)


def suite(cipher: str) -> Suite | None:
    """Return the suite of a name that OpenSSL gives, None if kernel TLS can't do it."""
    for pattern, found in _SUITE_NAMES:
        if pattern.search(cipher):
            return found
    return None


def tls13(suite: Suite, send_secret: bytes, receive_secret: bytes, sent: int = 0) -> KernelKeys:
    """Keys of a TLS 1.3 connection that has received nothing after the handshake.

    The secrets are CLIENT_TRAFFIC_SECRET_0 and SERVER_TRAFFIC_SECRET_0, in the order of the side
    that asks. `sent` is the number of records that it has sent under its secret: a server's
    session tickets.
    """
    return KernelKeys(
        TLS_1_3,
        suite.aead,
        send=_tls13_direction(suite, send_secret, sent),
        receive=_tls13_direction(suite, receive_secret, 0),
    )


def _tls13_direction(suite: Suite, secret: bytes, sequence: int) -> TrafficKey:
    return TrafficKey(
        hkdf_expand_label(suite.hash, secret, b"key", suite.aead.key_length),
        hkdf_expand_label(suite.hash, secret, b"iv", _NONCE_LENGTH),
        sequence,
    )


def tls13_alert(suite: Suite, secret: bytes, description: int) -> bytes:
    """Return the record of a fatal alert, the first record that is sent under a secret
    (RFC 8446, 5.2)."""
    key = _tls13_direction(suite, secret, 0)
    cipher = ChaCha20Poly1305 if suite.aead is Aead.CHACHA20_POLY1305 else AESGCM
    inner = bytes((records.FATAL, description, records.ALERT))
    header = struct.pack("!BHH", records.APPLICATION_DATA, TLS_1_2, len(inner) + _TAG_LENGTH)
    return header + cipher(key.key).encrypt(key.nonce, inner, header)


def tls12(
    suite: Suite,
    master_secret: bytes,
    client_random: bytes,
    server_random: bytes,
    finished: bytes,
    *,
    server: bool = False,
) -> KernelKeys:
    """Keys of a TLS 1.2 connection right after the handshake, in which one record went each way.

    `finished` is the encrypted record that carried our Finished; `server` says which side we are.
    """
    gcm = suite.aead is not Aead.CHACHA20_POLY1305
    iv_length = _GCM_SALT_LENGTH if gcm else _NONCE_LENGTH
    key_length = suite.aead.key_length
    block = prf(
        suite.hash,
        master_secret,
        b"key expansion",
        server_random + client_random,
        2 * (key_length + iv_length),
    )
    # An AEAD has no MAC keys, so that the block is: keys, then IVs, the client's first each time.
    keys = block[:key_length], block[key_length : 2 * key_length]
    ivs = block[2 * key_length : -iv_length], block[-iv_length:]
    send_key, receive_key = reversed(keys) if server else keys
    send_iv, receive_iv = reversed(ivs) if server else ivs
    if gcm:
        # A nonce must never be used twice with a key. OpenSSL started at a random one, so go on
        # from there (the first 8 bytes of the record's body) instead of at the sequence number.
        (used,) = struct.unpack_from("!Q", finished, 5)
        send_iv += struct.pack("!Q", (used + 1) % 2**64)
        receive_iv += bytes(8)  # each record received brings its own
    return KernelKeys(
        TLS_1_2,
        suite.aead,
        send=TrafficKey(send_key, send_iv, sequence=1),
        receive=TrafficKey(receive_key, receive_iv, sequence=1),
    )


def hkdf_expand_label(
    algorithm: hashes.HashAlgorithm, secret: bytes, label: bytes, length: int
) -> bytes:
    """HKDF-Expand-Label of RFC 8446, 7.1 with an empty context."""
    label = b"tls13 " + label
    info = struct.pack("!HB", length, len(label)) + label + b"\0"
    return HKDFExpand(algorithm, length, info).derive(secret)


def prf(
    algorithm: hashes.HashAlgorithm, secret: bytes, label: bytes, seed: bytes, length: int
) -> bytes:
    """Compute the pseudorandom function of RFC 5246, 5."""
    seed = label + seed
    output = bytearray()
    a = seed
    while len(output) < length:
        a = _hmac(algorithm, secret, a)
        output += _hmac(algorithm, secret, a + seed)
    return bytes(output[:length])


def _hmac(algorithm: hashes.HashAlgorithm, key: bytes, data: bytes) -> bytes:
    context = hmac.HMAC(key, algorithm)
    context.update(data)
    return context.finalize()
