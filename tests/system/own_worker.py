# SPDX-License-Identifier: BSD-3-Clause
"""A worker in the place of the daemon, which does no handshake: both ends of a connection get keys
that the test has made up. So a connection costs milliseconds, and the peer can send any record."""

from __future__ import annotations

import os
import select
import socket
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from ssad import ktls
from ssad.keys import Aead, KernelKeys, TrafficKey
from ssad.link import Link
from ssad.wire import Attributes, Command, Transport
from tests.peers.sealer import Sealer
from tests.system.daemon import await_condition
from tests.system.program import tls_socket
from tests.system.tcp import LOOPBACK

if TYPE_CHECKING:
    from tests.peers.sealer import Cipher
    from tests.peers.servers import Version

VERSIONS = {"TLSv1.2": 0x0303, "TLSv1.3": 0x0304}

# Tickets that the worker wants of each connection.
TICKETS_WANTED = 4


@dataclass(frozen=True, slots=True)
class Ends:
    """A connection over kernel TLS: the program's TLS socket and its peer's TCP socket."""

    program: socket.socket
    peer: socket.socket
    sending: Sealer  # the peer's
    receiving: Sealer

    def close(self) -> None:
        """Close both."""
        self.program.close()
        self.peer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class OwnWorker:
    """The only worker, which runs in a thread until the end of a with statement."""

    def __init__(self) -> None:
        self.tickets: list[bytes] = []  # what the module has passed on
        self._keys: KernelKeys | None = None  # of the next connection
        self._listening: dict[socket.socket, int] = {}

    def __enter__(self) -> Self:
        self._end = os.eventfd(0)
        self._link = Link()
        self._link.request(Command.REGISTER, {"daemon": os.getpid()})
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        self._peers = socket.create_server((LOOPBACK, 0), backlog=128)
        return self

    def __exit__(self, *_: object) -> None:
        os.eventfd_write(self._end, 1)
        self._thread.join()
        self._peers.close()
        for endpoint in self._listening:
            endpoint.close()
        self._link.close()
        os.close(self._end)

    def connected(self, version: Version, cipher: Cipher) -> Ends:
        """Connect a TLS socket."""
        sending, receiving = self._make_keys(version, cipher)
        program = tls_socket(host=None)
        try:
            program.connect(self._peers.getsockname())
            return Ends(program, self._peers.accept()[0], sending, receiving)
        except BaseException:
            program.close()
            raise

    def listener(self) -> socket.socket:
        """Have a TLS socket listen."""
        made = tls_socket(host=None)
        try:
            made.bind((LOOPBACK, 0))
            made.listen()
        except BaseException:
            made.close()
            raise
        return made

    def accepted(self, listener: socket.socket, version: Version, cipher: Cipher) -> Ends:
        """Connect to a listener, and have it accept."""
        sending, receiving = self._make_keys(version, cipher)
        peer = socket.create_connection(listener.getsockname())
        try:
            return Ends(listener.accept()[0], peer, sending, receiving)
        except BaseException:
            peer.close()
            raise

    def await_tickets(self, count: int) -> None:
        """Wait until the module has passed on so many."""
        await_condition(f"{count} tickets came", lambda: len(self.tickets) >= count)

    def _make_keys(self, version: Version, cipher: Cipher) -> tuple[Sealer, Sealer]:
        sending = Sealer.random(version, cipher)
        receiving = Sealer.random(version, cipher)
        aead = next(one for one in Aead if one.value[0] == cipher)
        self._keys = KernelKeys(
            VERSIONS[version],
            aead,
            send=TrafficKey(receiving.key, receiving.nonce, 0),
            receive=TrafficKey(sending.key, sending.nonce, 0),
        )
        return sending, receiving

    def _run(self) -> None:
        while True:
            if not self._link.has_messages:
                endpoints = {endpoint.fileno(): endpoint for endpoint in self._listening}
                ready = select.select([self._end, self._link.fileno(), *endpoints], [], [])[0]
                if self._end in ready:
                    return
                for number in set(ready) & set(endpoints):
                    self._accept(endpoints[number])
            message = self._link.receive(wait=False)
            if message is not None:
                self._handle(message.command, message.attributes)

    def _handle(self, command: Command, asked: Attributes) -> None:
        if command is Command.TICKET:
            self.tickets.append(asked["value"])
        elif command is Command.CLOSE:
            self._forget(asked["socket"])
        elif "request" in asked:
            answer: Attributes = {"request": asked["request"], "error": 0}
            if command is Command.CONNECT:
                with self._endpoint(asked) as endpoint:
                    answer |= self._install(endpoint)
                answer["tickets"] = TICKETS_WANTED
            elif command is Command.LISTEN:
                endpoint = self._endpoint(asked)
                self._listening[endpoint] = asked["socket"]
            self._link.request(Command.COMPLETE, answer)

    def _endpoint(self, asked: Attributes) -> socket.socket:
        reply = self._link.request(Command.ENDPOINT, {"request": asked["request"]})
        return socket.socket(fileno=reply["fd"])

    def _install(self, endpoint: socket.socket) -> Attributes:
        assert self._keys is not None
        # The module has only begun to connect it.
        select.select([], [endpoint], [])
        ktls.install(endpoint, self._keys)
        return {
            "transport": Transport.KTLS,
            "version": self._keys.version,
            "cipher": self._keys.aead.value[0],
        }

    def _accept(self, endpoint: socket.socket) -> None:
        try:
            connection, _ = endpoint.accept()
        except OSError:  # the listener was closed, and the word of it is on its way
            self._forget(self._listening[endpoint])
            return
        with connection:
            answer: Attributes = {
                "socket": self._listening[endpoint],
                "error": 0,
                "endpoint_fd": connection.fileno(),
                **self._install(connection),
            }
            self._link.request(Command.ACCEPTED, answer)

    def _forget(self, number: int) -> None:
        for endpoint in [one for one, owner in self._listening.items() if owner == number]:
            del self._listening[endpoint]
            endpoint.close()
