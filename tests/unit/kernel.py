# SPDX-License-Identifier: BSD-3-Clause
"""Plays the module's part: real netlink messages over a socket pair."""

from __future__ import annotations

import itertools
import queue
import socket
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
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
    """Acknowledges every request; `handlers` give replies or refuse, `dumps` list objects."""

    handlers: dict[Command, Handler] = field(default_factory=dict)
    dumps: dict[Command, list[Attributes]] = field(default_factory=dict)
    has_family: bool = True

    def __enter__(self) -> Self:
        self._ours, self._theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._asked: queue.Queue[tuple[Command, Attributes]] = queue.Queue()
        self._requests = itertools.count(1)
        self._links: list[Link] = []
        self._thread = threading.Thread(target=self._work)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.hang_up()
        self._thread.join(_PATIENCE)
        for link in self._links:
            link.close()
        self._ours.close()
        self._theirs.close()

    def hang_up(self) -> None:
        """End the connection."""
        self._ours.shutdown(socket.SHUT_RDWR)

    def socket(self) -> socket.socket:
        """Return the daemon's side."""
        return self._theirs.dup()

    def link(self) -> Link:
        """Connect to it; the link is closed in the end."""
        link = Link(self.socket())
        self._links.append(link)
        return link

    def tell(self, command: Command, attributes: Attributes) -> None:
        """Send a message that nobody asked for."""
        self.tell_raw(encode(command, attributes))

    def tell_raw(self, payload: bytes) -> None:
        """Send any bytes as a message that nobody asked for."""
        self._ours.send(message(FAMILY, 0, 0, payload))

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

    def _work(self) -> None:
        while data := self._ours.recv(1 << 18):
            _, kind, flags, sequence, _ = _HEADER.unpack_from(data)
            payload = data[_HEADER.size :]
            if kind == _CTRL:
                self._answer_control(sequence, data)
            elif flags & _DUMP == _DUMP:
                self._answer_dump(sequence, *decode(payload))
            else:
                self._answer(sequence, data, *decode(payload))

    def _answer_control(self, sequence: int, request: bytes) -> None:
        if not self.has_family:
            self._acknowledge(sequence, request, 2, "")
            return
        group = attribute(1, b"events\0") + attribute(2, struct.pack("=I", EVENTS_GROUP))
        payload = struct.pack("=BBH", 1, 2, 0) + b"".join(
            [
                attribute(2, b"ssa\0"),
                attribute(1, struct.pack("=H", FAMILY)),
                attribute(7, attribute(1, group)),
            ]
        )
        self._ours.send(message(_CTRL, 0, sequence, payload))
        self._acknowledge(sequence, request, 0, "")

    def _answer_dump(self, sequence: int, command: Command, _: Attributes) -> None:
        found = [encode(command, attributes) for attributes in self.dumps.get(command, [])]
        parts = [message(FAMILY, _MULTI, sequence, payload) for payload in found]
        parts.append(message(_DONE, _MULTI, sequence, struct.pack("=i", 0)))
        self._ours.send(b"".join(parts))

    def _answer(
        self, sequence: int, request: bytes, command: Command, attributes: Attributes
    ) -> None:
        number, text = 0, ""
        try:
            handler = self.handlers.get(command)
            if handler is not None and (reply := handler(attributes)):
                self._ours.send(message(FAMILY, 0, sequence, encode(command, reply)))
        except Refusal as refusal:
            number, text = refusal.number, refusal.text
        self._asked.put((command, attributes))
        self._acknowledge(sequence, request, number, text)

    def _acknowledge(self, sequence: int, request: bytes, number: int, text: str) -> None:
        payload = struct.pack("=i", -number) + request[: _HEADER.size]
        flags = _CAPPED
        if text:
            flags |= _ACK_TLVS
            payload += attribute(1, text.encode() + b"\0")
        self._ours.send(message(_ERROR, flags, sequence, payload))
