# SPDX-License-Identifier: BSD-3-Clause
"""Raw messages to the netlink family, right or wrong, byte by byte.

It shares no code with the daemon's netlink shell, so that both are not wrong in the same way.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections import deque
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from ssad.wire import FAMILY_NAME, FAMILY_VERSION, Attribute, Command

NETLINK_GENERIC = 16
SOL_NETLINK = 270
NETLINK_EXT_ACK = 11
NETLINK_CAP_ACK = 10

NLM_F_REQUEST = 0x1
NLM_F_ACK = 0x4
NLM_F_DUMP = 0x300
NLM_F_ACK_TLVS = 0x200

NLMSG_ERROR = 2
NLMSG_DONE = 3

GENL_ID_CTRL = 16
CTRL_CMD_GETFAMILY = 3
CTRL_ATTR_FAMILY_ID = 1
CTRL_ATTR_FAMILY_NAME = 2

NLMSGERR_ATTR_MSG = 1


@dataclass(frozen=True, slots=True)
class Answer:
    """What the kernel said to a request: 0 or a positive errno, its text, and the replies."""

    error: int
    text: str
    replies: tuple[tuple[int, bytes], ...]  # command and attributes

    def __str__(self) -> str:
        name = errno.errorcode.get(self.error, "0")
        return f"{name} ({self.text or 'no text'})"


class Raw:
    """A netlink socket that talks to the family."""

    def __init__(self) -> None:
        self.socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_GENERIC)
        self.socket.setsockopt(SOL_NETLINK, NETLINK_EXT_ACK, 1)
        self.socket.setsockopt(SOL_NETLINK, NETLINK_CAP_ACK, 1)
        self.socket.bind((0, 0))
        self.socket.settimeout(30)
        self._sequence = 0
        self._unasked: deque[bytes] = deque()  # that came before an answer
        name = attribute(CTRL_ATTR_FAMILY_NAME, FAMILY_NAME.encode() + b"\0")
        answer = self.send(GENL_ID_CTRL, struct.pack("=BBH", CTRL_CMD_GETFAMILY, 2, 0) + name)
        self.family = 0
        for number, value in attributes(answer.replies[0][1] if answer.replies else b""):
            if number == CTRL_ATTR_FAMILY_ID:
                self.family = int(struct.unpack("=H", value)[0])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.socket.close()

    def request(self, command: Command | int, body: bytes = b"", *, dump: bool = False) -> Answer:
        """Send a command of the family with `body` as its attributes."""
        header = struct.pack("=BBH", command, FAMILY_VERSION, 0)
        return self.send(self.family, header + body, NLM_F_DUMP if dump else NLM_F_ACK)

    def send(self, kind: int, payload: bytes, flags: int = NLM_F_ACK) -> Answer:
        """Send a netlink message and wait for the end of its answer."""
        self._sequence += 1
        head = struct.pack(
            "=IHHII", 16 + len(payload), kind, NLM_F_REQUEST | flags, self._sequence, 0
        )
        self.socket.send(head + payload)
        replies: list[tuple[int, bytes]] = []
        while True:
            datagram = self.socket.recv(1 << 16)
            for kind_, flags_, sequence, body in messages(datagram):
                if sequence == 0:
                    self._unasked.append(body)
                if sequence != self._sequence:
                    continue
                if kind_ in (NLMSG_ERROR, NLMSG_DONE):
                    error = -int(struct.unpack_from("=i", body)[0])
                    return Answer(error, _text(kind_, flags_, body), tuple(replies))
                replies.append((body[0], body[4:]))

    @property
    def has_unasked(self) -> bool:
        """Something that the kernel sent unasked came while an answer was read."""
        return bool(self._unasked)

    def unasked(self) -> tuple[int, dict[int, bytes]]:
        """Wait for a message that the kernel sends unasked: its command and attributes."""
        if self._unasked:
            body = self._unasked.popleft()
        else:
            ((_, _, _, body),) = messages(self.socket.recv(1 << 16))
        return body[0], dict(attributes(body[4:]))


def attribute(number: Attribute | int, value: bytes) -> bytes:
    """Return an attribute, padded."""
    return struct.pack("=HH", 4 + len(value), number) + value + b"\0" * (-len(value) % 4)


def u32(number: Attribute | int, value: int) -> bytes:
    """Return an attribute that holds a 32-bit number."""
    return attribute(number, struct.pack("=I", value & 0xFFFFFFFF))


def u64(number: Attribute | int, value: int) -> bytes:
    """Return an attribute that holds a 64-bit number."""
    return attribute(number, struct.pack("=Q", value))


def string(number: Attribute | int, value: str) -> bytes:
    """Return an attribute that holds a string."""
    return attribute(number, value.encode() + b"\0")


def attributes(data: bytes) -> list[tuple[int, bytes]]:
    """Take attributes apart."""
    found = []
    while data:
        length, number = struct.unpack_from("=HH", data)
        found.append((number & 0x3FFF, data[4:length]))
        data = data[(length + 3) & ~3 :]
    return found


def messages(datagram: bytes) -> list[tuple[int, int, int, bytes]]:
    """Take netlink messages apart: type, flags, sequence number, payload."""
    found = []
    while datagram:
        length, kind, flags, sequence, _port = struct.unpack_from("=IHHII", datagram)
        found.append((kind, flags, sequence, datagram[16:length]))
        datagram = datagram[(length + 3) & ~3 :]
    return found


def _text(kind: int, flags: int, body: bytes) -> str:
    if not flags & NLM_F_ACK_TLVS:
        return ""
    # After an error comes the header of the request, capped (NETLINK_CAP_ACK).
    found = dict(attributes(body[20:] if kind == NLMSG_ERROR else body[4:]))
    return found.get(NLMSGERR_ATTR_MSG, b"").rstrip(b"\0").decode()
