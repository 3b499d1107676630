# SPDX-License-Identifier: BSD-3-Clause
"""Plays the module's part: real netlink messages over socket pairs, one for each link.

Processes that are forked later can connect to it as well: a link's pair is made where it is asked
for, and the kernel's end is sent here.
"""

from __future__ import annotations

import errno
import itertools
import queue
import selectors
import socket
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from socket import socket as Socket  # noqa: N812 - the name is a method's, too
from typing import Self

from ssad.link import Link
from ssad.wire import Attributes, Command, decode, encode

FAMILY = 31
EVENTS_GROUP = 7

_HEADER = struct.Struct("=IHHII")
_ATTRIBUTE = struct.Struct("=HH")
_ERROR = 2
_DONE = 3
_CTRL = 16
_DUMP = 0x300
_MULTI = 0x002
_CAPPED = 0x100
_ACK_TLVS = 0x200
_UCRED = struct.Struct("=iII")  # struct ucred: pid, uid, gid
_PATIENCE = 20.0


def attribute(number: int, payload: bytes) -> bytes:
    """Pack a netlink attribute."""
    padding = b"\0" * (-len(payload) % 4)
    return _ATTRIBUTE.pack(_ATTRIBUTE.size + len(payload), number) + payload + padding


def message(kind: int, flags: int, sequence: int, payload: bytes) -> bytes:
    """Pack a netlink message."""
    header = _HEADER.pack(_HEADER.size + len(payload), kind, flags, sequence, 0)
    return header + payload + b"\0" * (-len(payload) % 4)


class Refusal(Exception):
    """What a handler raises to refuse a request."""

    def __init__(self, number: int, text: str = "") -> None:
        super().__init__(number, text)
        self.number = number
        self.text = text


Handler = Callable[[Attributes], Attributes]


@dataclass
class Kernel:
    """Acknowledges every request; `handlers` give replies or refuse, `dumps` list objects.

    Workers that register are listed, and those of a second daemon refused, unless told otherwise.
    """

    handlers: dict[Command, Handler] = field(default_factory=dict)
    dumps: dict[Command, list[Attributes]] = field(default_factory=dict)
    has_family: bool = True

    def __enter__(self) -> Self:
        self._door, self._door_outside = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._asked: queue.Queue[tuple[Command, Attributes]] = queue.Queue()
        self._requests = itertools.count(1)
        self._links: list[Link] = []
        self._peers: list[Socket] = []  # the kernel's ends
        self._workers: dict[Socket, Attributes] = {}
        self._thread = threading.Thread(target=self._work)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._door_outside.shutdown(socket.SHUT_RDWR)
        self._thread.join(_PATIENCE)
        for link in self._links:
            link.close()
        for peer in [*self._peers, self._door, self._door_outside]:
            peer.close()

    def hang_up(self) -> None:
        """End all connections."""
        for peer in self._peers:
            peer.shutdown(socket.SHUT_RDWR)

    def socket(self) -> Socket:
        """Connect; return the daemon's side."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours:
            socket.send_fds(self._door_outside, [b"link"], [ours.fileno()])
        return theirs

    def link(self) -> Link:
        """Connect to it; the link is closed in the end."""
        link = Link(self.socket())
        self._links.append(link)
        return link

    def tell(self, command: Command, attributes: Attributes) -> None:
        """Send the newest link a message that nobody asked for."""
        self.tell_raw(encode(command, attributes))

    def tell_raw(self, payload: bytes) -> None:
        """Send the newest link any bytes as a message that nobody asked for."""
        self._peers[-1].send(message(FAMILY, 0, 0, payload))

    def new_request(self) -> int:
        """Return an id for a request to the worker."""
        return next(self._requests)

    def next(self) -> tuple[Command, Attributes]:
        """Return the next request of the daemon, which has been answered already."""
        return self._asked.get(timeout=_PATIENCE)

    def next_of(self, command: Command) -> Attributes:
        """Return the next request of this kind; others before it are passed over."""
        while True:
            found, attributes = self.next()
            if found is command:
                return attributes

    def workers(self) -> list[Attributes]:
        """Return what is registered."""
        return [*self._workers.values()]

    def _work(self) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._door, selectors.EVENT_READ)
            while True:
                for key, _ in selector.select():
                    peer = key.fileobj
                    assert isinstance(peer, socket.socket)
                    if peer is not self._door:
                        if not self._serve(peer):
                            selector.unregister(peer)
                        continue
                    data, (*found,), _, _ = socket.recv_fds(self._door, 16, 1)
                    if not data:
                        return
                    peer = socket.socket(fileno=found[0])
                    self._peers.append(peer)
                    selector.register(peer, selectors.EVENT_READ)

    def _serve(self, peer: Socket) -> bool:
        """Answer one message. False if the other side has hung up."""
        try:
            data = peer.recv(1 << 18)
            if data:
                self._answer_any(peer, data)
                return True
        except (ConnectionResetError, BrokenPipeError):
            pass  # who has asked is gone
        self._workers.pop(peer, None)
        return False

    def _answer_any(self, peer: Socket, data: bytes) -> None:
        _, kind, flags, sequence, _ = _HEADER.unpack_from(data)
        payload = data[_HEADER.size :]
        if kind == _CTRL:
            self._answer_control(peer, sequence, data)
        elif flags & _DUMP == _DUMP:
            self._answer_dump(peer, sequence, *decode(payload))
        else:
            self._answer(peer, sequence, data, *decode(payload))

    def _register(self, peer: Socket, asked: Attributes) -> None:
        daemon = asked.get("daemon", 0)
        if any(other["daemon"] != daemon for other in self._workers.values()):
            raise Refusal(errno.EBUSY, "a daemon is registered already")
        # Who has made the pair of sockets (unix(7)).
        credentials = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
        pid = _UCRED.unpack(credentials)[0]
        self._workers[peer] = {"pid": pid, "pending": 0, "daemon": daemon, "sockets": 0}

    def _answer_control(self, peer: Socket, sequence: int, request: bytes) -> None:
        if not self.has_family:
            self._acknowledge(peer, sequence, request, 2, "")
            return
        group = attribute(1, b"events\0") + attribute(2, struct.pack("=I", EVENTS_GROUP))
        payload = struct.pack("=BBH", 1, 2, 0) + b"".join(
            [
                attribute(2, b"ssa\0"),
                attribute(1, struct.pack("=H", FAMILY)),
                attribute(7, attribute(1, group)),
            ]
        )
        peer.send(message(_CTRL, 0, sequence, payload))
        self._acknowledge(peer, sequence, request, 0, "")

    def _answer_dump(self, peer: Socket, sequence: int, command: Command, _: Attributes) -> None:
        objects = self.dumps.get(command, [])
        if command is Command.WORKER_GET and command not in self.dumps:
            objects = self.workers()
        found = [encode(command, attributes) for attributes in objects]
        parts = [message(FAMILY, _MULTI, sequence, payload) for payload in found]
        parts.append(message(_DONE, _MULTI, sequence, struct.pack("=i", 0)))
        peer.send(b"".join(parts))

    def _answer(
        self,
        peer: Socket,
        sequence: int,
        request: bytes,
        command: Command,
        attributes: Attributes,
    ) -> None:
        number, text = 0, ""
        try:
            handler = self.handlers.get(command)
            if handler is not None and (reply := handler(attributes)):
                peer.send(message(FAMILY, 0, sequence, encode(command, reply)))
            if handler is None and command is Command.REGISTER:
                self._register(peer, attributes)
            if handler is None and command is Command.LEAVE:
                reply = {"pending": 0}
                peer.send(message(FAMILY, 0, sequence, encode(command, reply)))
        except Refusal as refusal:
            number, text = refusal.number, refusal.text
        self._asked.put((command, attributes))
        self._acknowledge(peer, sequence, request, number, text)

    def _acknowledge(
        self, peer: Socket, sequence: int, request: bytes, number: int, text: str
    ) -> None:
        payload = struct.pack("=i", -number) + request[: _HEADER.size]
        flags = _CAPPED
        if text:
            flags |= _ACK_TLVS
            payload += attribute(1, text.encode() + b"\0")
        peer.send(message(_ERROR, flags, sequence, payload))
