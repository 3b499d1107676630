# SPDX-License-Identifier: BSD-3-Clause
"""The channel, between a program's socket pair and OpenSSL on a TCP connection."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import select
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Literal

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from OpenSSL import SSL

from ssad import channel, records
from ssad.alerts import Alert
from ssad.channel import Channel
from ssad.handshake import ClientHandshake, Result
from ssad.policy import TLS_1_2, TLS_1_3, Policy
from ssad.records import read_record
from ssad.settings import Settings
from tests.peers import hostile, tls_peer
from tests.peers.pki import HOST, Pki
from tests.unit.memory_server import LOCALHOST, context

VERSIONS = [TLS_1_2, TLS_1_3]
TEN_MB = 10_000_000
CIPHER = "TLS_AES_128_GCM_SHA256:ECDHE-ECDSA-AES128-GCM-SHA256"


@dataclass
class Line:
    """A channel, and what is at both its ends."""

    program: socket.socket
    peer: socket.socket
    endpoint: socket.socket
    channel: Channel
    result: Result
    task: asyncio.Task[None]
    ends: list[tuple[int, str]] = field(default_factory=list)

    async def program_received(self, size: int) -> bytes:
        """Receive so many bytes as the program does, fewer at the end of the stream."""
        return await asyncio.to_thread(self.program.recv, size, socket.MSG_WAITALL)


@asynccontextmanager
async def line(
    pki: Pki,
    serve: Callable[[socket.socket], None],
    *,
    version: int = TLS_1_3,
    buffers: int | None = None,
    close_timeout: float = 20.0,
    on_end: Callable[[int, str], Awaitable[None]] | None = None,
) -> AsyncIterator[Line]:
    """Connect a channel to a server; `serve` does the handshake on its side."""
    loop = asyncio.get_running_loop()
    with socket.socket() as listener:
        if buffers is not None:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffers)
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        endpoint = socket.socket()
        if buffers is not None:
            endpoint.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffers)
            endpoint.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffers)
        endpoint.connect(listener.getsockname())
        endpoint.settimeout(0)
        peer, _ = listener.accept()
        # What was sent before a reset shall be on its way.
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    serving = asyncio.create_task(asyncio.to_thread(serve, peer))
    settings = Settings(host_name=HOST, version_min=version, version_max=version)
    client = ClientHandshake(settings, Policy(trust_store=pki.root), LOCALHOST)
    output = client.start()
    while not client.done:
        await loop.sock_sendall(endpoint, output)
        output = client.receive_record(await read_record(loop, endpoint))
    await loop.sock_sendall(endpoint, output)
    await serving
    program, relay = channel.socket_pair()
    ends: list[tuple[int, str]] = []

    async def note(error: int, text: str) -> None:
        ends.append((error, text))

    relaying = Channel(client.result.connection, endpoint, relay, on_end or note, close_timeout)
    task = asyncio.create_task(relaying.run())
    try:
        yield Line(program, peer, endpoint, relaying, client.result, task, ends)
    finally:
        program.close()
        peer.close()
        relaying.close_soon()
        await asyncio.wait_for(task, 20)
    assert endpoint.fileno() == relay.fileno() == -1


@dataclass
class Peer:
    """A server's side of a connection, over its socket."""

    pki: Pki
    version: int = TLS_1_3
    tls: SSL.Connection = field(init=False)

    def serve(self, raw: socket.socket) -> None:
        self.tls = SSL.Connection(context(self.pki.ecdsa, version=self.version), raw)
        self.tls.set_accept_state()
        self.tls.do_handshake()

    async def received(self, size: int) -> bytes:
        """Receive so many bytes, fewer if the client ends its stream with close_notify."""
        return await asyncio.to_thread(self._receive, size)

    def _receive(self, size: int) -> bytes:
        data = bytearray()
        with suppress(SSL.ZeroReturnError):
            while len(data) < size:
                data += self.tls.recv(min(65536, size - len(data)))
        return bytes(data)

    async def send(self, data: bytes) -> None:
        await asyncio.to_thread(self.tls.sendall, data)


def reset(sock: socket.socket) -> None:
    """Close a TCP socket with a RST."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


@pytest.mark.parametrize("version", VERSIONS)
async def test_ten_megabytes_go_each_way_at_once(pki: Pki, version: int) -> None:
    peer = Peer(pki, version)
    up, down = os.urandom(TEN_MB), os.urandom(TEN_MB)
    async with line(pki, peer.serve, version=version) as on:
        on.peer.settimeout(None)
        sending = asyncio.create_task(asyncio.to_thread(on.program.sendall, up))
        receiving = asyncio.create_task(on.program_received(TEN_MB))

        echo = await asyncio.to_thread(_exchange, peer.tls, on.peer, down, TEN_MB)

        await sending
        assert hashlib.sha256(echo).digest() == hashlib.sha256(up).digest()
        assert hashlib.sha256(await receiving).digest() == hashlib.sha256(down).digest()


def _exchange(tls: SSL.Connection, raw: socket.socket, data: bytes, size: int) -> bytes:
    """Send and receive at the same time, in one thread as OpenSSL wants it."""
    raw.settimeout(0)
    received = bytearray()
    rest = memoryview(data)
    while len(received) < size or rest:
        select.select([raw], [raw] if rest else [], [])
        with suppress(SSL.WantReadError, SSL.WantWriteError):
            while rest:
                rest = rest[tls.send(rest[:65536]) :]
        with suppress(SSL.WantReadError, SSL.WantWriteError):
            while len(received) < size:
                received += tls.recv(65536)
    raw.settimeout(None)
    return bytes(received)


@pytest.mark.parametrize("version", VERSIONS)
async def test_small_messages_go_back_and_forth(pki: Pki, version: int) -> None:
    peer = Peer(pki, version)
    async with line(pki, peer.serve, version=version) as on:
        for number in range(100):
            message = number.to_bytes(64)
            on.program.sendall(message)
            assert await peer.received(64) == message
            await peer.send(message[::-1])
            assert await on.program_received(64) == message[::-1]


@pytest.mark.parametrize("version", VERSIONS)
async def test_a_program_that_ends_its_stream_still_receives(pki: Pki, version: int) -> None:
    peer = Peer(pki, version)
    async with line(pki, peer.serve, version=version) as on:
        on.program.sendall(b"question")
        on.program.shutdown(socket.SHUT_WR)
        question = await peer.received(100)
        after_close_notify = await asyncio.to_thread(on.peer.recv, 1)
        await peer.send(b"answer")
        peer.tls.shutdown()

        answer = await on.program_received(100)
        await asyncio.wait_for(on.task, 20)

    assert question == b"question"
    assert after_close_notify == b"", "FIN should follow close_notify"
    assert answer == b"answer"
    assert on.ends == [(0, "")]


async def test_a_peer_that_ends_its_stream_still_receives(pki: Pki) -> None:
    peer = Peer(pki)
    async with line(pki, peer.serve) as on:
        await peer.send(b"greeting")
        peer.tls.shutdown()
        greeting = await on.program_received(100)
        on.program.sendall(b"last words")
        last_words = await peer.received(10)
        on.program.close()
        end = await peer.received(1)
        await asyncio.wait_for(on.task, 20)

    assert (greeting, last_words, end) == (b"greeting", b"last words", b"")
    assert on.ends == [(0, "")]


async def test_the_end_is_told_before_the_stream_ends(pki: Pki) -> None:
    peer = Peer(pki)
    async with line(pki, peer.serve) as on:
        peer.tls.shutdown()

        assert await on.program_received(1) == b""
        assert on.ends == [(0, "")]


async def test_a_program_that_writes_too_much_has_to_wait(pki: Pki) -> None:
    peer = Peer(pki)
    async with line(pki, peer.serve, buffers=65536) as on:
        on.program.settimeout(0)
        taken = await _fill(on.program.send)
        on.program.settimeout(None)

        received = asyncio.create_task(peer.received(taken))

        # The program's socket buffer, one read, and small TCP buffers.
        assert 500_000 < taken < 1_500_000
        assert len(await received) == taken


async def test_a_peer_that_sends_too_much_has_to_wait(pki: Pki) -> None:
    peer = Peer(pki)
    async with line(pki, peer.serve, buffers=65536) as on:
        on.peer.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)
        on.peer.settimeout(0)
        taken = await _fill(peer.tls.send)
        on.peer.settimeout(None)

        received = asyncio.create_task(on.program_received(taken))

        assert 500_000 < taken < 1_500_000
        assert len(await received) == taken


async def _fill(send: Callable[[bytes], int]) -> int:
    """Send until nothing is taken any more, however often the event loop turns."""
    taken = idle = 0
    while idle < 1000:
        try:
            taken += send(bytes(16384))
            idle = 0
        except (BlockingIOError, SSL.WantWriteError):
            idle += 1
        await asyncio.sleep(0)
    return taken


async def test_a_stream_without_close_notify_is_an_error(pki: Pki) -> None:
    peer = Peer(pki)
    async with line(pki, peer.serve) as on:
        await peer.send(b"part of it")
        on.peer.shutdown(socket.SHUT_RDWR)

        assert await on.program_received(100) == b"part of it"
        await asyncio.wait_for(on.task, 20)

    ((error, text),) = on.ends
    assert error == errno.ECONNRESET
    assert text == "The peer closed the connection without close_notify; data may be missing."


async def test_a_stream_that_ends_within_a_record_is_an_error(pki: Pki) -> None:
    peer = Peer(pki)
    async with line(pki, peer.serve) as on:
        on.peer.sendall(b"\x17\x03\x03\x00\x40only the beginning")
        on.peer.shutdown(socket.SHUT_RDWR)

        assert await on.program_received(100) == b""
        await asyncio.wait_for(on.task, 20)

    assert on.ends[0][0] == errno.ECONNRESET


async def test_a_reset_is_told(pki: Pki) -> None:
    peer = Peer(pki)
    async with line(pki, peer.serve) as on:
        del peer.tls
        reset(on.peer)

        assert await on.program_received(100) == b""
        await asyncio.wait_for(on.task, 20)

    assert on.ends == [(errno.ECONNRESET, "The peer reset the connection.")]


async def test_a_reset_while_the_program_writes_ends_its_writing(pki: Pki) -> None:
    peer = Peer(pki)
    async with line(pki, peer.serve) as on:
        writing = asyncio.create_task(asyncio.to_thread(on.program.sendall, bytes(TEN_MB)))
        await peer.received(1)
        reset(on.peer)

        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            await writing
        await asyncio.wait_for(on.task, 20)

    assert on.ends == [(errno.ECONNRESET, "The peer reset the connection.")]


async def test_a_broken_record_is_an_error_on_both_sides(pki: Pki) -> None:
    peer = Peer(pki)
    async with line(pki, peer.serve) as on:
        await peer.send(b"good")
        on.peer.sendall(b"\x17\x03\x03\x00\x40" + bytes(64))

        assert await on.program_received(100) == b"good"
        with pytest.raises(SSL.Error, match="bad record mac"):
            await peer.received(1)
        await asyncio.wait_for(on.task, 20)

    ((error, text),) = on.ends
    assert error == errno.EPROTO
    assert text.startswith("The peer broke the TLS protocol: ")


async def test_an_alert_of_the_peer_is_told_by_name(pki: Pki) -> None:
    peer = Peer(pki)
    async with line(pki, peer.serve) as on:
        on.endpoint.send(b"\x17\x03\x03\x00\x40" + bytes(64))
        with pytest.raises(SSL.Error):
            await peer.received(1)

        assert await on.program_received(100) == b""
        await asyncio.wait_for(on.task, 20)

    text = "The peer ended the connection with the alert bad_record_mac (20)."
    assert on.ends == [(errno.EPROTO, text)]


@pytest.mark.parametrize("version", VERSIONS)
async def test_what_a_program_wrote_before_it_closed_is_delivered(pki: Pki, version: int) -> None:
    peer = Peer(pki, version)
    data = os.urandom(TEN_MB)
    async with line(pki, peer.serve, version=version) as on:

        def write_and_close() -> None:
            on.program.sendall(data)
            on.program.close()

        writing = asyncio.create_task(asyncio.to_thread(write_and_close))
        first = await peer.received(1)
        closed = asyncio.create_task(_close_soon(writing, on.channel))
        rest = await peer.received(TEN_MB)
        end = await asyncio.to_thread(on.peer.recv, 1)
        peer.tls.shutdown()
        on.peer.close()
        await closed
        await asyncio.wait_for(on.task, 20)

    assert hashlib.sha256(first + rest).digest() == hashlib.sha256(data).digest()
    assert end == b""


async def _close_soon(writing: asyncio.Task[None], relaying: Channel) -> None:
    await writing
    relaying.close_soon()


async def test_a_program_that_leaves_data_unread_still_says_goodbye(pki: Pki) -> None:
    peer = Peer(pki)
    async with line(pki, peer.serve, buffers=65536) as on:
        on.peer.settimeout(0)
        await _fill(peer.tls.send)
        on.peer.settimeout(None)
        on.program.sendall(b"enough")
        on.program.close()
        on.channel.close_soon()

        assert await peer.received(100) == b"enough"
        on.peer.close()
        await asyncio.wait_for(on.task, 20)


async def test_a_peer_that_sends_to_a_closed_program_is_not_held_up(pki: Pki) -> None:
    """Closing is seen on the socket pair, whenever the module tells of it."""
    peer = Peer(pki)
    async with line(pki, peer.serve, buffers=65536) as on:
        on.peer.settimeout(0)
        await _fill(peer.tls.send)
        on.peer.settimeout(None)
        on.program.close()

        await peer.send(bytes(100_000))
        assert await peer.received(1) == b""
        peer.tls.shutdown()
        await asyncio.wait_for(on.task, 20)

    assert on.ends == [(0, "")]


async def test_a_peer_that_sends_for_ever_is_left_once_the_program_has_closed(pki: Pki) -> None:
    peer = Peer(pki)
    async with line(pki, peer.serve) as on:
        on.program.close()
        on.channel.close_soon()

        with pytest.raises(SSL.Error):
            await peer.send(bytes(100_000_000))
        await asyncio.wait_for(on.task, 20)


async def test_a_peer_that_takes_nothing_is_left_when_the_close_timeout_is_over(pki: Pki) -> None:
    peer = Peer(pki)
    async with line(pki, peer.serve, buffers=65536, close_timeout=0.1) as on:
        on.program.settimeout(0)
        await _fill(on.program.send)
        on.program.close()
        on.channel.close_soon()
        on.channel.close_soon()

        await asyncio.wait_for(on.task, 20)


async def test_new_keys_of_the_peer_are_followed(pki: Pki) -> None:
    peers: list[tls_peer.TlsConnection] = []

    def serve(raw: socket.socket) -> None:
        peers.append(tls_peer.TlsConnection(raw, pki.ecdsa, "TLSv1.3"))
        peers[0].handshake()

    async with line(pki, serve) as on:
        (peer,) = peers
        for number in range(3):
            peer.send_sealed(tls_peer.HANDSHAKE, tls_peer.KEY_UPDATE_REQUESTED)
            peer.update_key()
            peer.send_sealed(hostile.APPLICATION_DATA, b"after %d" % number)
            assert await on.program_received(7) == b"after %d" % number
            # The peer's OpenSSL would fail if our own KeyUpdate did not precede this.
            on.program.sendall(b"answer")
            assert await asyncio.to_thread(peer.receive, 6) == b"answer"


@pytest.mark.parametrize("version", VERSIONS)
async def test_close_notify_ends_a_stream_after_user_canceled(pki: Pki, version: int) -> None:
    peers: list[tls_peer.TlsConnection] = []

    def serve(raw: socket.socket) -> None:
        name: Literal["TLSv1.2", "TLSv1.3"] = "TLSv1.3" if version == TLS_1_3 else "TLSv1.2"
        peers.append(tls_peer.TlsConnection(raw, pki.ecdsa, name))
        peers[0].handshake()

    async with line(pki, serve, version=version) as on:
        sealer = peers[0].sealer()
        canceled = bytes((tls_peer.WARNING, Alert.USER_CANCELED))
        for body in (canceled, tls_peer.CLOSE_NOTIFY):
            on.peer.sendall(sealer.seal(tls_peer.ALERT, body))
        assert await on.program_received(1) == b""

    assert on.ends == [(0, "")]


@pytest.mark.parametrize("level", [tls_peer.WARNING, tls_peer.FATAL])
async def test_a_cut_after_user_canceled_is_a_cut(pki: Pki, level: int) -> None:
    peers: list[tls_peer.TlsConnection] = []

    def serve(raw: socket.socket) -> None:
        peers.append(tls_peer.TlsConnection(raw, pki.ecdsa, "TLSv1.3"))
        peers[0].handshake()

    async with line(pki, serve) as on:
        peers[0].send_sealed(tls_peer.ALERT, bytes((level, Alert.USER_CANCELED)))
        on.peer.shutdown(socket.SHUT_WR)
        await asyncio.wait_for(on.task, 20)

    assert [error for error, _ in on.ends] == [errno.ECONNRESET]


async def test_half_a_session_ticket_does_not_stop_the_program(pki: Pki) -> None:
    """OpenSSL takes no data to send in the middle of a handshake message; it has to wait."""
    peers: list[tls_peer.TlsConnection] = []

    def serve(raw: socket.socket) -> None:
        peers.append(tls_peer.TlsConnection(raw, pki.ecdsa, "TLSv1.3"))
        peers[0].handshake()

    # RFC 8446, 4.6.1: lifetime, age_add, nonce, ticket, extensions.
    body = bytes(8) + b"\1\0" + b"\0\x10" + bytes(16) + b"\0\0"
    ticket = b"\x04" + len(body).to_bytes(3) + body
    async with line(pki, serve) as on:
        (peer,) = peers
        peer.send_sealed(hostile.APPLICATION_DATA, b"first")
        peer.send_sealed(tls_peer.HANDSHAKE, ticket[:20])
        assert await on.program_received(5) == b"first"
        on.program.sendall(b"in between")
        peer.send_sealed(tls_peer.HANDSHAKE, ticket[20:])

        assert await asyncio.to_thread(peer.receive, 10) == b"in between"


async def test_renegotiation_is_refused_and_the_connection_goes_on(pki: Pki) -> None:
    peer = Peer(pki, TLS_1_2)
    async with line(pki, peer.serve, version=TLS_1_2) as on:
        for sequence in range(1, 101):  # a HelloRequest each
            on.peer.sendall(_seal(on.result, sequence, records.HANDSHAKE, bytes(4)))
        on.peer.sendall(_seal(on.result, 101, records.APPLICATION_DATA, b"goes on"))

        assert await on.program_received(7) == b"goes on"
        refusal = await asyncio.to_thread(hostile.read_record, on.peer)

    assert refusal[0] == records.ALERT


def _seal(result: Result, sequence: int, kind: int, body: bytes) -> bytes:
    """Make the nth record under the server's key, for TLS 1.2 and AES-GCM."""
    assert result.keys is not None
    key = result.keys.receive
    explicit = sequence.to_bytes(8)
    associated = struct.pack("!QBHH", sequence, kind, TLS_1_2, len(body))
    sealed = AESGCM(key.key).encrypt(key.nonce[:4] + explicit, body, associated)
    return hostile.record(kind, explicit + sealed)


@pytest.mark.parametrize("size", [1, 1000, 10_000, 16384])
async def test_records_of_any_size_arrive_at_once(pki: Pki, size: int) -> None:
    """Nothing stays in OpenSSL until more comes, however records fit into the buffer."""
    peer = Peer(pki)
    count = 600_000 // size if size > 1 else 1000
    async with line(pki, peer.serve) as on:

        def send() -> None:
            for _ in range(count):
                peer.tls.send(bytes(size))

        sending = asyncio.create_task(asyncio.to_thread(send))
        assert len(await on.program_received(count * size)) == count * size
        await sending


async def test_a_last_word_before_a_reset_is_heard(pki: Pki) -> None:
    """A server that has enough of an upload answers and leaves; the program has yet to write."""
    peer = Peer(pki)
    async with line(pki, peer.serve) as on:
        # All of it is there before the channel turns to any, and the program's data came first.
        on.program.sendall(bytes(100_000))
        peer.tls.send(b"too large")
        reset(on.peer)

        assert await on.program_received(100) == b"too large"
        await asyncio.wait_for(on.task, 20)

    assert on.ends == [(errno.ECONNRESET, "The peer reset the connection.")]


async def test_a_failing_report_of_the_end_leaves_the_sockets_to_who_runs_it(pki: Pki) -> None:
    peer = Peer(pki)

    async def no_one_listens(*_: object) -> None:
        raise RuntimeError("no one listens")

    with pytest.raises(RuntimeError, match="no one listens"):
        async with line(pki, peer.serve, on_end=no_one_listens) as on:
            peer.tls.shutdown()

    assert on.endpoint.fileno() != -1
    on.channel.close()
    assert on.endpoint.fileno() == -1
