# SPDX-License-Identifier: BSD-3-Clause
"""What a program gets of the records that its peer sends over kernel TLS: the data before the first
record that ends the stream, and that end."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Literal

from tests.peers.hostile import APPLICATION_DATA, HANDSHAKE
from tests.peers.tls_peer import ALERT, WARNING

if TYPE_CHECKING:
    from tests.peers.servers import Version

# RFC 8446, 4; RFC 5246, 7.4.
HELLO_REQUEST = 0
CLIENT_HELLO = 1
NEW_SESSION_TICKET = 4
KEY_UPDATE = 24

CLOSE_NOTIFY = 0
UNEXPECTED_MESSAGE = 10
BAD_RECORD_MAC = 20
RECORD_OVERFLOW = 22
DECODE_ERROR = 50
INTERNAL_ERROR = 80
USER_CANCELED = 90
NO_RENEGOTIATION = 100

Side = Literal["connected", "accepted"]
SIDES: tuple[Side, ...] = ("connected", "accepted")


def message(kind: int, body: bytes) -> bytes:
    """Return a handshake message."""
    return bytes((kind,)) + len(body).to_bytes(3) + body


class Model:
    """What the program gets of what its peer sends."""

    def __init__(self, version: Version, side: Side) -> None:
        self.data = b""
        self.error: int | None = None  # 0 or the errno of the end, once there is one
        self.words = ""  # that TLS_ERROR has
        self.alert: int | None = None  # that the peer hears
        self._wordless = False
        self._tls13 = version == "TLSv1.3"
        self.is_client = side == "connected"
        self._messages = b""  # of the handshake, not whole

    def take(self, kind: int, body: bytes) -> None:
        """A record has come."""
        if self.error is not None:
            return
        if kind == APPLICATION_DATA:
            self.data += body
        elif kind == ALERT:
            self._take_alert(body)
        elif kind == HANDSHAKE:
            self._messages += body
            self._take_messages()
        else:
            self._fail(f"type {kind}", UNEXPECTED_MESSAGE)

    def without_words(self) -> None:
        """The end is told in other words, by OpenSSL."""
        self._wordless = True

    def broken(self, alert: int = BAD_RECORD_MAC) -> None:
        """What has come is no record of the peer's."""
        if self.error is None:
            self._fail("malformed or forged", alert)

    def cut(self) -> None:
        """TCP has ended."""
        if self.error is None:
            self.error, self.words = errno.ECONNRESET, "without close_notify"

    def _fail(self, words: str, alert: int | None) -> None:
        self.error, self.alert = errno.EPROTO, alert
        self.words = "" if self._wordless else words

    def _take_alert(self, body: bytes) -> None:
        if len(body) != 2:
            self._fail(f"alert of {len(body)} bytes", DECODE_ERROR)
            return
        level, number = body
        if number == CLOSE_NOTIFY:
            self.error = 0
        elif number != USER_CANCELED if self._tls13 else level != WARNING:
            self._fail(f"({number})", None)

    def _take_messages(self) -> None:
        while len(self._messages) >= 4:
            kind, length = self._messages[0], int.from_bytes(self._messages[1:4])
            if not self._may_come(kind):
                return
            if len(self._messages) < 4 + length:
                return
            self._messages = self._messages[4 + length :]

    def _may_come(self, kind: int) -> bool:
        if self.is_client and kind == (NEW_SESSION_TICKET if self._tls13 else HELLO_REQUEST):
            return True
        if self._tls13 and kind == KEY_UPDATE:
            self._fail("KeyUpdate", INTERNAL_ERROR)
        elif not self._tls13 and not self.is_client and kind == CLIENT_HELLO:
            self._fail("renegotiate", NO_RENEGOTIATION)
        else:
            self._fail(f"handshake message {kind}", UNEXPECTED_MESSAGE)
        return False
