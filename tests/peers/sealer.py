# SPDX-License-Identifier: BSD-3-Clause
"""A record layer that seals whatever it is told to: of any type and length, padded, or broken.

TLS 1.3: RFC 8446, 5.2. TLS 1.2: RFC 5246, 6.2.3.3, with RFC 5288 for AES-GCM and RFC 7905 for
ChaCha20-Poly1305.
"""

from __future__ import annotations

import os
import struct
from typing import TYPE_CHECKING, Literal

from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305

if TYPE_CHECKING:
    from tests.peers.servers import Version

APPLICATION_DATA = 23
PLAIN_MAX = 1 << 14

Cipher = Literal["AES-128-GCM", "AES-256-GCM", "ChaCha20-Poly1305"]
CIPHERS: tuple[Cipher, ...] = ("AES-128-GCM", "AES-256-GCM", "ChaCha20-Poly1305")

_SALT = 4  # bytes of the nonce that a record of TLS 1.2 with AES-GCM does not carry


def key_length(cipher: Cipher) -> int:
    """Bytes of a cipher's key."""
    return 16 if cipher == "AES-128-GCM" else 32


class Sealer:
    """One direction of a connection: seals what is sent, opens what is received."""

    def __init__(
        self, version: Version, cipher: Cipher, key: bytes, nonce: bytes, sequence: int = 0
    ) -> None:
        """`nonce`: 12 bytes, the last 8 of which do not matter to AES-GCM in TLS 1.2; `sequence`:
        the number of the next record."""
        self.version = version
        self.cipher = cipher
        self.key = key
        self.nonce = nonce
        self.sequence = sequence
        self._aead = (ChaCha20Poly1305 if cipher == "ChaCha20-Poly1305" else AESGCM)(key)
        self._explicit = version == "TLSv1.2" and cipher != "ChaCha20-Poly1305"

    @classmethod
    def random(cls, version: Version, cipher: Cipher) -> Sealer:
        """Make up a key."""
        return cls(version, cipher, os.urandom(key_length(cipher)), os.urandom(12))

    def seal(
        self,
        kind: int,
        body: bytes,
        *,
        padding: int = 0,
        spoil: bool = False,
        outer: int = APPLICATION_DATA,
    ) -> bytes:
        """Return `body` as the next record, however long or wrong it is.

        `padding`: bytes of it, in TLS 1.3 only; `spoil`: the authentication tag is wrong; `outer`:
        the type that a record of TLS 1.3 shows to everybody.
        """
        nonce, explicit = self._next_nonce()
        if self.version == "TLSv1.3":
            body += bytes((kind,)) + bytes(padding)
            head = struct.pack("!BHH", outer, 0x0303, len(body) + 16)
            sealed = self._aead.encrypt(
                nonce, body, struct.pack("!BHH", APPLICATION_DATA, 0x0303, len(body) + 16)
            )
        else:
            head = struct.pack("!BHH", kind, 0x0303, len(explicit) + len(body) + 16)
            sealed = self._aead.encrypt(nonce, body, self._bound(kind, len(body)))
        if spoil:
            sealed = sealed[:-1] + bytes((sealed[-1] ^ 1,))
        self.sequence += 1
        return head + explicit + sealed

    def open(self, record: bytes) -> tuple[int, bytes]:
        """Return type and content of the next record. Raises InvalidTag."""
        head, body = record[:5], record[5:]
        if self.version == "TLSv1.3":
            nonce, _ = self._next_nonce()
            inner = self._aead.decrypt(nonce, body, head).rstrip(b"\0")
            kind, content = inner[-1], inner[:-1]
        else:
            if self._explicit:
                nonce, body = self.nonce[:_SALT] + body[:8], body[8:]
            else:
                nonce, _ = self._next_nonce()
            kind = head[0]
            content = self._aead.decrypt(nonce, body, self._bound(kind, len(body) - 16))
        self.sequence += 1
        return kind, content

    def _next_nonce(self) -> tuple[bytes, bytes]:
        """Return the nonce of the next record, and what of it the record carries."""
        number = struct.pack("!Q", self.sequence)
        if self._explicit:
            return self.nonce[:_SALT] + number, number
        mixed = int.from_bytes(self.nonce) ^ self.sequence
        return mixed.to_bytes(12), b""

    def _bound(self, kind: int, length: int) -> bytes:
        """TLS 1.2: what the tag protects besides the content."""
        return struct.pack("!QBHH", self.sequence, kind, 0x0303, length)
