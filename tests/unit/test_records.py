# SPDX-License-Identifier: BSD-3-Clause
"""Reading one record and nothing more."""

from __future__ import annotations

import asyncio
import errno
import socket
import struct
from collections.abc import Iterator

import pytest

from ssad import records
from ssad.errors import HandshakeError


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """A nonblocking TCP socket, and the peer's."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ours = socket.create_connection(listener.getsockname())
        theirs, _ = listener.accept()
    ours.settimeout(0)
    with ours, theirs:
        yield ours, theirs


async def read(sock: socket.socket) -> bytes:
    return await records.read_record(asyncio.get_running_loop(), sock)


def record(length: int) -> bytes:
    return struct.pack("!BHH", records.HANDSHAKE, 0x0303, length) + b"x" * length


@pytest.mark.parametrize("length", [0, 1, 16384, records.BODY_MAX])
async def test_what_follows_a_record_is_not_read(
    pair: tuple[socket.socket, socket.socket], length: int
) -> None:
    ours, theirs = pair
    theirs.sendall(record(length) + b"next")

    found = await read(ours)

    assert found == record(length)
    assert ours.recv(100) == b"next"


async def test_a_record_may_come_byte_by_byte(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    ours, theirs = pair
    theirs.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    reading = asyncio.create_task(read(ours))

    for number in record(3):
        theirs.send(bytes([number]))
        await asyncio.sleep(0)

    assert await reading == record(3)


@pytest.mark.parametrize("sent", [b"", b"\x16\x03", record(10)[:-1]])
async def test_an_early_end_is_an_abort(
    pair: tuple[socket.socket, socket.socket], sent: bytes
) -> None:
    ours, theirs = pair
    theirs.sendall(sent)
    theirs.close()

    with pytest.raises(HandshakeError, match="closed the connection in the middle") as caught:
        await read(ours)

    assert caught.value.errno == errno.ECONNABORTED


async def test_a_reset_is_an_abort(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    theirs.close()

    with pytest.raises(HandshakeError, match="reset the connection in the middle") as caught:
        await read(ours)

    assert caught.value.errno == errno.ECONNABORTED


@pytest.mark.parametrize(
    ("header", "sentence"),
    [
        (
            b"HTTP/1.1 400 Bad Request\r\n",
            "The peer answered with plain HTTP, not with TLS; is the port number right?",
        ),
        (
            b"SSH-2.0-OpenSSH\r\n",
            "The peer sent something other than TLS, beginning with 'SSH-2'.",
        ),
        (
            b"220 mail\r\n",
            "The peer sent something other than TLS, beginning with '220 m'.",
        ),
        (
            b"\x00\x01\x02\xff\xfe",
            "The peer sent something other than TLS, beginning with 00 01 02 ff fe.",
        ),
        (
            b"\x16\x02\x00\x00\x01",
            "The peer sent something other than TLS, beginning with 16 02 00 00 01.",
        ),
        (
            struct.pack("!BHH", records.HANDSHAKE, 0x0303, records.BODY_MAX + 1),
            "The peer sent a TLS record of 16641 bytes; at most 16640 are allowed (RFC 8446, 5.2).",
        ),
    ],
)
async def test_what_is_no_record_is_named_and_read_no_further(
    pair: tuple[socket.socket, socket.socket], header: bytes, sentence: str
) -> None:
    ours, theirs = pair
    theirs.sendall(header)

    found = await read(ours)

    assert found == header[:5]
    assert records.fault(found) == sentence


@pytest.mark.parametrize("request_", [b"GET / HTTP/1.1", b"POST /", b"PUT /", b"PRI * HTTP/2.0"])
def test_a_request_of_plain_http_is_named(request_: bytes) -> None:
    assert records.fault(request_[:5], "client") == (
        "The client spoke plain HTTP, not TLS; its address has to begin with https://."
    )


def test_a_sentence_calls_the_sender_as_it_is_told_to() -> None:
    assert records.fault(b"SSH-2", "client").startswith("The client sent something other than TLS")


def test_a_flight_is_split_into_its_records() -> None:
    assert records.split(record(3) + record(0) + record(7)) == [record(3), record(0), record(7)]
    assert records.split(b"") == []
