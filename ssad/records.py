# SPDX-License-Identifier: BSD-3-Clause
"""TLS records as they lie on the wire (RFC 8446, 5.1), read one at a time.

What follows the handshake belongs to kernel TLS, so nothing may be read ahead.
"""

from __future__ import annotations

import asyncio
import socket

from ssad import errors

HEADER_LENGTH = 5
PLAINTEXT_MAX = 16384  # RFC 8446, 5.1
BODY_MAX = PLAINTEXT_MAX + 256  # RFC 8446, 5.2

CHANGE_CIPHER_SPEC = 20
ALERT = 21
HANDSHAKE = 22
APPLICATION_DATA = 23

FATAL = 2  # level of an alert (RFC 8446, 6)

_TYPES = range(CHANGE_CIPHER_SPEC, APPLICATION_DATA + 1)

# RFC 9110, 9.3, RFC 5789 and RFC 9113, 3.4, as far as a record's header goes.
_HTTP_METHODS = tuple(
    line.encode("ascii")[:HEADER_LENGTH]
    for line in (
        "GET ",
        "HEAD ",
        "POST ",
        "PUT ",
        "DELETE ",
        "CONNECT ",
        "OPTIONS ",
        "TRACE ",
        "PATCH ",
        "PRI ",
    )
)


async def read_record(loop: asyncio.AbstractEventLoop, sock: socket.socket) -> bytes:
    """Read exactly one record from a nonblocking socket.

    If what comes can't be the header of a record, it is returned alone and nothing after it is
    read; `fault` says what is wrong with it.

    Raises HandshakeError (ECONNABORTED) at the end of the stream and if TCP fails.
    """
    header = await _read_exactly(loop, sock, HEADER_LENGTH)
    if fault(header):
        return header
    return header + await _read_exactly(loop, sock, body_length(header))


def body_length(header: bytes) -> int:
    """Length of what follows a header."""
    return int.from_bytes(header[3:5])


def fault(header: bytes, peer: str = "peer") -> str:
    """Say in a sentence what a record's header shows to be wrong, empty if it is all right.

    `peer` is what the sentence calls who sent it.
    """
    if header.startswith(b"HTTP/"):
        return f"The {peer} answered with plain HTTP, not with TLS; is the port number right?"
    if header.startswith(_HTTP_METHODS):
        return f"The {peer} spoke plain HTTP, not TLS; its address has to begin with https://."
    if header[0] not in _TYPES or header[1] != 3:
        shown = repr(header.decode("ascii")) if _is_text(header) else header.hex(" ")
        return f"The {peer} sent something other than TLS, beginning with {shown}."
    if body_length(header) > BODY_MAX:
        return (
            f"The {peer} sent a TLS record of {body_length(header)} bytes; "
            f"at most {BODY_MAX} are allowed (RFC 8446, 5.2)."
        )
    return ""


def fatal_alert(description: int) -> bytes:
    """Return the record of a fatal alert, not encrypted."""
    return bytes((ALERT, 3, 3, 0, 2, FATAL, description))


def split(flight: bytes) -> list[bytes]:
    """Split what holds whole records and nothing else into them."""
    found = []
    while flight:
        length = HEADER_LENGTH + body_length(flight)
        found.append(flight[:length])
        flight = flight[length:]
    return found


def _is_text(data: bytes) -> bool:
    return data.isascii() and data.decode("ascii").strip().isprintable()


async def _read_exactly(loop: asyncio.AbstractEventLoop, sock: socket.socket, length: int) -> bytes:
    data = b""
    while len(data) < length:
        try:
            piece = await loop.sock_recv(sock, length - len(data))
        except OSError as error:
            raise errors.peer_reset(error) from error
        if not piece:
            raise errors.peer_closed()
        data += piece
    return data
