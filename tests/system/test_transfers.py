# SPDX-License-Identifier: BSD-3-Clause
"""A hundred megabytes each way, compared by SHA-256."""

from __future__ import annotations

import hashlib
import socket
import threading
from pathlib import Path

import pytest

from ssad.wire import TlsOption
from tests.peers.pki import HOST
from tests.peers.servers import CIPHERS, VERSIONS, Cipher, Nginx, Offer, Server, Version
from tests.system.daemon import Transport
from tests.system.program import Address, connect, get_text, receive_exactly

SIZE = 100_000_000
# For what is a matter of ciphers, not of size: some hundred records and the rest of one.
SMALLER = 5_000_001

BLOCK = 1 << 17


def content(size: int) -> bytes:
    """Return bytes that repeat, but not at any block's or record's size."""
    unit = bytes(range(251)) * 997
    return (unit * (size // len(unit) + 1))[:size]


def receive_body(sock: socket.socket) -> tuple[int, str]:
    """Receive an HTTP/1.0 answer; return the length and the SHA-256 of its body."""
    head = b""
    while b"\r\n\r\n" not in head:
        head += sock.recv(BLOCK)
    digest = hashlib.sha256()
    body = head.partition(b"\r\n\r\n")[2]
    length = 0
    while body:
        length += len(body)
        digest.update(body)
        body = sock.recv(BLOCK)
    return length, digest.hexdigest()


@pytest.mark.timeout(600)
def test_what_is_downloaded_is_what_the_server_has(web: Nginx, transport: Transport) -> None:
    data = content(SIZE)
    (web.root / "large").write_bytes(data)
    with connect(Address("127.0.0.1", web.ports["ecdsa", None])) as sock:
        assert get_text(sock, TlsOption.TLS_TRANSPORT) == transport
        sock.sendall(b"GET /large HTTP/1.0\r\n\r\n")
        assert receive_body(sock) == (SIZE, hashlib.sha256(data).hexdigest())
    (web.root / "large").unlink()


@pytest.mark.usefixtures("transport")
@pytest.mark.timeout(600)
def test_what_is_uploaded_is_what_the_server_gets(web: Nginx) -> None:
    data = content(SIZE)
    assert put(Address("127.0.0.1", web.ports["ecdsa", None]), data) == "201"
    stored = web.root / "upload"
    assert digest_of(stored) == hashlib.sha256(data).hexdigest()
    stored.unlink()


@pytest.mark.usefixtures("transport")
@pytest.mark.timeout(600)
def test_both_directions_at_once_do_not_disturb_each_other(echo_server: Server) -> None:
    data = content(SMALLER * 4)
    with connect(echo_server) as sock:
        sender = threading.Thread(target=sock.sendall, args=[data])
        sender.start()
        received = receive_exactly(sock, len(data))
        sender.join()
    assert hashlib.sha256(received).digest() == hashlib.sha256(data).digest()


@pytest.mark.usefixtures("transport")
@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("cipher", CIPHERS)
def test_every_cipher_carries_more_than_one_record(
    web: Nginx, version: Version, cipher: Cipher
) -> None:
    data = content(SMALLER)
    address = Address("127.0.0.1", web.ports["rsa", Offer(version, cipher)])
    assert put(address, data) == "201"
    with connect(address) as sock:
        sock.sendall(b"GET /upload HTTP/1.0\r\n\r\n")
        assert receive_body(sock) == (SMALLER, hashlib.sha256(data).hexdigest())
    (web.root / "upload").unlink()


def put(server: Address, data: bytes) -> str:
    """Upload `data` as /upload; return the status that the server answers."""
    head = f"PUT /upload HTTP/1.0\r\nHost: {HOST}\r\nContent-Length: {len(data)}\r\n\r\n"
    with connect(server) as sock:
        sock.sendall(head.encode())
        sock.sendall(data)
        return sock.recv(BLOCK).split()[1].decode()


def digest_of(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
