# SPDX-License-Identifier: BSD-3-Clause
"""The worker: requests in, one completion each out. The module is played over a socket pair; the
TLS servers are Python's own, on real TCP connections."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import select
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Self

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ssad.address import Address, parse_sockaddr
from ssad.context import TicketContexts
from ssad.policy import Policy
from ssad.server import Server
from ssad.wire import VALUE_PIECE_MAX, Attributes, Command, TlsOption, Transport
from tests.peers.authority import Authority, sources
from tests.peers.pki import HOST, OTHER_HOST, Pki
from tests.peers.responder import responding
from tests.unit.kernel import Handler, Kernel, Refusal

# The machine that runs the tests may or may not have kernel TLS.
POLICY = Policy(transport="channel", handshake_timeout=20)


@dataclass
class Worker:
    """A server under test, and what the kernel would have of its sockets."""

    kernel: Kernel
    server: Server
    task: asyncio.Task[None]  # its run()
    endpoints: dict[int, socket.socket] = field(default_factory=dict)  # by request
    programs: list[socket.socket] = field(default_factory=list)  # ends of channels
    backlog: int = 100  # of every queue for accept()
    switches: int = 0  # what it was told last

    def __post_init__(self) -> None:
        self.kernel.handlers[Command.ENDPOINT] = self._give_endpoint
        self.kernel.handlers[Command.COMPLETE] = self._take_program
        self.kernel.handlers[Command.ACCEPTED] = self._take_accepted

    def _give_endpoint(self, asked: Attributes) -> Attributes:
        endpoint = self.endpoints[asked["request"]]
        return {
            "request": asked["request"],
            "fd": os.dup(endpoint.fileno()),
            "family": endpoint.family,
        }

    def _take_program(self, completion: Attributes) -> Attributes:
        if "fd" in completion:
            self.programs.append(socket.socket(fileno=os.dup(completion["fd"])))
        return {}

    def _take_accepted(self, accepted: Attributes) -> Attributes:
        if accepted["error"]:
            return {}
        os.fstat(accepted["endpoint_fd"])  # the worker's still
        self._take_program(accepted)
        queued = len(self.programs)
        return {"socket": 1000 + queued, "queued": queued, "backlog": self.backlog}

    async def listen(
        self, pki: Pki, socket_id: int = 1, options: Mapping[TlsOption, bytes] | None = None
    ) -> int:
        """Let a program listen with a certificate and other options; return its port."""
        await self.open(socket_id)
        for option, value in (
            (TlsOption.TLS_CERTIFICATE_CHAIN, pki.ecdsa.chain.read_bytes()),
            (TlsOption.TLS_PRIVATE_KEY, pki.ecdsa.key.read_bytes()),
            *(options or {}).items(),
        ):
            assert await self.set(option, value, socket_id) == {"error": 0}
        endpoint = socket.create_server(("127.0.0.1", 0))
        endpoint.settimeout(0)
        request = self.kernel.new_request()
        self.endpoints[request] = endpoint
        self.kernel.tell(
            Command.LISTEN, {"request": request, "socket": socket_id, "backlog": self.backlog}
        )
        assert await self.completion(request) == {"error": 0}
        return int(endpoint.getsockname()[1])

    async def accepted(self) -> Attributes:
        """Return what the module is told of the next handshake that is over."""
        return await asyncio.to_thread(self.kernel.next_of, Command.ACCEPTED)

    async def ask(self, command: Command, attributes: Attributes) -> Attributes:
        """Send a request; return its completion."""
        request = self.kernel.new_request()
        self.kernel.tell(command, {"request": request, **attributes})
        return await self.completion(request)

    async def completion(self, request: int) -> Attributes:
        """Return the next completion, which must be that of this request."""
        completion = await asyncio.to_thread(self.kernel.next_of, Command.COMPLETE)
        assert completion.pop("request") == request
        self.switches = completion.pop("switches", self.switches)
        return completion

    async def open(self, socket_id: int = 1, uid: int = 1) -> None:
        """Let a user's program make a socket."""
        attributes: Attributes = {"socket": socket_id, "pid": 12, "uid": uid, "comm": "curl"}
        assert await self.ask(Command.SOCKET, attributes) == {"error": 0}

    async def set(self, option: TlsOption, value: bytes, socket_id: int = 1) -> Attributes:
        """Let a program set an option; return the completion of its last piece."""
        completion: Attributes = {}
        for offset in range(0, max(len(value), 1), VALUE_PIECE_MAX):
            completion = await self.ask(
                Command.SETSOCKOPT,
                {
                    "socket": socket_id,
                    "option": option,
                    "value": value[offset : offset + VALUE_PIECE_MAX],
                    "value_length": len(value),
                    "value_offset": offset,
                },
            )
        return completion

    def begin_connect(self, port: int, socket_id: int = 1) -> int:
        """Let a program connect to a port of this machine; return the request's id."""
        endpoint = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        endpoint.settimeout(0)
        with contextlib.suppress(BlockingIOError):
            endpoint.connect(("127.0.0.1", port))
        request = self.kernel.new_request()
        self.endpoints[request] = endpoint
        address = struct.pack("=H", socket.AF_INET) + struct.pack("!H4s8x", port, b"\x7f\0\0\1")
        self.kernel.tell(
            Command.CONNECT, {"request": request, "socket": socket_id, "remote_address": address}
        )
        return request

    async def connect(self, port: int, socket_id: int = 1) -> Attributes:
        """Let a program connect; return the completion."""
        return await self.completion(self.begin_connect(port, socket_id))

    def close(self) -> None:
        """Close what the kernel would have."""
        for held in [*self.endpoints.values(), *self.programs]:
            held.close()


@contextlib.asynccontextmanager
async def working(policy: Policy) -> AsyncIterator[Worker]:
    """Run a worker and stop it."""
    with Kernel() as kernel:
        server = Server(kernel.link(), policy, TicketContexts(policy))
        task = asyncio.create_task(server.run())
        worker = Worker(kernel, server, task)
        try:
            yield worker
        finally:
            server.stop()
            server.stop()
            await task
            worker.close()


@pytest.fixture
async def worker(pki: Pki) -> AsyncIterator[Worker]:
    async with working(replace(POLICY, trust_store=pki.root)) as worker:
        yield worker


class Peer(asyncio.Protocol):
    """A server's side of a connection: sends back what it gets, or says nothing."""

    def __init__(self, listener: Listener) -> None:
        self._listener = listener
        self.gone = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self._listener.peers.append(self)

    def data_received(self, data: bytes) -> None:
        if self._listener.context is not None:
            self.transport.write(data)

    def connection_lost(self, _: Exception | None) -> None:
        self.gone.set()


@dataclass
class Listener:
    """A server on a port of this machine. Without a context it never answers."""

    context: ssl.SSLContext | None = None
    port: int = 0
    peers: list[Peer] = field(default_factory=list)  # whose handshake is done

    async def __aenter__(self) -> Self:
        self._server = await asyncio.get_running_loop().create_server(
            lambda: Peer(self), "127.0.0.1", 0, ssl=self.context, backlog=500
        )
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for peer in self.peers:
            peer.transport.abort()
            await peer.gone.wait()


@pytest.fixture
def tls(pki: Pki) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pki.ecdsa.chain, pki.ecdsa.key)
    context.set_alpn_protocols(["echo"])
    return context


def refusing(number: int) -> Handler:
    def refuse(_: Attributes) -> Attributes:
        raise Refusal(number)

    return refuse


async def received(sock: socket.socket) -> bytes:
    """Read from a program's end of a channel; empty at the end of the stream."""
    sock.settimeout(0)
    return await asyncio.get_running_loop().sock_recv(sock, 65536)


async def test_options_are_set_and_asked_for(worker: Worker) -> None:
    await worker.open()
    assert await worker.set(TlsOption.TLS_HOSTNAME, b"Server.Test") == {"error": 0}
    asked: Attributes = {"socket": 1, "option": TlsOption.TLS_HOSTNAME}
    assert await worker.ask(Command.GETSOCKOPT, asked) == {"error": 0, "value": b"server.test"}
    assert await worker.ask(Command.BIND, {"socket": 1}) == {"error": 0}


async def test_a_long_value_comes_in_pieces(worker: Worker, pki: Pki) -> None:
    await worker.open()
    value = pki.root.read_bytes().ljust(3 * VALUE_PIECE_MAX, b"\n")
    assert await worker.set(TlsOption.TLS_TRUSTED_PEER_CERTIFICATES, value) == {"error": 0}


async def test_a_refused_option_says_why(worker: Worker) -> None:
    await worker.open()
    completion = await worker.set(TlsOption.TLS_HOSTNAME, b"not a name")
    assert completion["error"] == errno.EINVAL
    assert "is no host name" in completion["text"]


@pytest.mark.parametrize("command", [Command.BIND, Command.CONNECT])
async def test_an_unknown_socket_is_ebadf(worker: Worker, command: Command) -> None:
    completion = await worker.ask(command, {"socket": 99})
    assert completion["error"] == errno.EBADF


async def test_a_message_without_what_it_needs_is_answered_and_the_worker_goes_on(
    worker: Worker,
) -> None:
    await worker.open()
    for command in (Command.SETSOCKOPT, Command.CONNECT):
        completion = await worker.ask(command, {"socket": 1})
        assert completion["error"] == errno.ECANCELED
        assert "its log says more" in completion["text"]
    worker.kernel.tell_raw(b"\xff\xff\xff\xff")
    await worker.open(2)


async def test_a_connection_is_relayed(worker: Worker, tls: ssl.SSLContext) -> None:
    await worker.open()
    await worker.set(TlsOption.TLS_HOSTNAME, HOST.encode())
    await worker.set(TlsOption.TLS_ALPN, b"other,echo")
    async with Listener(tls) as listener:
        completion = await worker.connect(listener.port)
        assert completion["error"] == 0
        assert completion["transport"] is Transport.CHANNEL
        assert completion["version"] == 0x0304
        assert completion["cipher"].startswith("TLS_")
        assert completion["alpn"] == "echo"
        assert completion["host_name"] == HOST
        assert completion["peer_identity"] == f"CN={HOST}"
        assert b"".join(completion["peer_chain"]).count(b"BEGIN CERTIFICATE") == 2

        (program,) = worker.programs
        program.sendall(b"hello")
        assert await received(program) == b"hello"
        program.shutdown(socket.SHUT_WR)
        end = await asyncio.to_thread(worker.kernel.next_of, Command.END_OF_STREAM)
        assert end == {"socket": 1, "error": 0, "text": ""}
        assert await received(program) == b""


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_a_session_is_resumed_by_who_wants_it(
    worker: Worker, tls: ssl.SSLContext, version: ssl.TLSVersion
) -> None:
    tls.minimum_version = tls.maximum_version = version

    async def resumed(*, reuse: int) -> int:
        await worker.open()
        await worker.set(TlsOption.TLS_HOSTNAME, HOST.encode())
        await worker.set(TlsOption.TLS_SESSION_REUSE, struct.pack("=I", reuse))
        completion = await worker.connect(listener.port)
        assert "tickets" not in completion  # the module sees none on a channel
        program = worker.programs.pop()
        program.sendall(b"hello")
        assert await received(program) == b"hello"
        program.close()
        worker.kernel.tell(Command.CLOSE, {"socket": 1})
        return int(completion["resumed"])

    async with Listener(tls) as listener:
        found = [await resumed(reuse=reuse) for reuse in (0, 1, 1, 1, 0)]
    assert found == [0, 0, 1, 1, 0]


async def test_the_settings_are_forgotten_once_connected(
    worker: Worker, tls: ssl.SSLContext
) -> None:
    await worker.open()
    await worker.set(TlsOption.TLS_HOSTNAME, HOST.encode())
    async with Listener(tls) as listener:
        assert (await worker.connect(listener.port))["error"] == 0
    assert (await worker.ask(Command.BIND, {"socket": 1}))["error"] == errno.EBADF


async def test_a_wrong_name_is_eproto_with_a_sentence(worker: Worker, tls: ssl.SSLContext) -> None:
    await worker.open()
    await worker.set(TlsOption.TLS_HOSTNAME, OTHER_HOST.encode())
    async with Listener(tls) as listener:
        completion = await worker.connect(listener.port)
    assert completion["error"] == errno.EPROTO
    assert f"wants one for {OTHER_HOST}" in completion["text"]


async def test_the_module_learns_what_getsockopt_gives(worker: Worker) -> None:
    def value_of(option: TlsOption) -> int:
        return worker.switches >> option - TlsOption.TLS_REVOCATION_CHECKS & 1

    await worker.open()
    assert (value_of(TlsOption.TLS_CRL_CHECKS), value_of(TlsOption.TLS_CACHED_REV_CHECKS)) == (0, 1)
    await worker.set(TlsOption.TLS_CRL_CHECKS, struct.pack("=I", 1))
    await worker.set(TlsOption.TLS_CACHED_REV_CHECKS, struct.pack("=I", 0))
    assert (value_of(TlsOption.TLS_CRL_CHECKS), value_of(TlsOption.TLS_CACHED_REV_CHECKS)) == (1, 0)
    before = worker.switches
    weaker = await worker.set(TlsOption.TLS_OCSP_STAPLED_CHECKS, struct.pack("=I", 0))
    assert weaker["error"] == errno.EPROTO
    assert worker.switches == before


async def test_a_certificate_that_was_revoked_is_refused_with_an_alert(
    pki: Pki, tmp_path: Path
) -> None:
    ca, key = Authority.load(pki.intermediate), Authority.load(pki.ecdsa).key
    policy = replace(POLICY, trust_store=pki.root, crl=True)
    with responding() as responder:
        certificate = ca.issue(*sources(crl_url=responder.url("/crl")), key=key)
        identity = ca.identity(tmp_path, certificate, pki.ecdsa.key)
        server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        server.load_cert_chain(identity.chain, identity.key)
        async with working(policy) as worker, Listener(server) as listener:
            await worker.open(1)
            await worker.set(TlsOption.TLS_HOSTNAME, HOST.encode(), 1)
            responder.put("/crl", ca.crl({certificate: None}))
            completion = await worker.connect(listener.port, 1)
            assert completion["error"] == errno.EPROTO
            assert "was revoked on" in completion["text"]
            assert not listener.peers  # the server has never seen the end of the handshake
            await worker.open(2)
            await worker.set(TlsOption.TLS_HOSTNAME, HOST.encode(), 2)
            await worker.set(TlsOption.TLS_CACHED_REV_CHECKS, bytes(4), 2)
            responder.put("/crl", ca.crl())
            assert (await worker.connect(listener.port, 2))["error"] == 0


async def test_tcp_errors_come_through(worker: Worker) -> None:
    await worker.open()
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    completion = await worker.connect(port)
    assert completion["error"] == errno.ECONNREFUSED


async def test_a_silent_peer_is_given_up_after_the_deadline(pki: Pki) -> None:
    policy = replace(POLICY, trust_store=pki.root, handshake_timeout=0.2)
    async with working(policy) as worker, Listener() as listener:
        await worker.open()
        completion = await worker.connect(listener.port)
        assert completion["error"] == errno.EPROTO
        assert "did not finish the TLS handshake within 0.2 seconds" in completion["text"]


async def test_a_missing_trust_store_lets_nobody_through(pki: Pki, tls: ssl.SSLContext) -> None:
    policy = replace(POLICY, trust_store=pki.directory / "missing.pem")
    async with working(policy) as worker, Listener(tls) as listener:
        await worker.open()
        completion = await worker.connect(listener.port)
        assert completion["error"] == errno.EPROTO
        assert "missing.pem can't be used" in completion["text"]


async def test_closing_a_socket_ends_its_handshake(worker: Worker) -> None:
    await worker.open()
    async with Listener() as listener:
        request = worker.begin_connect(listener.port)
        await asyncio.to_thread(worker.kernel.next_of, Command.ENDPOINT)
        worker.endpoints.pop(request).close()
        worker.kernel.tell(Command.CLOSE, {"socket": 1})
        await listener.peers[0].gone.wait()
    assert (await worker.ask(Command.BIND, {"socket": 1}))["error"] == errno.EBADF


async def test_a_caller_that_gave_up_before_the_handshake_needs_no_completion(
    worker: Worker,
) -> None:
    worker.kernel.handlers[Command.ENDPOINT] = refusing(errno.ENOENT)
    await worker.open()
    async with Listener() as listener:
        worker.begin_connect(listener.port)
        # The next completion is that of the next request.
        assert await worker.ask(Command.BIND, {"socket": 2}) is not None


async def test_a_caller_that_gave_up_during_the_handshake_gets_no_channel(
    worker: Worker, tls: ssl.SSLContext
) -> None:
    await worker.open()
    await worker.set(TlsOption.TLS_HOSTNAME, HOST.encode())
    worker.kernel.handlers[Command.COMPLETE] = refusing(errno.ENOENT)
    async with Listener(tls) as listener:
        request = worker.begin_connect(listener.port)
        await worker.completion(request)
        worker.endpoints.pop(request).close()
        await listener.peers[0].gone.wait()


async def test_an_answer_that_the_module_can_not_take_is_followed_by_one_that_it_can(
    worker: Worker,
) -> None:
    worker.kernel.handlers[Command.COMPLETE] = refusing(errno.ENOMEM)
    assert await worker.ask(Command.SOCKET, {"socket": 1, "uid": 1}) == {"error": 0}
    completion = await asyncio.to_thread(worker.kernel.next_of, Command.COMPLETE)
    assert completion["error"] == errno.ECANCELED
    assert "failed internally" in completion["text"]


async def test_many_connects_at_once(worker: Worker, tls: ssl.SSLContext) -> None:
    count = 100
    for socket_id in range(1, count + 1):
        await worker.open(socket_id)
        await worker.set(TlsOption.TLS_HOSTNAME, HOST.encode(), socket_id)
    async with Listener(tls) as listener:
        waiting = {
            worker.begin_connect(listener.port, socket_id) for socket_id in range(1, count + 1)
        }
        while waiting:
            completion = await asyncio.to_thread(worker.kernel.next_of, Command.COMPLETE)
            assert completion["error"] == 0, completion["text"]
            waiting.remove(completion["request"])
    assert len(worker.programs) == count


async def test_stopping_takes_no_new_sockets_and_lets_channels_end(
    worker: Worker, tls: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ssad.server._STOP_TIMEOUT", 20.0)
    await worker.open()
    await worker.set(TlsOption.TLS_HOSTNAME, HOST.encode())
    async with Listener(tls) as listener:
        assert (await worker.connect(listener.port))["error"] == 0
        worker.server.stop()
        completion = await worker.ask(Command.SOCKET, {"socket": 2})
        assert completion["error"] == errno.ECANCELED
        assert "is stopping" in completion["text"]
        (program,) = worker.programs
        program.sendall(b"last words")
        assert await received(program) == b"last words"
        program.shutdown(socket.SHUT_WR)
        end = await asyncio.to_thread(worker.kernel.next_of, Command.END_OF_STREAM)
        assert end["error"] == 0


async def test_without_its_link_the_worker_ends(pki: Pki) -> None:
    with Kernel() as kernel:
        policy = replace(POLICY, trust_store=pki.root)
        server = Server(kernel.link(), policy, TicketContexts(policy))
        task = asyncio.create_task(server.run())
        kernel.hang_up()
        await task


_FROM_THE_KERNEL = [
    Command.SOCKET,
    Command.SETSOCKOPT,
    Command.GETSOCKOPT,
    Command.BIND,
    Command.CONNECT,
    Command.CLOSE,
    Command.NOTIFY,
    Command.TICKET,
]


@st.composite
def messages(draw: st.DrawFn) -> tuple[Command, Attributes]:
    """A message with anything in it that the contract allows, or lacking it."""
    command = draw(st.sampled_from(_FROM_THE_KERNEL))
    found: Attributes = {}
    if draw(st.booleans()):
        found["socket"] = draw(st.integers(1, 2))
    if command in (Command.SETSOCKOPT, Command.GETSOCKOPT):
        found["option"] = draw(st.sampled_from(TlsOption))
    if command is Command.SETSOCKOPT:
        found["value"] = draw(st.binary(max_size=5))
        found["value_length"] = draw(st.integers(0, 6))
        found["value_offset"] = draw(st.integers(0, 6))
    if command is Command.CONNECT:
        found["remote_address"] = draw(st.binary(max_size=30))
    return command, found


@settings(max_examples=50)
@given(st.lists(messages(), max_size=20))
def test_whatever_is_asked_each_request_has_one_completion(
    asked: list[tuple[Command, Attributes]],
) -> None:
    async def play() -> None:
        async with working(POLICY) as worker:
            worker.kernel.handlers[Command.ENDPOINT] = refusing(errno.EMFILE)
            waiting = set()
            for command, attributes in asked:
                message = attributes
                if command not in (Command.CLOSE, Command.NOTIFY, Command.TICKET):
                    request = worker.kernel.new_request()
                    waiting.add(request)
                    message = {"request": request, **attributes}
                worker.kernel.tell(command, message)
            last = worker.kernel.new_request()
            worker.kernel.tell(Command.BIND, {"request": last, "socket": 1})
            waiting.add(last)
            while waiting:
                completion = await asyncio.to_thread(worker.kernel.next_of, Command.COMPLETE)
                waiting.remove(completion["request"])

    asyncio.run(play())


@pytest.fixture
def trusting(pki: Pki) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(pki.root))


async def test_a_client_is_accepted_and_its_bytes_are_relayed(
    worker: Worker, pki: Pki, trusting: ssl.SSLContext
) -> None:
    port = await worker.listen(pki)
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", port, ssl=trusting, server_hostname=HOST
    )
    accepted = await worker.accepted()
    assert accepted["socket"] == 1
    assert accepted["host_name"] == HOST
    assert accepted["transport"] is Transport.CHANNEL
    (program,) = worker.programs
    writer.write(b"there")
    assert await received(program) == b"there"
    program.send(b"and back")
    assert await reader.readexactly(8) == b"and back"
    worker.kernel.tell(Command.CLOSE, {"socket": 1001})
    program.close()
    assert await reader.read() == b""
    writer.close()


async def test_a_listener_needs_a_certificate(worker: Worker) -> None:
    await worker.open()
    completion = await worker.ask(Command.LISTEN, {"socket": 1, "backlog": 1})
    assert completion["error"] == errno.EINVAL
    assert "TLS_CERTIFICATE_CHAIN" in completion["text"]


async def test_the_module_is_told_of_a_client_that_failed(worker: Worker, pki: Pki) -> None:
    port = await worker.listen(pki)
    with socket.create_connection(("127.0.0.1", port)) as client:
        client.sendall(b"GET / HTTP/1.0\r\n\r\n")
        accepted = await worker.accepted()
        remote = Address.of_socket(client.getsockname())
        assert parse_sockaddr(accepted["remote_address"]) == remote
    assert accepted["error"] == errno.EPROTO
    assert "HTTP" in accepted["text"]


async def test_a_full_queue_stops_it_until_there_is_room(
    worker: Worker, pki: Pki, trusting: ssl.SSLContext
) -> None:
    worker.backlog = 0  # one connection is above it
    port = await worker.listen(pki)

    async def connect() -> asyncio.StreamWriter:
        _, writer = await asyncio.open_connection(
            "127.0.0.1", port, ssl=trusting, server_hostname=HOST
        )
        return writer

    first = await connect()
    await worker.accepted()
    second = asyncio.create_task(connect())
    done, _ = await asyncio.wait([second], timeout=0.3)
    assert not done
    worker.kernel.tell(Command.ROOM, {"socket": 1})
    await worker.accepted()
    for writer in (first, await second):
        writer.close()


async def test_closing_a_listener_ends_handshakes_under_way(worker: Worker, pki: Pki) -> None:
    port = await worker.listen(pki)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"\x16\x03\x01")  # the beginning of a record
    worker.kernel.tell(Command.CLOSE, {"socket": 1})
    with contextlib.suppress(ConnectionResetError):
        assert await reader.read() == b""
    writer.close()


@dataclass
class Half:
    """A client that has the server's first flight, and has not answered it."""

    tls: ssl.SSLObject
    client: ssl.MemoryBIO
    theirs: ssl.MemoryBIO
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    def finish(self) -> None:
        """Send the client's second flight."""
        self.tls.do_handshake()
        self.writer.write(self.client.read())


async def begin_handshake(port: int, trusting: ssl.SSLContext) -> Half:
    """Do the first half of a handshake."""
    client, theirs = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = trusting.wrap_bio(theirs, client, server_hostname=HOST)
    with contextlib.suppress(ssl.SSLWantReadError):
        tls.do_handshake()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(client.read())
    theirs.write(await reader.read(65536))
    return Half(tls, client, theirs, reader, writer)


async def test_a_worker_that_stops_lets_handshakes_finish(
    worker: Worker, pki: Pki, trusting: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ssad.server._STOP_TIMEOUT", 20.0)
    port = await worker.listen(pki)
    half = await begin_handshake(port, trusting)
    worker.server.stop()
    half.finish()
    assert (await worker.accepted())["error"] == 0
    half.writer.close()


async def test_a_worker_that_leaves_finishes_what_it_has_begun_and_ends(
    worker: Worker, pki: Pki, trusting: ssl.SSLContext
) -> None:
    owed = [3, 1, 0]
    worker.kernel.handlers[Command.LEAVE] = lambda _: {"pending": owed.pop(0)}
    port = await worker.listen(pki)
    half = await begin_handshake(port, trusting)
    worker.server.leave(60)
    while owed:
        await asyncio.to_thread(worker.kernel.next_of, Command.LEAVE)
    # Whoever comes now is another worker's. What the module asks for all the same is done.
    _, late = await asyncio.open_connection("127.0.0.1", port)
    await worker.open(2)
    half.finish()
    assert (await worker.accepted())["error"] == 0
    (program,) = worker.programs
    program.sendall(b"still relayed")
    found = b""
    while not found:
        half.theirs.write(await half.reader.read(65536))
        with contextlib.suppress(ssl.SSLWantReadError):  # tickets come first
            found = half.tls.read(100)
    assert found == b"still relayed"
    assert not worker.task.done()
    program.shutdown(socket.SHUT_WR)
    half.writer.close()
    await asyncio.wait_for(asyncio.shield(worker.task), 20)
    late.close()


async def test_what_does_not_end_in_time_is_ended(worker: Worker, tls: ssl.SSLContext) -> None:
    open_when_told: list[bool] = []

    def hear_of_the_end(_: Attributes) -> Attributes:
        (program,) = worker.programs
        open_when_told.append(not select.select([program], [], [], 0)[0])
        return {}

    worker.kernel.handlers[Command.LEAVE] = lambda _: {"pending": 0}
    worker.kernel.handlers[Command.END_OF_STREAM] = hear_of_the_end
    await worker.open()
    await worker.set(TlsOption.TLS_HOSTNAME, HOST.encode())
    async with Listener(tls) as listener:
        assert (await worker.connect(listener.port))["error"] == 0
        worker.server.leave(0.1)
        end = await asyncio.to_thread(worker.kernel.next_of, Command.END_OF_STREAM)
        assert end["error"] == errno.ECONNRESET
        await asyncio.wait_for(asyncio.shield(worker.task), 20)
    # Else the program could see an end without its reason.
    assert open_when_told == [True]


async def test_a_worker_without_successors_stays(worker: Worker) -> None:
    def refuse(_: Attributes) -> Attributes:
        raise Refusal(errno.EBUSY, "there is no other worker that stays")

    worker.kernel.handlers[Command.LEAVE] = refuse
    worker.server.leave(60)
    for _ in range(3):
        await asyncio.to_thread(worker.kernel.next_of, Command.LEAVE)
    await worker.open()


async def test_what_came_with_the_answer_to_register_is_not_forgotten(pki: Pki) -> None:
    policy = replace(POLICY, trust_store=pki.root)
    with Kernel() as kernel:

        def register(_: Attributes) -> Attributes:
            kernel.tell(Command.SOCKET, {"request": 1, "socket": 7, "uid": 1})
            return {}

        kernel.handlers[Command.REGISTER] = register
        link = kernel.link()
        link.request(Command.REGISTER, {"daemon": 1})
        server = Server(link, policy, TicketContexts(policy))
        task = asyncio.create_task(server.run())
        completion = await asyncio.to_thread(kernel.next_of, Command.COMPLETE)
        assert (completion["request"], completion["error"]) == (1, 0)
        server.stop()
        await task


async def test_a_peer_that_floods_does_not_keep_others_waiting(worker: Worker, pki: Pki) -> None:
    port = await worker.listen(pki)
    hello_request = b"\x16\x03\x03\x00\x04" + bytes(4)

    def flood() -> None:
        with socket.create_connection(("127.0.0.1", port)) as peer, contextlib.suppress(OSError):
            for _ in range(200):
                peer.sendall(hello_request * 1000)

    def flood_client() -> None:
        with listener.accept()[0] as peer, contextlib.suppress(OSError):
            for _ in range(200):
                peer.sendall(hello_request * 1000)

    listener = socket.create_server(("127.0.0.1", 0))
    await worker.open(2)
    request = worker.begin_connect(listener.getsockname()[1], 2)
    flooding = asyncio.gather(asyncio.to_thread(flood), asyncio.to_thread(flood_client))
    ends: dict[Command, Attributes] = {}
    while len(ends) < 2:
        command, told = await asyncio.to_thread(worker.kernel.next)
        if command in {Command.COMPLETE, Command.ACCEPTED}:
            ends[command] = told
    await flooding
    listener.close()
    assert ends[Command.COMPLETE]["request"] == request
    assert {told["error"] for told in ends.values()} == {errno.EPROTO}
    assert "more than 1000 records" in ends[Command.COMPLETE]["text"]
