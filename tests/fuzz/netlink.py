# SPDX-License-Identifier: BSD-3-Clause
"""Netlink messages made from the contract, then broken.

A message is drawn as the contract allows it, with numbers that mean something at the time (of
requests, sockets and descriptors), and then mutated. Each knows what the kernel may answer: one
that the contract forbids must be refused, whoever sends it.
"""

from __future__ import annotations

import errno
import random
import struct
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import spec
from spec import Kind

from ssad.wire import Attribute, Command
from tests.system.netlink import (
    NLM_F_ACK,
    NLM_F_DUMP,
    NLM_F_REQUEST,
    NLMSG_DONE,
    NLMSG_ERROR,
    Raw,
    attributes,
    messages,
)

NLA_F_NESTED = 0x8000
NLA_F_NET_BYTEORDER = 0x4000
NLMSG_MIN_TYPE = 16

SOL_SOCKET = 1
SO_SNDBUFFORCE = 32
SO_RCVBUFFORCE = 33
SO_RCVBUF = 8

CONTRACT: Final = spec.load(Path(spec.__file__).with_name("ssa.yaml"))
_ASKED: Final = tuple(one for one in CONTRACT.operations if one.event is None)
_NUMBERS: Final = tuple(attribute.number for attribute in CONTRACT.attributes)
_UNKNOWN: Final = 1 + max(one.number for one in CONTRACT.operations)

# What changes something, and is for workers only.
WORKERS_OWN: Final = frozenset(
    (
        *(Command.ENDPOINT, Command.COMPLETE, Command.END_OF_STREAM, Command.ACCEPTED),
        Command.LEAVE,
    )
)

# The errnos of a message that the contract forbids: it is refused before code of ours runs.
_ANY_ERRNO: Final = frozenset(range(4096))
FORBIDDEN: Final = frozenset((errno.EINVAL, errno.ERANGE, errno.EOPNOTSUPP))

# The errnos of messages that the contract allows, right or wrong at the time.
DOCUMENTED: Final = {
    Command.REGISTER: {errno.EBUSY, errno.EINVAL, errno.EPERM},
    Command.ENDPOINT: {0, errno.EINVAL, errno.ENOENT, errno.EPERM},
    # EADDRINUSE is TCP's answer to a listen.
    Command.COMPLETE: {
        *(0, errno.EINVAL, errno.ENOENT, errno.EPERM, errno.EBADF, errno.EMSGSIZE),
        errno.EADDRINUSE,
    },
    Command.END_OF_STREAM: {0, errno.EINVAL, errno.ENOENT, errno.EPERM},
    Command.LEAVE: {0, errno.EBUSY, errno.EPERM},
    Command.MODULE_GET: {0},
    # A dump that was asked for before is still under way.
    Command.WORKER_GET: {0, errno.EBUSY},
    Command.SOCKET_GET: {0, errno.EBUSY},
    Command.ACCEPTED: {
        *(0, errno.EINVAL, errno.ENOENT, errno.EPERM, errno.EBADF, errno.EMSGSIZE),
        errno.ECONNABORTED,
    },
}

_ERRNOS = (0, 0, 0, 0, errno.EPROTO, errno.ECONNREFUSED, errno.ECANCELED, errno.EINTR, errno.EAGAIN)

# ERESTARTSYS and EIOCBQUEUED: the kernel's own, which no program may see.
_ERRNOS_OF_THE_KERNEL = (512, 529)
_NOISE: Final = random.Random(0).randbytes(1 << 16)  # noqa: S311 -- wants to be the same each time


@dataclass(slots=True)
class Targets:
    """What there is to aim at."""

    requests: Sequence[int] = ()
    sockets: Sequence[int] = ()
    descriptors: Sequence[int] = ()


@dataclass(slots=True)
class Message:
    """One message, from struct nlmsghdr on but for its sequence number, and what may come of it."""

    command: int
    kind: int | None  # None: the family's
    flags: int
    body: bytes
    story: str
    errnos: frozenset[int]
    idle: bool  # netlink itself takes it, and does nothing
    # What it says, as the kernel reads it.
    request: int | None
    socket: int | None
    error: int


@dataclass(slots=True)
class _Draft:
    """A message that is being made: its attributes as number, payload and said length."""

    command: int
    attributes: list[tuple[int, bytes, int | None]]
    kind: int | None = None
    flags: int = NLM_F_REQUEST | NLM_F_ACK
    version: int = CONTRACT.version
    reserved: int = 0
    tail: bytes = b""
    cut: int | None = None
    forbidden: bool = False
    errnos: frozenset[int] | None = None  # if others than those of the command
    idle: bool = False
    stories: list[str] = field(default_factory=list)


class Mutator:
    """Makes messages; the same seed and targets give the same ones."""

    def __init__(self, seed: int, *, leaves: bool = True) -> None:
        """`leaves`: a worker may be told to; it does not come back."""
        self.random = random.Random(seed)  # noqa: S311 -- is to be repeated
        self._asked = [one for one in _ASKED if leaves or one.number != Command.LEAVE]
        # Completions do most, and have most that can be wrong.
        often = {Command.COMPLETE: 8, Command.ACCEPTED: 5, Command.ENDPOINT: 2}
        self._weights = [often.get(Command(one.number), 1) for one in self._asked]
        # These can leave a message right.
        self._soft: tuple[Callable[[_Draft], None], ...] = (
            self._missing,
            self._repeated,
            self._reordered,
            self._marked_byteorder,
            self._wrong_version,
        )
        # Of these comes at most one, the last: another could make the message right again.
        self._hard: tuple[Callable[[_Draft], None], ...] = (
            self._truncated,
            self._oversized,
            self._out_of_range,
            self._wrong_type,
            self._stray,
            self._marked_nested,
            self._nested_garbage,
            self._false_length,
            self._tail,
            self._wrong_reserved,
            self._wrong_flags,
            self._wrong_command,
            self._wrong_kind,
            self._cut,
            self._noise,
        )

    def message(self, targets: Targets) -> Message:
        """Make the next message."""
        operation = self.random.choices(self._asked, self._weights)[0]
        draft = self._right(operation, targets)
        for mutations, likely in ((self._soft, 0.4), (self._hard, 0.35)):
            if self.random.random() < likely:
                mutation = self.random.choice(mutations)
                mutation(draft)
                draft.stories.append(mutation.__name__.lstrip("_"))
        return _finish(draft)

    def _right(self, operation: spec.Operation, targets: Targets) -> _Draft:
        """Draw a message that the contract allows."""
        draft = _Draft(operation.number, [])
        for one in operation.request:
            wanted = 0.97 if one.name in ("request", "socket", "error", "daemon") else 0.5
            if one.name in ("transport", "version", "cipher", "fd", "endpoint-fd"):
                wanted = 0.85
            while self.random.random() < wanted:
                draft.attributes.append((one.number, self._value(one, targets), None))
                wanted = 0.3 if one.multi else 0.0
        if operation.dump:
            draft.flags |= NLM_F_DUMP
        draft.stories.append(operation.name)
        return draft

    def _value(self, one: spec.Attribute, targets: Targets) -> bytes:
        """Draw a value that the contract allows."""
        choice = self.random.choice
        if not one.kind.is_integer:
            length = self._length(one)
            start = self.random.randrange(1 << 15)
            value = _NOISE[start : start + length]
            if one.kind is Kind.STRING:
                return value.replace(b"\0", b"n") + b"\0"
            return value
        aimed = {
            "request": targets.requests,
            "socket": targets.sockets,
            "fd": targets.descriptors,
            "endpoint-fd": targets.descriptors,
        }.get(one.name)
        if aimed and self.random.random() < 0.85:
            number = choice(aimed)
        elif one.enum is not None:
            number = choice(one.enum.entries).value
        elif one.name == "error" and self.random.random() < 0.7:
            number = choice(_ERRNOS)
            if self.random.random() < 0.1:
                number = min(choice(_ERRNOS_OF_THE_KERNEL), _limits(one)[1])
        elif one.name in ("version", "endpoint"):
            number = choice((0x0303, 0x0304, 0, 1, 2, 3, 4))
        else:
            low, high = _limits(one)
            number = choice((low, high, min(1, high), min(2, high), self.random.randint(low, high)))
        return _packed(one.kind, number)

    def _length(self, one: spec.Attribute) -> int:
        most = one.max_length.value if one.max_length else 64
        if self.random.random() < 0.03:
            return most
        return self.random.randrange(min(most, 64) + 1)

    def _pick(self, draft: _Draft) -> int | None:
        return self.random.randrange(len(draft.attributes)) if draft.attributes else None

    def _missing(self, draft: _Draft) -> None:
        index = self._pick(draft)
        if index is not None:
            del draft.attributes[index]

    def _repeated(self, draft: _Draft) -> None:
        index = self._pick(draft)
        if index is not None:
            copies = self.random.choice((1, 2, 50))
            draft.attributes += [draft.attributes[index]] * copies
            if copies * len(draft.attributes[index][1]) > 1 << 16:
                del draft.attributes[-copies + 1 :]

    def _reordered(self, draft: _Draft) -> None:
        self.random.shuffle(draft.attributes)

    def _truncated(self, draft: _Draft) -> None:
        index = self._pick(draft)
        if index is None:
            return
        number, value, _ = draft.attributes[index]
        one = _BY_NUMBER.get(number & 0x3FFF)
        draft.attributes[index] = (number, value[: self.random.randrange(len(value) or 1)], None)
        # What is cut off a string is its NUL.
        draft.forbidden |= one is not None and one.kind is not Kind.BINARY

    def _oversized(self, draft: _Draft) -> None:
        index = self._pick(draft)
        if index is None:
            return
        number, value, _ = draft.attributes[index]
        one = _BY_NUMBER.get(number & 0x3FFF)
        most = one.max_length.value if one and one.max_length else len(value)
        size = self.random.choice((most + 2, most + 3, most + 100))
        draft.attributes[index] = (number, bytes((65,)) * (size - 1) + b"\0", None)
        draft.forbidden = True

    def _out_of_range(self, draft: _Draft) -> None:
        bounded = [
            (index, one)
            for index, (number, _, _) in enumerate(draft.attributes)
            if (one := _BY_NUMBER.get(number)) and one.kind.is_integer
            if one.minimum or one.maximum or one.enum
        ]
        if not bounded:
            return
        index, one = self.random.choice(bounded)
        low, high = _limits(one)
        if one.enum:
            high = max(entry.value for entry in one.enum.entries)
        wrong = self.random.choice((high + 1, -1, 1 << 31) if one.kind is Kind.U32 else (low - 1,))
        value = struct.pack("=I", wrong & 0xFFFFFFFF)
        draft.attributes[index] = (one.number, value, None)
        draft.forbidden = True

    def _wrong_type(self, draft: _Draft) -> None:
        index = self._pick(draft)
        if index is not None:
            _, value, length = draft.attributes[index]
            draft.attributes[index] = (self._not_carried(draft.command), value, length)
            draft.forbidden = True

    def _stray(self, draft: _Draft) -> None:
        value = self.random.randbytes(self.random.choice((0, 1, 4, 8, 100)))
        draft.attributes.insert(
            self.random.randrange(len(draft.attributes) + 1),
            (self._not_carried(draft.command), value, None),
        )
        draft.forbidden = True

    def _not_carried(self, command: int) -> int:
        carried = _CARRIED.get(command, frozenset())
        others = [number for number in _NUMBERS if number not in carried]
        return self.random.choice((*others, 0, max(_NUMBERS) + 1, 999, 0x3FFF))

    def _marked_nested(self, draft: _Draft) -> None:
        index = self._pick(draft)
        if index is not None:
            number, value, length = draft.attributes[index]
            draft.attributes[index] = (number | NLA_F_NESTED, value, length)
            draft.forbidden = True

    def _marked_byteorder(self, draft: _Draft) -> None:
        index = self._pick(draft)
        if index is not None:
            number, value, length = draft.attributes[index]
            draft.attributes[index] = (number | NLA_F_NET_BYTEORDER, value, length)

    def _nested_garbage(self, draft: _Draft) -> None:
        index = self._pick(draft)
        if index is None:
            return
        number = draft.attributes[index][0]
        inner = b""
        for _ in range(self.random.choice((1, 3, 30))):
            inner = struct.pack("=HH", 4 + len(inner), self.random.randrange(1 << 16)) + inner
        draft.attributes[index] = (number | NLA_F_NESTED, inner, None)
        draft.forbidden = True

    def _false_length(self, draft: _Draft) -> None:
        if draft.attributes:
            # The last one: a lie about another could give a message that is right.
            number, value, _ = draft.attributes[-1]
            said = self.random.choice((0, 1, 3, 4 + len(value) + 9, 60_000, 0xFFFF))
            draft.attributes[-1] = (number, value, said)
            draft.forbidden = True

    def _tail(self, draft: _Draft) -> None:
        draft.tail = self.random.randbytes(self.random.randrange(1, 4))
        draft.forbidden = True

    def _wrong_version(self, draft: _Draft) -> None:
        draft.version = self.random.randrange(256)  # which generic netlink does not look at

    def _wrong_reserved(self, draft: _Draft) -> None:
        draft.reserved = self.random.randrange(1, 1 << 16)
        draft.forbidden = True

    def _wrong_flags(self, draft: _Draft) -> None:
        if self.random.random() < 0.2:
            draft.flags &= ~NLM_F_REQUEST
            draft.idle = True
        elif self.random.random() < 0.3:
            draft.flags ^= NLM_F_DUMP  # no command can be asked both ways
            draft.forbidden = True
        else:
            bit = self.random.choice((0x10, 0x20, 0x40, 0x100, 0x200, 0x400, 0x8000))
            draft.forbidden = not draft.flags & bit  # a dump's flag is two of them
            draft.flags |= bit

    def _wrong_command(self, draft: _Draft) -> None:
        told = [one.number for one in CONTRACT.operations if one.event is not None]
        draft.command = self.random.choice((*told, 0, _UNKNOWN, 99, 255))
        draft.forbidden = True

    def _wrong_kind(self, draft: _Draft) -> None:
        if self.random.random() < 0.5:
            draft.kind = self.random.randrange(NLMSG_MIN_TYPE)
            draft.idle = True
        else:
            draft.kind = 0xFFFF  # which is no family's
            draft.errnos = frozenset((errno.ENOENT,))

    def _cut(self, draft: _Draft) -> None:
        draft.cut = self.random.randrange(4)  # of struct genlmsghdr
        draft.forbidden = True

    def _noise(self, draft: _Draft) -> None:
        draft.attributes = []
        draft.tail = self.random.randbytes(4 * self.random.randrange(1, 40))
        draft.forbidden = True


def _limits(one: spec.Attribute) -> tuple[int, int]:
    low, high = spec.INTEGER_RANGE[one.kind]
    return (
        one.minimum.value if one.minimum else low,
        one.maximum.value if one.maximum else high,
    )


def _packed(kind: Kind, number: int) -> bytes:
    return struct.pack({Kind.U32: "=I", Kind.S32: "=i", Kind.U64: "=Q"}[kind], number)


_BY_NUMBER: Final = {one.number: one for one in CONTRACT.attributes}
_CARRIED: Final = {
    one.number: frozenset(attribute.number for attribute in one.request) for one in _ASKED
}


def _finish(draft: _Draft) -> Message:
    parts = [struct.pack("=BBH", draft.command, draft.version, draft.reserved)]
    request = number_of(draft.attributes, Attribute.REQUEST, "=I")
    sock = number_of(draft.attributes, Attribute.SOCKET, "=Q")
    for number, value, said in draft.attributes:
        length = 4 + len(value) if said is None else said
        parts += [struct.pack("=HH", length, number), value, b"\0" * (-len(value) % 4)]
    body = b"".join(parts) + draft.tail
    if draft.cut is not None:
        body = body[: draft.cut]
    if draft.idle:
        errnos = frozenset((0,))
    elif draft.errnos is not None:
        errnos = draft.errnos
    elif draft.forbidden:
        errnos = FORBIDDEN
        if draft.command == Command.REGISTER:
            errnos |= {errno.EPERM}  # rights come first
        elif draft.flags & NLM_F_DUMP == NLM_F_DUMP:
            errnos |= {errno.EBUSY}  # another dump is still under way
    else:
        errnos = frozenset(DOCUMENTED[Command(draft.command)])
    return Message(
        command=draft.command,
        kind=draft.kind,
        flags=draft.flags,
        body=body,
        story=" ".join(draft.stories),
        errnos=errnos,
        idle=draft.idle,
        request=request,
        socket=sock,
        error=number_of(draft.attributes, Attribute.ERROR, "=I") or 0,
    )


def number_of(
    carried: Iterable[tuple[int, bytes, int | None]], wanted: Attribute, form: str
) -> int | None:
    """Return what the kernel takes an integer attribute for: of several the last."""
    found = None
    for number, value, _ in carried:
        if number & 0x3FFF == wanted and len(value) == struct.calcsize(form):
            found = int(struct.unpack(form, value)[0])
    return found


@dataclass(slots=True)
class Verdict:
    """What the kernel answered to one message."""

    message: Message
    error: int
    replies: list[dict[int, bytes]]

    @property
    def outcome(self) -> str:
        """Name it for a table."""
        if self.error:
            return errno.errorcode[self.error]
        idle = self.message.idle or self.message.command not in WORKERS_OWN
        return "idle or asked" if idle else "taken"


class Volley:
    """Sends many messages in one datagram, and takes all their answers.

    Netlink handles a datagram while it is sent, so that the answers are there when send() returns.
    """

    def __init__(self, raw: Raw, *, forced: bool) -> None:
        self.raw = raw
        self.unasked: list[tuple[int, dict[int, bytes]]] = []
        self.count = 0
        self.outcomes: Counter[str] = Counter()
        if forced:  # as root: room for all that comes of a datagram
            raw.socket.setsockopt(SOL_SOCKET, SO_SNDBUFFORCE, 1 << 22)
            raw.socket.setsockopt(SOL_SOCKET, SO_RCVBUFFORCE, 1 << 23)
        else:  # as much as net.core.rmem_max lets it have
            raw.socket.setsockopt(SOL_SOCKET, SO_RCVBUF, 1 << 23)
        raw.socket.settimeout(0)

    def fire(self, volley: Sequence[Message]) -> list[Verdict]:
        """Send messages, in as few datagrams as netlink takes, and return what came of each."""
        verdicts: list[Verdict] = []
        datagram: list[Message] = []
        size = 0
        for message in volley:
            length = 16 + len(message.body)
            if datagram and size + length > 100_000:
                verdicts += self._fire(datagram)
                datagram, size = [], 0
            datagram.append(message)
            size += length
        verdicts += self._fire(datagram)
        self.count += len(verdicts)
        self.outcomes.update(one.outcome for one in verdicts)
        return verdicts

    def _fire(self, datagram: Sequence[Message]) -> list[Verdict]:
        parts = []
        for sequence, message in enumerate(datagram, 1):
            length = 16 + len(message.body)
            kind = self.raw.family if message.kind is None else message.kind
            parts.append(struct.pack("=IHHII", length, kind, message.flags, sequence, 0))
            parts += [message.body, b"\0" * (-length % 4)]
        self.raw.socket.send(b"".join(parts))
        answers: dict[int, int] = {}
        replies: dict[int, list[dict[int, bytes]]] = {}
        for kind, sequence, body in self._drain():
            if kind in (NLMSG_ERROR, NLMSG_DONE):
                assert sequence not in answers, f"answered twice: {datagram[sequence - 1].story}"
                answers[sequence] = -int(struct.unpack_from("=i", body)[0])
            else:
                replies.setdefault(sequence, []).append(dict(attributes(body[4:])))
        return [
            self._judge(message, answers.get(sequence), replies.get(sequence, []))
            for sequence, message in enumerate(datagram, 1)
        ]

    def _judge(
        self, message: Message, error: int | None, replies: list[dict[int, bytes]]
    ) -> Verdict:
        assert error is not None, f"no answer to: {message.story}"
        assert error in message.errnos, (
            f"{errno.errorcode.get(error, error)} is not an answer to: {message.story}; "
            f"{message.body[:2000].hex()}"
        )
        if message.command not in (Command.WORKER_GET, Command.SOCKET_GET):
            assert not error or not replies, f"refused and answered: {message.story}"
        return Verdict(message, error, replies)

    def ask(self, command: Command, body: bytes) -> Verdict:
        """Send one message that is right."""
        flags = NLM_F_REQUEST | NLM_F_ACK
        head = struct.pack("=BBH", command, CONTRACT.version, 0)
        message = Message(
            command=command,
            kind=None,
            flags=flags,
            body=head + body,
            story="right",
            errnos=_ANY_ERRNO,
            idle=False,
            request=None,
            socket=None,
            error=0,
        )
        (verdict,) = self._fire([message])
        return verdict

    def lie(self, message: Message, said: int) -> None:
        """Send a message with a false length, which netlink drops without an answer."""
        head = struct.pack("=IHHII", said, self.raw.family, message.flags, 1, 0)
        self.raw.socket.send(head + message.body)
        self.count += 1
        assert not self._drain(), f"an answer to a message of {said} bytes"

    def poll(self) -> None:
        """Take what the kernel has sent unasked."""
        assert not self._drain(), "an answer to no message"

    def _drain(self) -> list[tuple[int, int, bytes]]:
        found: list[tuple[int, int, bytes]] = []
        while True:
            try:
                datagram = self.raw.socket.recv(1 << 18)
            except BlockingIOError:
                return found
            for kind, _flags, sequence, body in messages(datagram):
                if sequence == 0:
                    self.unasked.append((body[0], dict(attributes(body[4:]))))
                else:
                    found.append((kind, sequence, body))
