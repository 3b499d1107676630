# SPDX-License-Identifier: BSD-3-Clause
"""A worker that agrees to everything, or refuses it, and makes connections without a handshake:
both ends know the keys. So a call costs what the module makes it cost, and little more."""

from __future__ import annotations

import errno
import os
import queue
import select
import socket
import struct
import threading
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Self

from ssad import ktls
from ssad.keys import Aead, KernelKeys, TrafficKey
from ssad.wire import Attribute, Command, TlsOption, Transport
from tests.debug.faults import Call, Sys
from tests.system import options
from tests.system.netlink import (
    NLM_F_ACK,
    NLM_F_REQUEST,
    NLMSG_DONE,
    NLMSG_ERROR,
    Answer,
    Raw,
    attribute,
    attributes,
    messages,
    string,
    u32,
    u64,
)

if TYPE_CHECKING:
    from collections.abc import Callable

# Seconds for anything that somebody else does.
DEADLINE = 60.0

CHAIN = b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"
SWITCHES = 0x1F
TICKETS = 4

_CLIENT, _SERVER = (TrafficKey(bytes([one] * 16), bytes([one] * 12), 0) for one in (1, 2))


def install_client(sock: socket.socket, version: int) -> None:
    """Let kernel TLS encrypt and decrypt on the client's end of a TCP connection."""
    ktls.install(sock, KernelKeys(version, Aead.AES_128_GCM, send=_CLIENT, receive=_SERVER))


def install_server(sock: socket.socket, version: int) -> None:
    """Do it on the server's end."""
    ktls.install(sock, KernelKeys(version, Aead.AES_128_GCM, send=_SERVER, receive=_CLIENT))


class Netlink(Raw):
    """A netlink socket whose next message can be sent with a fault."""

    fault: Call | None = None

    def send(self, kind: int, payload: bytes, flags: int = NLM_F_ACK) -> Answer:
        """Send a message and wait for its answer; with a fault there may be none: ENOBUFS."""
        fault, self.fault = self.fault, None
        if fault is None:
            return super().send(kind, payload, flags)
        self._sequence += 1
        head = struct.pack(
            "=IHHII", 16 + len(payload), kind, NLM_F_REQUEST | flags, self._sequence, 0
        )
        message = head + payload
        # The kernel acts on it, and answers, before the call returns.
        result = fault(Sys.SENDTO, self.socket.fileno(), message, len(message), 0, None, 0)
        if result.error:
            return Answer(result.error, "", ())
        waits = self.socket.gettimeout()
        self.socket.settimeout(0)
        try:
            return self._answer()
        finally:
            self.socket.settimeout(waits)

    def _answer(self) -> Answer:
        error = errno.ENOBUFS
        replies: list[tuple[int, bytes]] = []
        while True:
            try:
                datagram = self.socket.recv(1 << 16)
            except BlockingIOError:
                return Answer(error, "", tuple(replies))
            except OSError as lost:
                if lost.errno != errno.ENOBUFS:
                    raise
                continue  # there was no memory for the acknowledgement
            for kind, _, sequence, body in messages(datagram):
                if sequence == 0:
                    self._unasked.append(body)
                elif sequence != self._sequence:
                    continue
                elif kind in (NLMSG_ERROR, NLMSG_DONE):
                    error = -int(struct.unpack_from("=i", body)[0])
                else:
                    replies.append((body[0], body[4:]))


class Faulted:
    """A command that is to be sent with a fault, the first time."""

    def __init__(self, command: Command, call: Call) -> None:
        self.command = command
        self.call = call
        self._answers: queue.Queue[Answer] = queue.Queue()
        self.sent = False

    def take(self, netlink: Netlink, body: bytes) -> Answer:
        """Send it."""
        self.sent = True
        netlink.fault = self.call
        answer = netlink.request(self.command, body)
        self._answers.put(answer)
        return answer

    def answer(self) -> Answer:
        """Wait for its answer, which may come after the program has gone on."""
        return self._answers.get(timeout=DEADLINE)


class Worker:
    """The worker, a thread of this process."""

    def __init__(self) -> None:
        self.netlink = Netlink()
        self.transport = Transport.KTLS
        self.version = 0x0304
        # The worker's ends of channels, and the numbers of the sockets that were closed.
        self.channels: queue.Queue[socket.socket] = queue.Queue()
        self.closed: queue.Queue[int] = queue.Queue()
        self.tickets: queue.Queue[bytes] = queue.Queue()
        # What the accepted connections are known by.
        self.accepted: queue.Queue[int] = queue.Queue()
        self.faulted: Faulted | None = None
        # With which errno and sentence it refuses what it is asked, if it does.
        self.refusal: tuple[int, str] | None = None
        self._held = ExitStack()
        self._listeners: dict[int, socket.socket] = {}
        self._kinds = {option.number: option.kind for option in options.table()}
        self._wake, self._woken = socket.socketpair()
        self._tasks: queue.Queue[tuple[Command, bytes]] = queue.Queue()
        self._done: queue.Queue[Answer] = queue.Queue()
        self._thread = threading.Thread(target=self._run)
        self._failure: BaseException | None = None

    def __enter__(self) -> Self:
        answer = self.netlink.request(Command.REGISTER, u32(Attribute.DAEMON, os.getpid()))
        assert answer.error == 0, str(answer)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._wake.close()
        self._thread.join()
        self.netlink.socket.close()
        self._woken.close()
        self._held.close()
        for listener in self._listeners.values():
            listener.close()
        if self._failure is not None:
            raise self._failure

    def _run(self) -> None:
        try:
            while True:
                waiting = [self._woken, self.netlink.socket, *self._listeners.values()]
                if not self.netlink.has_unasked:
                    ready = select.select(waiting, [], [])[0]
                    if self._woken in ready:
                        if not self._woken.recv(1):
                            return
                        command, body = self._tasks.get()
                        self._done.put(self.ask(command, body, lambda answer: not answer.error))
                    for number, listener in list(self._listeners.items()):
                        if listener in ready:
                            self._accept(number, listener)
                    if self.netlink.socket not in ready:
                        continue
                self._serve(*self.netlink.unasked())
        except BaseException as failure:  # noqa: BLE001 -- told by __exit__()
            self._failure = failure
            self.netlink.socket.close()  # what waits for an answer waits no more

    def _serve(self, command: int, carried: dict[int, bytes]) -> None:
        number = struct.unpack("=Q", carried[Attribute.SOCKET])[0]
        match command:
            case Command.CLOSE:
                listener = self._listeners.pop(number, None)
                if listener is not None:
                    listener.close()
                self.closed.put(number)
                return
            case Command.TICKET:
                self.tickets.put(carried[Attribute.VALUE])
                return
            case Command.ROOM:
                return
        request = int(struct.unpack("=I", carried[Attribute.REQUEST])[0])
        if self.refusal is not None:
            error, words = self.refusal
            self._complete(request, string(Attribute.TEXT, words), error=error)
        else:
            self._grant(command, request, number, carried)

    def _grant(self, command: int, request: int, number: int, carried: dict[int, bytes]) -> None:
        match command:
            case Command.CONNECT:
                self._connect(request, carried)
            case Command.LISTEN:
                listener = self._endpoint(request, 0)
                if listener is not None and not self._complete(request):
                    self._listeners[number] = listener
                elif listener is not None:
                    listener.close()
            case Command.GETSOCKOPT:
                option = TlsOption(struct.unpack("=I", carried[Attribute.OPTION])[0])
                value = bytes(4) if self._kinds[option] == "U32" else b"a value"
                self._complete(request, attribute(Attribute.VALUE, value))
            case _:
                self._complete(request, u32(Attribute.SWITCHES, SWITCHES))

    def do(self, command: Command, body: bytes) -> Answer:
        """Have the worker send a command that nobody has asked for."""
        self._tasks.put((command, body))
        self._wake.send(b"!")
        return self._done.get(timeout=DEADLINE)

    def ask(self, command: Command, body: bytes, done: Callable[[Answer], bool]) -> Answer:
        """Send a command; again, if it was sent with a fault and is not done then."""
        faulted = self.faulted
        if faulted is not None and faulted.command == command and not faulted.sent:
            answer = faulted.take(self.netlink, body)
            if done(answer):
                return answer
        return self.netlink.request(command, body)

    def _complete(self, request: int, *more: bytes, error: int = 0) -> int:
        """Complete a request; return 0 or the errno."""
        faulted = self.faulted
        body = u32(Attribute.REQUEST, request) + u32(Attribute.ERROR, error) + b"".join(more)
        answer = self.ask(Command.COMPLETE, body, lambda answer: not answer.error)
        if answer.error == errno.ENOENT and faulted is not None and faulted.sent:
            return 0  # it was done, but its acknowledgement was lost
        return answer.error

    def _endpoint(self, request: int, index: int) -> socket.socket | None:
        """Get an endpoint of a request, unless the program has given up."""
        body = u32(Attribute.REQUEST, request) + u32(Attribute.ENDPOINT, index)
        answer = self.ask(Command.ENDPOINT, body, lambda answer: bool(answer.replies))
        if answer.error == errno.ENOENT:
            return None
        assert answer.replies, str(answer)
        found = dict(attributes(answer.replies[0][1]))
        return socket.socket(fileno=struct.unpack("=i", found[Attribute.FD])[0])

    def _connect(self, request: int, asked: dict[int, bytes]) -> None:
        count = int(struct.unpack("=I", asked.get(Attribute.ENDPOINTS, b"\1\0\0\0"))[0])
        endpoint = self._endpoint(request, count - 1)
        if endpoint is None:
            return
        with endpoint:
            if Attribute.HOST_NAME in asked:
                (port,) = struct.unpack("=I", asked[Attribute.PORT])
                address = "::1" if endpoint.family == socket.AF_INET6 else "127.0.0.1"
                with suppress(BlockingIOError):
                    endpoint.connect((address, port))
            assert select.select([], [endpoint], [], DEADLINE)[1], "TCP does not connect"
            error = endpoint.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if error:
                self._complete(request, error=error)
                return
            with ExitStack() as opened:
                try:
                    body = self._transport(endpoint, install_client, opened)
                except OSError as failure:  # torn down by the program in the meantime
                    self._complete(request, error=failure.errno or errno.EIO)
                    return
                self._complete(request, u32(Attribute.ENDPOINT, count - 1), *body)

    def _transport(
        self,
        endpoint: socket.socket,
        install: Callable[[socket.socket, int], None],
        opened: ExitStack,
    ) -> list[bytes]:
        body = [
            u32(Attribute.TRANSPORT, self.transport),
            u32(Attribute.VERSION, self.version),
            string(Attribute.CIPHER, "TLS_AES_128_GCM_SHA256"),
            string(Attribute.ALPN, "h2"),
            string(Attribute.PEER_IDENTITY, "CN=peer"),
            string(Attribute.HOST_NAME, "server.test"),
            attribute(Attribute.PEER_CHAIN, CHAIN),
        ]
        if self.transport == Transport.CHANNEL:
            ours, theirs = socket.socketpair()
            opened.enter_context(theirs)
            self.channels.put(self._held.enter_context(ours))
            return [*body, u32(Attribute.FD, theirs.fileno())]
        install(endpoint, self.version)
        return [*body, u32(Attribute.TICKETS, TICKETS)] if install is install_client else body

    def _accept(self, number: int, listener: socket.socket) -> None:
        try:
            endpoint, _ = listener.accept()
        except OSError:  # the program has closed it in the meantime
            return
        with endpoint, ExitStack() as opened:
            body = self._transport(endpoint, install_server, opened)
            more = u32(Attribute.ENDPOINT_FD, endpoint.fileno()) + b"".join(body)
            head = u64(Attribute.SOCKET, number) + u32(Attribute.ERROR, 0)
            answer = self.ask(Command.ACCEPTED, head + more, lambda answer: bool(answer.replies))
            if answer.replies:
                found = dict(attributes(answer.replies[0][1]))
                self.accepted.put(struct.unpack("=Q", found[Attribute.SOCKET])[0])
