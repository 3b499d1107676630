# SPDX-License-Identifier: BSD-3-Clause
"""Workers of the test's own, so that their steps are exact: what one is asked, and what it says.

One of them ends at a certain step: it dies, as the module sees a SIGKILL, or leaves in order.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import struct
import threading
import traceback
from contextlib import ExitStack, suppress
from typing import Literal

from ssad import ktls
from ssad.keys import Aead, KernelKeys, TrafficKey
from ssad.policy import TLS_1_2, TLS_1_3
from ssad.wire import Attribute, Command, Transport
from tests.system.daemon import SLOWNESS, await_condition
from tests.system.netlink import Raw, attributes, string, u32, u64
from tests.system.netlink import attribute as value_of

# Seconds. Far less than the module's own time-outs, so that it must be the end that ends a call.
SOON = 8.0 * SLOWNESS

LOOPBACK = "127.0.0.1"
MAIN = u32(Attribute.DAEMON, os.getpid())
FACTS = u32(Attribute.VERSION, TLS_1_3) + string(Attribute.CIPHER, "TLS_AES_128_GCM_SHA256")

# The same for both directions: it is nobody's secret.
_KEY = TrafficKey(bytes(16), bytes(12), 0)
KEYS = KernelKeys(TLS_1_2, Aead.AES_128_GCM, _KEY, _KEY)

How = Literal["dies", "leaves"]


class Ended(Exception):
    """The worker is to end here."""


class Staff:
    """So many workers, of which the first that comes to a certain step ends: the step of this
    index, or one of this name."""

    def __init__(self, count: int, how: How = "dies", end_at: int | str | None = None) -> None:
        self._lock = threading.Lock()
        self._how = how
        self._end_at = end_at
        self._steps = 0
        self.ended: str | None = None  # at which step one did
        self._threads: list[threading.Thread] = []
        self._workers: list[Worker] = []
        self._errors: list[BaseException] = []
        for _ in range(count):
            self.hire()

    def stay(self) -> str | None:
        """Let nobody end from now on. Returns the step at which one did."""
        with self._lock:
            self._end_at = None
            return self.ended

    def end_at(self, step: str) -> None:
        """Let the next one that comes to a step of this name end, and wait until it has."""
        with self._lock:
            self._end_at, self.ended = step, None
        await_condition(f"one ends that {step}", lambda: self.ended == step)

    def hire(self) -> None:
        """Let another one register and work."""
        worker = Worker(self)
        self._workers.append(worker)
        self._threads.append(threading.Thread(target=self._run, args=[worker]))
        self._threads[-1].start()

    def step(self, worker: Worker, what: str) -> None:
        """A worker is about to do something, or has done it."""
        # To the end: nobody is hired when stay() has returned, or dismiss() would miss that one.
        with self._lock:
            self._steps += 1
            if self._end_at not in (self._steps - 1, what):
                return
            self._end_at, self.ended = None, what
            if self._how == "dies":
                worker.close()
                self.hire()
                raise Ended
            self.hire()
            worker.leave()

    def _run(self, worker: Worker) -> None:
        try:
            worker.run()
        except Ended:
            pass
        except BaseException as error:  # noqa: BLE001 -- for the test to raise
            self._errors.append(error)
        finally:
            worker.close()

    def dismiss(self) -> None:
        """End all."""
        self.stay()
        for worker in list(self._workers):
            worker.stop()
        for thread in list(self._threads):
            thread.join(SOON)
            assert not thread.is_alive()
        assert not self._errors, "".join(
            line for error in self._errors for line in traceback.format_exception(error)
        )


class Worker:
    """A worker that does what it is asked; its connections are kernel TLS of known keys, or
    channels at whose other end nobody is."""

    def __init__(self, staff: Staff) -> None:
        self._staff = staff
        self._raw = Raw()
        answer = self._raw.request(Command.REGISTER, MAIN)
        assert answer.error == 0, str(answer)
        self._wake, self._woken = socket.socketpair()
        self._held = ExitStack()
        self._listening: dict[int, socket.socket] = {}
        self._leaving = False

    def stop(self) -> None:
        """Let it end."""
        with suppress(OSError):
            self._woken.send(b"x")

    def close(self) -> None:
        """All its files are closed, as when its process is killed; the netlink socket first."""
        self._raw.socket.close()
        self._held.close()
        for held in (self._wake, self._woken, *self._listening.values()):
            held.close()

    def leave(self) -> None:
        """Begin to leave: others are there."""
        self._leaving = True
        self._owed()

    def _owed(self) -> int:
        answer = self._raw.request(Command.LEAVE)
        assert answer.error == 0, str(answer)
        for listener in self._listening.values():
            listener.close()
        self._listening.clear()
        return number_in(dict(attributes(answer.replies[0][1])), Attribute.PENDING)

    def run(self) -> None:
        """Work until stop(), or until it may leave."""
        while True:
            files = [self._raw.socket, self._wake, *self._listening.values()]
            patience = 0.02 if self._leaving else None
            ready = select.select(files, [], [], 0 if self._raw.has_unasked else patience)[0]
            if self._wake in ready:
                return
            for socket_id in list(self._listening):
                listener = self._listening.get(socket_id)  # of those that a step has not ended
                if listener in ready:
                    self._accept(socket_id, listener)
            if self._raw.has_unasked or self._raw.socket in ready:
                self._handle(*self._raw.unasked())
            elif self._leaving and not ready and self._owed() == 0:
                return

    def _handle(self, number: int, asked: dict[int, bytes]) -> None:
        command = Command(number)
        self._staff.step(self, f"is asked {command.name}")
        request = asked.get(Attribute.REQUEST, b"")
        match command:
            case Command.CLOSE:
                listener = self._listening.pop(
                    struct.unpack("=Q", asked[Attribute.SOCKET])[0], None
                )
                if listener is not None:
                    listener.close()
            case Command.CONNECT:
                self._connect(request, asked)
            case Command.LISTEN:
                self._listen(request, struct.unpack("=Q", asked[Attribute.SOCKET])[0])
            case Command.GETSOCKOPT:
                value = value_of(Attribute.VALUE, struct.pack("=I", TLS_1_3))
                self._complete(command, request, value)
            case _:
                if request:
                    self._complete(command, request)

    def _complete(self, command: Command, request: bytes, *more: bytes) -> None:
        body = value_of(Attribute.REQUEST, request) + u32(Attribute.ERROR, 0) + b"".join(more)
        answer = self._raw.request(Command.COMPLETE, body)
        assert answer.error in (0, errno.ENOENT), str(answer)
        self._staff.step(self, f"has completed {command.name}")

    def _endpoint(self, command: Command, request: bytes, index: int = 0) -> socket.socket | None:
        """Get an endpoint of a request, unless the program has given up."""
        body = value_of(Attribute.REQUEST, request) + u32(Attribute.ENDPOINT, index)
        answer = self._raw.request(Command.ENDPOINT, body)
        if answer.error == errno.ENOENT:
            return None
        assert answer.error == 0, str(answer)
        found = number_in(dict(attributes(answer.replies[0][1])), Attribute.FD)
        endpoint = self._held.enter_context(socket.socket(fileno=found))
        self._staff.step(self, f"has the endpoint of {command.name}")
        return endpoint

    def _transport(self, endpoint: socket.socket, port: int) -> bytes:
        if port in KTLS_PORTS:
            ktls.install(endpoint, KEYS)
            return u32(Attribute.TRANSPORT, Transport.KTLS) + FACTS
        _ours, theirs = (self._held.enter_context(end) for end in socket.socketpair())
        return (
            u32(Attribute.TRANSPORT, Transport.CHANNEL) + u32(Attribute.FD, theirs.fileno()) + FACTS
        )

    def _connect(self, request: bytes, asked: dict[int, bytes]) -> None:
        # A connect to a name has several, of which the last is as good as any.
        index = number_in(asked, Attribute.ENDPOINTS) - 1 if Attribute.ENDPOINTS in asked else 0
        endpoint = self._endpoint(Command.CONNECT, request, index)
        if endpoint is None:
            return
        if Attribute.HOST_NAME in asked:
            endpoint.settimeout(0)
            with suppress(BlockingIOError):
                endpoint.connect((LOOPBACK, number_in(asked, Attribute.PORT)))
        assert select.select([], [endpoint], [], SOON)[1]
        transport = self._transport(endpoint, endpoint.getpeername()[1])
        self._complete(Command.CONNECT, request, u32(Attribute.ENDPOINT, index), transport)
        endpoint.close()

    def _listen(self, request: bytes, socket_id: int) -> None:
        endpoint = self._endpoint(Command.LISTEN, request)
        if endpoint is None:
            return
        listener = socket.socket(fileno=endpoint.detach())
        listener.settimeout(0)
        # Before it is completed: who leaves in between has to stop accepting.
        self._listening[socket_id] = listener
        self._complete(Command.LISTEN, request)

    def _accept(self, socket_id: int, listener: socket.socket) -> None:
        try:
            endpoint, _ = listener.accept()
        except BlockingIOError:  # another one was faster
            return
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            self._listening.pop(socket_id).close()  # the program has closed its own
            return
        with endpoint:
            self._staff.step(self, "has accepted")
            body = u64(Attribute.SOCKET, socket_id) + u32(Attribute.ERROR, 0)
            fd = u32(Attribute.ENDPOINT_FD, endpoint.fileno())
            transport = self._transport(endpoint, endpoint.getsockname()[1])
            answer = self._raw.request(Command.ACCEPTED, body + fd + transport)
            assert answer.error in (0, errno.ENOENT), str(answer)
        self._staff.step(self, "has brought it")


# What listens here now has connections that get kernel TLS.
KTLS_PORTS: set[int] = set()


def number_in(carried: dict[int, bytes], number: Attribute) -> int:
    """Return an attribute's 32-bit number."""
    return int(struct.unpack("=I", carried[number])[0])
