# SPDX-License-Identifier: BSD-3-Clause
"""The module takes nothing from netlink that the contract does not allow, says why, and is
unharmed."""

from __future__ import annotations

import errno
import os
import random
import select
import socket
import struct
import threading
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Self

import pytest

from ssad.link import Link
from ssad.wire import (
    CHAIN_PIECE_MAX,
    GROUP_EVENTS,
    TEXT_MAX,
    VALUE_PIECE_MAX,
    Attribute,
    Command,
    SocketState,
    Transport,
)
from tests.peers import hostile
from tests.peers.hostile import serving
from tests.system.daemon import socket_count, sockets
from tests.system.netlink import (
    NETLINK_GENERIC,
    NLM_F_REQUEST,
    Answer,
    Raw,
    attribute,
    attributes,
    string,
    u32,
    u64,
)
from tests.system.program import (
    NOBODY,
    connect,
    echo,
    get_id,
    in_child,
    raw_connect,
    refused,
    so_error,
    tls_error,
    tls_socket,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.peers.servers import Server
    from tests.system.daemon import Daemon

NOT_IN_THE_CONTRACT = 99

# <linux/errno.h>: the kernel stops at a read that returns it.
EIOCBQUEUED = 529


@pytest.fixture
def raw() -> Iterator[Raw]:
    """Give a netlink socket that belongs to no worker."""
    with Raw() as opened:
        yield opened


def check(answer: Answer, error: int, *words: str) -> None:
    """Check an answer's errno and that its text has the words."""
    assert answer.error == error, str(answer)
    assert all(word in answer.text for word in words), f"{words} should be in: {answer}"
    assert answer.text or not error, "an error should say why"


@pytest.mark.usefixtures("daemon")
class TestMalformed:
    """Messages that the contract does not allow."""

    def test_an_unknown_command(self, raw: Raw) -> None:
        assert raw.request(NOT_IN_THE_CONTRACT).error == errno.EOPNOTSUPP

    def test_a_command_of_the_other_direction(self, raw: Raw) -> None:
        for command in (Command.SOCKET, Command.CONNECT, Command.CLOSE, Command.NOTIFY):
            assert raw.request(command).error == errno.EOPNOTSUPP

    def test_an_unknown_attribute(self, raw: Raw) -> None:
        check(raw.request(Command.MODULE_GET, u32(NOT_IN_THE_CONTRACT, 1)), errno.EINVAL)

    def test_an_attribute_that_the_command_does_not_carry(self, raw: Raw) -> None:
        check(raw.request(Command.MODULE_GET, u32(Attribute.FD, 1)), errno.EINVAL)

    @pytest.mark.parametrize(
        "body",
        [
            attribute(Attribute.REQUEST, b""),
            attribute(Attribute.REQUEST, b"\1\0"),
            u32(Attribute.REQUEST, 1) + u32(Attribute.ERROR, 4096),
            u32(Attribute.REQUEST, 1) + u32(Attribute.ERROR, EIOCBQUEUED),
            u32(Attribute.REQUEST, 1) + u32(Attribute.ERROR, 0xFFFFFFFF),
            u32(Attribute.REQUEST, 1) + u32(Attribute.FD, -1),
            u32(Attribute.REQUEST, 1) + u32(Attribute.TRANSPORT, 99),
            u32(Attribute.REQUEST, 1) + attribute(Attribute.TEXT, b"no end"),
            u32(Attribute.REQUEST, 1) + string(Attribute.TEXT, "x" * (TEXT_MAX + 1)),
            u32(Attribute.REQUEST, 1) + attribute(Attribute.VALUE, bytes(VALUE_PIECE_MAX + 1)),
            u32(Attribute.REQUEST, 1) + attribute(Attribute.PEER_CHAIN, bytes(CHAIN_PIECE_MAX + 1)),
            u32(Attribute.REQUEST, 1) + u32(Attribute.RESUMED, 2),
            u32(Attribute.REQUEST, 1) + struct.pack("=HH", 3, Attribute.TEXT),
            u32(Attribute.REQUEST, 1) + struct.pack("=HH", 5000, Attribute.TEXT) + b"cut off",
        ],
        ids=[
            "an empty number",
            "half a number",
            "an error out of range",
            "an error that is the kernel's own",
            "a negative error",
            "a negative descriptor",
            "an unknown transport",
            "a string without an end",
            "a string that is too long",
            "a value that is too long",
            "a chain piece that is too long",
            "a flag that is neither",
            "an attribute shorter than its header",
            "an attribute longer than its message",
        ],
    )
    def test_a_wrong_attribute(self, raw: Raw, body: bytes) -> None:
        answer = raw.request(Command.COMPLETE, body)
        assert answer.error in (errno.EINVAL, errno.ERANGE), str(answer)
        assert answer.text, "it should say why"

    def test_a_missing_attribute(self, raw: Raw) -> None:
        check(raw.request(Command.COMPLETE), errno.EINVAL, "request", "missing")
        check(raw.request(Command.ENDPOINT), errno.EINVAL, "request", "missing")
        check(raw.request(Command.END_OF_STREAM), errno.EINVAL, "socket")

    def test_noise(self, raw: Raw) -> None:
        source = random.Random(205)  # noqa: S311 -- wants to be the same each time
        for _ in range(300):
            command = source.choice(list(Command))
            body = source.randbytes(4 * source.randrange(40))
            raw.socket.send(
                struct.pack("=IHHII", 20 + len(body), raw.family, NLM_F_REQUEST, 0, 0)
                + struct.pack("=BBH", command, 1, 0)
                + body
            )
        drain(raw.socket)
        assert raw.request(Command.MODULE_GET).error == 0

    def test_a_message_that_is_cut_off(self, raw: Raw) -> None:
        for length in range(4):
            answer = raw.send(raw.family, bytes(length))
            assert answer.error == errno.EINVAL, str(answer)


def drain(netlink: socket.socket) -> None:
    """Drop what came."""
    while select.select([netlink], [], [], 0)[0]:
        try:
            netlink.recv(1 << 16)
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                raise


# The main process of the daemon that a worker of ours belongs to.
MAIN = u32(Attribute.DAEMON, os.getpid())


@pytest.mark.usefixtures("daemon")
class TestUnauthorised:
    """Messages from those who may not send them."""

    def test_a_second_worker(self, raw: Raw) -> None:
        check(raw.request(Command.REGISTER, MAIN), errno.EBUSY, "registered")
        check(raw.request(Command.REGISTER), errno.EINVAL, "daemon is missing")

    @pytest.mark.usefixtures("no_daemon")
    def test_a_worker_without_rights(self) -> None:
        def register() -> None:
            with Raw() as own:
                assert own.request(Command.REGISTER, MAIN).error == errno.EPERM

        assert in_child(register, user=NOBODY) == 0

    def test_anybody_may_ask_for_the_module(self) -> None:
        def ask() -> None:
            with Raw() as own:
                assert own.request(Command.MODULE_GET).error == 0
                assert own.request(Command.WORKER_GET, dump=True).error == 0

        assert in_child(ask, user=NOBODY) == 0

    def test_a_user_sees_only_sockets_of_the_same_user(self) -> None:
        def ask() -> None:
            with tls_socket() as own:
                assert [entry["socket"] for entry in sockets()] == [get_id(own)]

        with tls_socket():
            assert in_child(ask, user=NOBODY) == 0

    def test_events_are_for_root(self) -> None:
        def listen() -> None:
            link = Link()
            try:
                link.subscribe()
            except PermissionError:
                return
            raise AssertionError(f"anyone can join {GROUP_EVENTS}")

        assert in_child(listen, user=NOBODY) == 0

    def test_requests_of_the_worker_are_its_own(self, raw: Raw) -> None:
        with serving(hostile.silent) as peer, tls_socket() as sock:
            sock.settimeout(0)
            assert raw_connect(sock, peer) == errno.EINPROGRESS
            peer.await_report("hello")
            found = 0
            for number in range(1, 100_000):
                answer = raw.request(Command.ENDPOINT, u32(Attribute.REQUEST, number))
                if answer.error == errno.EPERM:
                    check(answer, errno.EPERM, "another process")
                    body = u32(Attribute.REQUEST, number) + u32(Attribute.ERROR, errno.EIO)
                    check(raw.request(Command.COMPLETE, body), errno.EPERM, "another process")
                    found += 1
                    break
                check(answer, errno.ENOENT)
            assert found == 1, "no request was found"
            assert raw_connect(sock, peer) == errno.EALREADY

    def test_the_end_of_a_stream_is_told_by_its_worker_only(
        self, raw: Raw, any_daemon: Daemon, echo_server: Server
    ) -> None:
        for transport in ("ktls", "channel"):
            any_daemon.ensure(transport)
            with connect(echo_server) as sock:
                body = u64(Attribute.SOCKET, get_id(sock)) + u32(Attribute.ERROR, 0)
                assert raw.request(Command.END_OF_STREAM, body).error in (
                    errno.EPERM,
                    errno.EINVAL,
                )
                echo(sock, b"goes on")
        body = u64(Attribute.SOCKET, 1 << 60) + u32(Attribute.ERROR, 0)
        check(raw.request(Command.END_OF_STREAM, body), errno.ENOENT)


class Worker:
    """A worker that answers as the test says."""

    def __init__(self, raw: Raw) -> None:
        self.raw = raw
        answer = raw.request(Command.REGISTER, MAIN)
        assert answer.error == 0, str(answer)

    def next(self, command: Command) -> tuple[int, dict[int, bytes]]:
        """Wait for the next request, which must be `command`; return its id and attributes."""
        found, carried = self.raw.unasked()
        while found == Command.CLOSE:  # of a socket before
            found, carried = self.raw.unasked()
        assert found == command, f"wanted {command.name}, found {Command(found).name}"
        return int(struct.unpack("=I", carried[Attribute.REQUEST])[0]), carried

    def complete(self, request: int, *more: bytes, error: int = 0) -> Answer:
        """Answer a request."""
        body = u32(Attribute.REQUEST, request) + u32(Attribute.ERROR, error) + b"".join(more)
        return self.raw.request(Command.COMPLETE, body)

    @contextmanager
    def connecting(self) -> Iterator[tuple[socket.socket, hostile.Peer, int]]:
        """Have a program that connects: its nonblocking socket, its peer, the request."""
        made: list[socket.socket] = []
        maker = threading.Thread(target=lambda: made.append(tls_socket(host=None)))
        maker.start()
        request, _ = self.next(Command.SOCKET)
        assert self.complete(request).error == 0
        maker.join()
        with made[0] as sock, serving(hostile.mute_until_told) as peer:
            sock.settimeout(0)
            assert raw_connect(sock, peer) == errno.EINPROGRESS
            request, _ = self.next(Command.CONNECT)
            yield sock, peer, request


@pytest.fixture
def worker(any_daemon: Daemon, raw: Raw) -> Worker:
    """Be the worker."""
    any_daemon.stop()
    return Worker(raw)


FACTS = u32(Attribute.VERSION, 0x0304) + string(Attribute.CIPHER, "TLS_AES_128_GCM_SHA256")


class TestWorkerThatMisbehaves:
    """A daemon with errors harms its programs' connections, not the kernel."""

    def test_a_channel_must_be_a_connected_unix_stream_socket(self, worker: Worker) -> None:
        channel = u32(Attribute.TRANSPORT, Transport.CHANNEL) + FACTS
        ours, theirs = socket.socketpair()
        read_end, write_end = os.pipe()
        with (
            ours,
            theirs,
            os.fdopen(read_end, "rb"),
            os.fdopen(write_end, "wb"),
            socket.socket() as tcp,
            socket.socket(socket.AF_UNIX) as lone,
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as datagram,
            worker.connecting() as (sock, _, request),
        ):
            check(worker.complete(request, channel), errno.EINVAL, "fd")
            for wrong in (tcp, lone, datagram, worker.raw.socket, sock):
                fd = u32(Attribute.FD, wrong.fileno())
                check(worker.complete(request, channel, fd), errno.EINVAL, "Unix stream")
            check(worker.complete(request, channel, u32(Attribute.FD, read_end)), errno.EINVAL)
            for absent in (1_000_000, 0x7FFFFFFF):
                check(worker.complete(request, channel, u32(Attribute.FD, absent)), errno.EBADF)
            # The request waits still, for an answer that is right.
            fd = u32(Attribute.FD, theirs.fileno())
            assert worker.complete(request, channel, fd).error == 0
            assert so_error(sock) == 0
            sock.send(b"through")
            assert ours.recv(7) == b"through"

    def test_a_connection_needs_a_transport_and_facts(self, worker: Worker) -> None:
        with worker.connecting() as (sock, _, request):
            check(worker.complete(request), errno.EINVAL, "transport")
            ktls = u32(Attribute.TRANSPORT, Transport.KTLS)
            check(worker.complete(request, ktls), errno.EINVAL, "version")
            assert worker.complete(request, error=errno.EIO).error == 0
            assert so_error(sock) == errno.EIO

    def test_no_byte_leaves_if_kernel_tls_is_not_in_place(self, worker: Worker) -> None:
        with worker.connecting() as (sock, _, request):
            assert worker.complete(request, u32(Attribute.TRANSPORT, 1), FACTS).error == 0
            assert so_error(sock) == errno.ECONNABORTED
            assert "kernel TLS" in tls_error(sock)
            refused(errno.EBADFD, lambda: sock.send(b"in the clear"))

    def test_a_request_is_answered_once(self, worker: Worker) -> None:
        with worker.connecting() as (sock, _, request):
            assert worker.complete(request, error=errno.EPROTO).error == 0
            check(worker.complete(request, error=errno.EIO), errno.ENOENT)
            assert so_error(sock) == errno.EPROTO

    def test_an_answer_comes_too_late(self, worker: Worker) -> None:
        with worker.connecting() as (sock, _, request):
            sock.close()
            check(worker.complete(request, error=errno.EPROTO), errno.ENOENT)
        assert socket_count() == 0

    def test_the_endpoint_is_the_programs_socket(self, worker: Worker) -> None:
        with worker.connecting() as (sock, peer, request):
            answer = worker.raw.request(Command.ENDPOINT, u32(Attribute.REQUEST, request))
            assert answer.error == 0, str(answer)
            found = dict(attributes(answer.replies[0][1]))
            with socket.socket(fileno=struct.unpack("=i", found[Attribute.FD])[0]) as endpoint:
                assert select.select([], [endpoint], [], 30)[1]
                assert endpoint.getpeername() == (peer.address, peer.port)
                assert endpoint.getsockname() == sock.getsockname()
                assert not os.get_blocking(endpoint.fileno())
            assert worker.complete(request, error=errno.EPROTO).error == 0

    def test_only_a_connect_has_an_endpoint(self, worker: Worker) -> None:
        maker = threading.Thread(target=lambda: tls_socket(host=None).close())
        maker.start()
        request, _ = worker.next(Command.SOCKET)
        answer = worker.raw.request(Command.ENDPOINT, u32(Attribute.REQUEST, request))
        check(answer, errno.EINVAL, "endpoint")
        assert worker.complete(request).error == 0
        maker.join()

    def test_a_worker_that_ends_cancels_what_it_was_asked(self, worker: Worker) -> None:
        with worker.connecting() as (sock, _, _request):
            worker.raw.socket.close()
            assert so_error(sock) == errno.ECANCELED


class Impostor(threading.Thread):
    """Takes a port number as soon as it is free, and all that comes."""

    def __init__(self, port: int) -> None:
        super().__init__()
        self._port = port
        self._end = threading.Event()
        self.taken = threading.Event()
        self.found: list[bytes] = []

    def run(self) -> None:
        """Do so until the end of the context."""
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_GENERIC) as sock:
            sock.settimeout(0.05)
            while not self._end.is_set():
                try:
                    if self.taken.is_set():
                        self.found.append(sock.recv(1 << 16))
                    else:
                        sock.bind((self._port, 0))
                        self.taken.set()
                except TimeoutError:
                    continue
                except OSError as error:
                    if error.errno != errno.EADDRINUSE:
                        raise

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self.join()


@pytest.mark.usefixtures("no_daemon")
class TestWorkerThatIsGone:
    """Its port number is anybody's."""

    def test_who_takes_its_number_gets_nothing(self) -> None:
        ended = threading.Event()

        def open_sockets() -> None:
            while not ended.is_set():
                with suppress(OSError):
                    tls_socket(host=None).close()

        programs = [threading.Thread(target=open_sockets) for _ in range(2)]
        for program in programs:
            program.start()
        try:
            for round_ in range(20):
                with Raw() as raw, Impostor(raw.socket.getsockname()[0]) as impostor:
                    worker = Worker(raw)
                    for _ in range(1 + round_):
                        assert worker.complete(worker.next(Command.SOCKET)[0]).error == 0
                    raw.socket.close()
                    assert impostor.taken.wait(30)
                assert impostor.found == []
        finally:
            ended.set()
            for program in programs:
                program.join()


def test_the_module_knows_what_a_socket_does(any_daemon: Daemon, echo_server: Server) -> None:
    any_daemon.ensure("ktls")
    with tls_socket() as sock:
        assert sockets()[0]["state"] == SocketState.NEW
        sock.connect((echo_server.address, echo_server.port))
        echo(sock, b"twelve bytes")
        (found,) = sockets()
        assert found["socket"] == get_id(sock)
        assert found["state"] == SocketState.CONNECTED
        assert found["pid"] == os.getpid()
        assert found["uid"] == os.getuid()
        assert found["transport"] == Transport.KTLS
        assert (found["bytes_sent"], found["bytes_received"]) == (12, 12)
