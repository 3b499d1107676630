# SPDX-License-Identifier: BSD-3-Clause
"""Workers that a test plays, the program that uses TLS sockets meanwhile, and what the module
should know of both."""

from __future__ import annotations

import os
import queue
import select
import socket
import struct
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Self

from ssad.wire import Attribute, Command, Transport
from tests.fuzz.netlink import WORKERS_OWN, Message, Targets, Verdict, Volley
from tests.system.netlink import Raw, string, u32
from tests.system.program import NOBODY, start_child

DEADLINE = 60.0

# The main process of the daemon that the workers belong to.
MAIN = u32(Attribute.DAEMON, os.getpid())

FACTS = u32(Attribute.VERSION, 0x0304) + string(Attribute.CIPHER, "TLS_AES_128_GCM_SHA256")


class Program:
    """A thread that makes one call at a time, which may wait for a worker."""

    def __init__(self) -> None:
        self.done = os.eventfd(0)
        self._calls: queue.SimpleQueue[Callable[[], object] | None] = queue.SimpleQueue()
        self._result: object = None
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def start(self, call: Callable[[], object]) -> None:
        """Begin a call; its end is readable on `done`."""
        self._calls.put(call)

    def result(self) -> object:
        """Return what the call returned that has ended: an OSError if it raised one."""
        os.eventfd_read(self.done)
        return self._result

    def end(self) -> None:
        """End the thread."""
        self._calls.put(None)
        self._thread.join()
        os.close(self.done)

    def _run(self) -> None:
        while (call := self._calls.get()) is not None:
            try:
                self._result = call()
            except OSError as error:
                self._result = error
            os.eventfd_write(self.done, 1)


class Workers:
    """Two workers of one daemon, and two others who are none: one as root, one without rights."""

    def __init__(self) -> None:
        self.workers = [Volley(_registered(), forced=True) for _ in range(2)]
        self.others = [Volley(Raw(), forced=True), Volley(_unprivileged(), forced=True)]
        # Request to command, worker and socket; socket to worker.
        self.pending: dict[int, tuple[Command, Volley, int]] = {}
        self.owners: dict[int, Volley] = {}
        self.answered: deque[int] = deque(maxlen=3)
        self.closed: deque[int] = deque(maxlen=3)
        # What requests were, and were answered.
        self.errors: dict[int, tuple[Command, int]] = {}
        self.received: list[int] = []  # descriptors
        self._news: deque[int] = deque()  # requests

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.drop_received()
        for volley in (*self.workers, *self.others):
            volley.raw.socket.close()

    @property
    def senders(self) -> Sequence[Volley]:
        """All who can send, workers first."""
        return (*self.workers, *self.others)

    def targets(self, descriptors: Sequence[int]) -> Targets:
        """Return what there is to aim at, of now and of before."""
        return Targets(
            [*self.pending, *self.answered],
            [*self.owners, *self.closed],
            [*descriptors, *self.received],
        )

    def take_in(self) -> None:
        """Take what the module has sent."""
        for worker in self.workers:
            worker.poll()
            for command, carried in worker.unasked:
                self._note(worker, Command(command), carried)
            worker.unasked.clear()

    def _note(self, worker: Volley, command: Command, carried: dict[int, bytes]) -> None:
        (sock,) = struct.unpack("=Q", carried[Attribute.SOCKET])
        if command == Command.CLOSE:
            self.owners.pop(sock, None)
            self.closed.append(sock)
        elif Attribute.REQUEST in carried:
            (request,) = struct.unpack("=I", carried[Attribute.REQUEST])
            assert request not in self.pending, f"request {request} came twice"
            self.pending[request] = (command, worker, sock)
            self.owners[sock] = worker
            self._news.append(request)

    def fire(self, sender: Volley, volley: Sequence[Message]) -> None:
        """Send messages, and check that nothing was taken from one who had no right to say it."""
        for verdict in sender.fire(volley):
            if verdict.error == 0 and not verdict.message.idle:
                self._taken(sender, verdict)
        self.take_in()

    def _taken(self, sender: Volley, verdict: Verdict) -> None:
        message = verdict.message
        if message.command not in WORKERS_OWN:
            return
        assert sender in self.workers, f"taken of one who is no worker: {message.story}"
        if message.command in (Command.COMPLETE, Command.ENDPOINT):
            assert message.request in self.pending, f"taken for no request: {message.story}"
            assert self.pending[message.request][1] is sender, f"another's: {message.story}"
        else:
            assert message.socket is not None, f"taken for no socket: {message.story}"
            assert self.owners[message.socket] is sender, f"another's socket: {message.story}"
        if message.command == Command.COMPLETE:
            assert message.request is not None
            self._completed(message.request, message.error)
        elif message.command == Command.ENDPOINT:
            (reply,) = verdict.replies
            self.received.append(int(struct.unpack("=i", reply[Attribute.FD])[0]))
        elif message.command == Command.ACCEPTED and not message.error:
            (reply,) = verdict.replies
            self.owners[int(struct.unpack("=Q", reply[Attribute.SOCKET])[0])] = sender

    def _completed(self, request: int, error: int) -> None:
        command, _, _ = self.pending.pop(request)
        self.errors[request] = (command, error)
        self.answered.append(request)

    def complete(self, request: int, *more: bytes, error: int = 0) -> int:
        """Answer a request as its worker should. Return the kernel's errno."""
        body = u32(Attribute.REQUEST, request) + u32(Attribute.ERROR, error) + b"".join(more)
        worker = self.pending[request][1]
        found = worker.ask(Command.COMPLETE, body)
        self._completed(request, error)
        self.take_in()
        return found.error

    def connect(self, request: int) -> socket.socket:
        """Complete a connect with a channel, and return the worker's end of it."""
        ours, theirs = socket.socketpair()
        with theirs:
            channel = u32(Attribute.TRANSPORT, Transport.CHANNEL)
            fd = u32(Attribute.FD, theirs.fileno())
            assert self.complete(request, channel, fd, FACTS) == 0
        return ours

    def endpoint(self, request: int) -> socket.socket:
        """Get the endpoint of a request."""
        found = self.pending[request][1].ask(Command.ENDPOINT, u32(Attribute.REQUEST, request))
        assert found.error == 0, found.error
        return socket.socket(fileno=struct.unpack("=i", found.replies[0][Attribute.FD])[0])

    def await_request(self, program: Program) -> int | None:
        """Wait for the next request of the module, or the end of the program's call: then None."""
        ends = [worker.raw.socket.fileno() for worker in self.workers]
        while True:
            self.take_in()
            if self._news:
                return self._news.popleft()
            ready = select.select([*ends, program.done], [], [], DEADLINE)[0]
            assert ready, "neither a request nor the end of the call came"
            if ready == [program.done]:
                return None

    def drop_received(self) -> None:
        """Close the endpoints that messages asked for."""
        for descriptor in self.received:
            os.close(descriptor)
        self.received.clear()


def _registered() -> Raw:
    raw = Raw()
    answer = raw.request(Command.REGISTER, MAIN)
    assert answer.error == 0, str(answer)
    return raw


def _unprivileged() -> Raw:
    """Have a process without rights open a netlink socket, and take it over."""
    ours, theirs = socket.socketpair()

    def hand_over() -> None:
        with Raw() as raw:
            socket.send_fds(theirs, [b"."], [raw.socket.fileno()])

    with ours, theirs:
        child = start_child(hand_over, user=NOBODY)
        _, (descriptor,), _, _ = socket.recv_fds(ours, 1, 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    raw = Raw()
    raw.socket.close()
    raw.socket = socket.socket(fileno=descriptor)
    return raw


@contextmanager
def zoo(volleys: Sequence[Volley]) -> Iterator[list[int]]:
    """Have descriptors of every kind, and numbers that are none."""
    with ExitStack() as stack:

        def held(*kind: int) -> socket.socket:
            return stack.enter_context(socket.socket(*kind))

        def closing(descriptor: int) -> int:
            stack.callback(os.close, descriptor)
            return descriptor

        pairs = [
            stack.enter_context(one)
            for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_SEQPACKET)
            for one in socket.socketpair(socket.AF_UNIX, kind)
        ]
        tcp = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        client = stack.enter_context(socket.create_connection(tcp.getsockname()))
        accepted = stack.enter_context(tcp.accept()[0])
        unix = held(socket.AF_UNIX)
        unix.bind("")  # an abstract address of the kernel's choice
        unix.listen()
        stack.callback(os.close, (ends := os.pipe())[0])
        stack.callback(os.close, ends[1])
        with suppress(OSError):
            pairs.append(held(socket.AF_INET6, socket.SOCK_STREAM))
        gone = os.dup(0)
        os.close(gone)
        yield [
            *(pair.fileno() for pair in pairs),
            *(tcp.fileno(), client.fileno(), accepted.fileno(), unix.fileno(), *ends),
            held(socket.AF_INET, socket.SOCK_STREAM).fileno(),
            held(socket.AF_INET, socket.SOCK_DGRAM).fileno(),
            held(socket.AF_UNIX, socket.SOCK_STREAM).fileno(),
            *(volley.raw.socket.fileno() for volley in volleys),
            closing(os.open("/dev/null", os.O_RDWR)),
            closing(os.open("/", os.O_RDONLY)),
            closing(os.open("/dev/null", os.O_PATH)),
            closing(os.memfd_create("file")),
            closing(os.eventfd(0)),
            closing(os.pidfd_open(os.getpid())),
            stack.enter_context(select.epoll()).fileno(),
            *(gone, 1_000_000, 0x7FFFFFFF),
        ]
