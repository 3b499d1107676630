# SPDX-License-Identifier: BSD-3-Clause
# Made from netlink_proto/ssa.yaml by netlink_proto/generate.py: do not edit.
"""What the kernel module and the daemon say to each other.

encode() and decode() check a message against the contract and take a few
microseconds.
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import Final, Literal, NamedTuple, TypedDict, cast

FAMILY_NAME: Final = "ssa"
FAMILY_VERSION: Final = 1
GROUP_EVENTS: Final = "events"

IPPROTO_TLS: Final = 205
AF_HOSTNAME: Final = 18
TLS_HOST_ADDR_SIZE: Final = 120
VALUE_MAX: Final = 1048576
VALUE_PIECE_MAX: Final = 16384
TEXT_MAX: Final = 511
HOST_NAME_MAX: Final = 253
ADDRESS_MAX: Final = 128
COMM_MAX: Final = 15
PATH_MAX: Final = 4095
CIPHER_MAX: Final = 63
ALPN_MAX: Final = 255
IDENTITY_MAX: Final = 1023
CHAIN_MAX: Final = 131072
CHAIN_PIECE_MAX: Final = 32768
TICKETS_MAX: Final = 4


class Command(IntEnum):
    """Commands of the family."""

    REGISTER = 1
    ENDPOINT = 2
    COMPLETE = 3
    END_OF_STREAM = 4
    MODULE_GET = 5
    WORKER_GET = 6
    SOCKET_GET = 7
    SOCKET = 8
    SETSOCKOPT = 9
    GETSOCKOPT = 10
    BIND = 11
    CONNECT = 12
    CLOSE = 13
    NOTIFY = 14
    ACCEPTED = 15
    LISTEN = 16
    ROOM = 17
    TICKET = 18
    LEAVE = 19


class Attribute(IntEnum):
    """Numbers of the attributes."""

    REQUEST = 1
    SOCKET = 2
    ERROR = 3
    TEXT = 4
    FAMILY = 5
    STATE = 6
    PID = 7
    UID = 8
    GID = 9
    NETNS_COOKIE = 10
    COMM = 11
    EXECUTABLE = 12
    LOCAL_ADDRESS = 13
    REMOTE_ADDRESS = 14
    HOST_NAME = 15
    OPTION = 16
    VALUE = 17
    VALUE_LENGTH = 18
    VALUE_OFFSET = 19
    TRANSPORT = 20
    FD = 21
    VERSION = 22
    CIPHER = 23
    ALPN = 24
    PEER_IDENTITY = 25
    PEER_CHAIN = 26
    RESUMED = 27
    BYTES_SENT = 28
    BYTES_RECEIVED = 29
    EVENT = 30
    MODULE_VERSION = 31
    SOCKETS = 32
    PENDING = 33
    DAEMON = 34
    BACKLOG = 35
    QUEUED = 36
    ENDPOINT_FD = 37
    PORT = 38
    ENDPOINTS = 39
    ENDPOINT = 40
    SWITCHES = 41
    TICKETS = 42
    LEAVING = 43


class SocketState(IntEnum):
    """Where a TLS socket is in its life."""

    NEW = 0
    CONNECTING = 1
    CONNECTED = 2
    LISTENING = 3
    CLOSED = 4
    FAILED = 5


class Transport(IntEnum):
    """What carries a connected program's bytes."""

    NONE = 0
    KTLS = 1
    CHANNEL = 2


class EventKind(IntEnum):
    """What a notification tells."""

    OPENED = 0
    CONNECTED = 1
    REFUSED = 2
    CLOSED = 3
    LISTENING = 4
    ACCEPTED = 5


class TlsOption(IntEnum):
    """Options of level IPPROTO_TLS, numbered as in the Secure Socket API 0.67; ours from 130."""

    TLS_HOSTNAME = 85
    TLS_TRUSTED_PEER_CERTIFICATES = 87
    TLS_CERTIFICATE_CHAIN = 88
    TLS_PRIVATE_KEY = 89
    TLS_ALPN = 90
    TLS_SESSION_TTL = 91
    TLS_DISABLE_CIPHER = 92
    TLS_PEER_IDENTITY = 93
    TLS_REQUEST_PEER_AUTH = 94
    TLS_PEER_CERTIFICATE_CHAIN = 95
    TLS_ID = 96
    TLS_TRUSTED_CIPHERS = 97
    TLS_CHOSEN_CIPHER = 98
    TLS_ERROR = 100
    TLS_REVOCATION_CHECKS = 102
    TLS_OCSP_STAPLED_CHECKS = 103
    TLS_OCSP_CHECKS = 104
    TLS_CRL_CHECKS = 105
    TLS_CACHED_REV_CHECKS = 106
    TLS_CONTEXT = 107
    TLS_SESSION_REUSE = 108
    TLS_RESUMED_SESSION = 109
    TLS_ENABLE_CIPHER = 110
    TLS_VERSION_MIN = 111
    TLS_VERSION_MAX = 112
    TLS_VERSION_CONN = 113
    TLS_SERVER_OCSP_STAPLING = 122
    TLS_TRANSPORT = 130


class Attributes(TypedDict, total=False):
    """Attributes of a message, by name."""

    request: int
    socket: int
    error: int
    text: str
    family: int
    state: SocketState
    pid: int
    uid: int
    gid: int
    netns_cookie: int
    comm: str
    executable: str
    local_address: bytes
    remote_address: bytes
    host_name: str
    option: TlsOption
    value: bytes
    value_length: int
    value_offset: int
    transport: Transport
    fd: int
    version: int
    cipher: str
    alpn: str
    peer_identity: str
    peer_chain: list[bytes]
    resumed: int
    bytes_sent: int
    bytes_received: int
    event: EventKind
    module_version: str
    sockets: int
    pending: int
    daemon: int
    backlog: int
    queued: int
    endpoint_fd: int
    port: int
    endpoints: int
    endpoint: int
    switches: int
    tickets: int
    leaving: int


class WireError(ValueError):
    """A message that the contract does not allow; the text says what is wrong with it."""


class _Rule(NamedTuple):
    """What the contract says about one attribute."""

    number: int
    name: str
    kind: Literal["u32", "u64", "s32", "string", "binary"]
    low: int  # least value, or length in bytes
    high: int  # greatest value, or length in bytes without the terminating NUL
    enum: type[IntEnum] | None = None
    multi: bool = False


_RULES: Final = (
    _Rule(1, "request", "u32", 0, 4294967295),
    _Rule(2, "socket", "u64", 0, 18446744073709551615),
    _Rule(3, "error", "u32", 0, 511),
    _Rule(4, "text", "string", 0, TEXT_MAX),
    _Rule(5, "family", "u32", 0, 4294967295),
    _Rule(6, "state", "u32", 0, 4294967295, SocketState),
    _Rule(7, "pid", "u32", 0, 4294967295),
    _Rule(8, "uid", "u32", 0, 4294967295),
    _Rule(9, "gid", "u32", 0, 4294967295),
    _Rule(10, "netns_cookie", "u64", 0, 18446744073709551615),
    _Rule(11, "comm", "string", 0, COMM_MAX),
    _Rule(12, "executable", "string", 0, PATH_MAX),
    _Rule(13, "local_address", "binary", 0, ADDRESS_MAX),
    _Rule(14, "remote_address", "binary", 0, ADDRESS_MAX),
    _Rule(15, "host_name", "string", 0, HOST_NAME_MAX),
    _Rule(16, "option", "u32", 0, 4294967295, TlsOption),
    _Rule(17, "value", "binary", 0, VALUE_PIECE_MAX),
    _Rule(18, "value_length", "u32", 0, VALUE_MAX),
    _Rule(19, "value_offset", "u32", 0, VALUE_MAX),
    _Rule(20, "transport", "u32", 0, 4294967295, Transport),
    _Rule(21, "fd", "s32", 0, 2147483647),
    _Rule(22, "version", "u32", 0, 4294967295),
    _Rule(23, "cipher", "string", 0, CIPHER_MAX),
    _Rule(24, "alpn", "string", 0, ALPN_MAX),
    _Rule(25, "peer_identity", "string", 0, IDENTITY_MAX),
    _Rule(26, "peer_chain", "binary", 0, CHAIN_PIECE_MAX, multi=True),
    _Rule(27, "resumed", "u32", 0, 1),
    _Rule(28, "bytes_sent", "u64", 0, 18446744073709551615),
    _Rule(29, "bytes_received", "u64", 0, 18446744073709551615),
    _Rule(30, "event", "u32", 0, 4294967295, EventKind),
    _Rule(31, "module_version", "string", 0, 65530),
    _Rule(32, "sockets", "u32", 0, 4294967295),
    _Rule(33, "pending", "u32", 0, 4294967295),
    _Rule(34, "daemon", "u32", 0, 4294967295),
    _Rule(35, "backlog", "u32", 0, 4294967295),
    _Rule(36, "queued", "u32", 0, 4294967295),
    _Rule(37, "endpoint_fd", "s32", 0, 2147483647),
    _Rule(38, "port", "u32", 0, 65535),
    _Rule(39, "endpoints", "u32", 0, 4294967295),
    _Rule(40, "endpoint", "u32", 0, 4294967295),
    _Rule(41, "switches", "u32", 0, 4294967295),
    _Rule(42, "tickets", "u32", 0, TICKETS_MAX),
    _Rule(43, "leaving", "u32", 0, 1),
)
_BY_NAME: Final = {rule.name: rule for rule in _RULES}
_BY_NUMBER: Final = {rule.number: rule for rule in _RULES}

# Attributes that a command may carry, in either direction.
_CARRIED: Final[dict[Command, frozenset[str]]] = {
    Command.REGISTER: frozenset({"daemon", "module_version"}),
    Command.ENDPOINT: frozenset({"request", "endpoint", "fd", "family"}),
    Command.COMPLETE: frozenset(
        {
            "request",
            "error",
            "text",
            "value",
            "transport",
            "fd",
            "version",
            "cipher",
            "alpn",
            "host_name",
            "peer_identity",
            "peer_chain",
            "resumed",
            "endpoint",
            "switches",
            "tickets",
        }
    ),
    Command.END_OF_STREAM: frozenset({"socket", "error", "text"}),
    Command.MODULE_GET: frozenset({"module_version", "sockets"}),
    Command.WORKER_GET: frozenset({"pid", "pending", "daemon", "sockets", "leaving"}),
    Command.SOCKET_GET: frozenset(
        {
            "socket",
            "state",
            "family",
            "pid",
            "uid",
            "gid",
            "netns_cookie",
            "comm",
            "local_address",
            "remote_address",
            "host_name",
            "version",
            "cipher",
            "alpn",
            "transport",
            "bytes_sent",
            "bytes_received",
            "error",
            "text",
            "queued",
            "backlog",
        }
    ),
    Command.SOCKET: frozenset(
        {"request", "socket", "family", "pid", "uid", "gid", "netns_cookie", "comm", "executable"}
    ),
    Command.SETSOCKOPT: frozenset(
        {"request", "socket", "option", "value", "value_length", "value_offset"}
    ),
    Command.GETSOCKOPT: frozenset({"request", "socket", "option"}),
    Command.BIND: frozenset({"request", "socket", "local_address"}),
    Command.CONNECT: frozenset(
        {"request", "socket", "local_address", "remote_address", "host_name", "port", "endpoints"}
    ),
    Command.CLOSE: frozenset({"socket"}),
    Command.NOTIFY: frozenset(
        {
            "event",
            "socket",
            "state",
            "family",
            "pid",
            "uid",
            "gid",
            "netns_cookie",
            "comm",
            "local_address",
            "remote_address",
            "host_name",
            "version",
            "cipher",
            "alpn",
            "transport",
            "bytes_sent",
            "bytes_received",
            "error",
            "text",
            "queued",
            "backlog",
        }
    ),
    Command.ACCEPTED: frozenset(
        {
            "socket",
            "error",
            "text",
            "remote_address",
            "endpoint_fd",
            "transport",
            "fd",
            "version",
            "cipher",
            "alpn",
            "host_name",
            "peer_identity",
            "peer_chain",
            "resumed",
            "queued",
            "backlog",
        }
    ),
    Command.LISTEN: frozenset({"request", "socket", "local_address", "backlog"}),
    Command.ROOM: frozenset({"socket"}),
    Command.TICKET: frozenset({"socket", "value"}),
    Command.LEAVE: frozenset({"pending"}),
}

# struct genlmsghdr and struct nlattr; both are in the machine's byte order.
_MESSAGE: Final = struct.Struct("=BBH")
_HEADER: Final = struct.Struct("=HH")
_INTEGERS: Final = {
    "u32": struct.Struct("=I"),
    "u64": struct.Struct("=Q"),
    "s32": struct.Struct("=i"),
}
_PADDING: Final = (b"", b"\0\0\0", b"\0\0", b"\0")


def clip(text: str, size: int) -> str:
    """Return as much of ``text`` as a string attribute of at most ``size`` bytes can carry.

    For text that others have a hand in, such as a certificate's subject.
    """
    raw = text.replace("\0", "\\0").encode(errors="backslashreplace")
    return raw[:size].decode(errors="ignore")


def encode(command: Command, attributes: Attributes) -> bytes:
    """Return the message: struct genlmsghdr and the attributes, in the order given.

    The netlink header before it is the caller's.  Raises WireError if the
    command does not carry an attribute, or a value does not fit it.
    """
    carried = _CARRIED[command]
    parts = [_MESSAGE.pack(command, FAMILY_VERSION, 0)]
    for name, value in attributes.items():
        if name not in carried:
            raise WireError(f"{command.name} does not carry an attribute {name}")
        rule = _BY_NAME[name]
        if not rule.multi:
            parts += _attribute(rule, value)
        elif isinstance(value, list):
            for item in value:
                parts += _attribute(rule, item)
        else:
            raise WireError(f"{name} must be a list, found {type(value).__name__}")
    return b"".join(parts)


def _attribute(rule: _Rule, value: object) -> tuple[bytes, bytes, bytes]:
    raw = _raw(rule, value)
    return _HEADER.pack(_HEADER.size + len(raw), rule.number), raw, _PADDING[len(raw) % 4]


def _raw(rule: _Rule, value: object) -> bytes:
    if rule.kind == "string":
        if not isinstance(value, str):
            raise WireError(f"{rule.name} must be a str, found {type(value).__name__}")
        try:
            raw = value.encode()
        except UnicodeEncodeError as error:
            raise WireError(f"{rule.name} can't be written as UTF-8: {error.reason}") from error
        if b"\0" in raw:
            raise WireError(f"{rule.name} has a NUL in it")
        _check_length(rule, len(raw))
        return raw + b"\0"
    if rule.kind == "binary":
        if not isinstance(value, bytes):
            raise WireError(f"{rule.name} must be bytes, found {type(value).__name__}")
        _check_length(rule, len(value))
        return value
    if not isinstance(value, int):
        raise WireError(f"{rule.name} must be an int, found {type(value).__name__}")
    _check_value(rule, value)
    return _INTEGERS[rule.kind].pack(value)


def decode(message: bytes) -> tuple[Command, Attributes]:
    """Return the command and the attributes of a message that begins with struct genlmsghdr.

    Bytes of a string that are not UTF-8 (a program's name may be any) become
    backslash escapes.  Raises WireError for anything that the contract does
    not allow, an attribute that it does not know included.
    """
    if len(message) < _MESSAGE.size:
        raise WireError(f"the message is cut off: {len(message)} bytes")
    number, version, _ = _MESSAGE.unpack_from(message)
    if version != FAMILY_VERSION:
        raise WireError(f"the message has version {version}, expected {FAMILY_VERSION}")
    try:
        command = Command(number)
    except ValueError:
        raise WireError(f"the message has the unknown command {number}") from None
    carried = _CARRIED[command]
    attributes: dict[str, object] = {}
    offset, end = _MESSAGE.size, len(message)
    while offset < end:
        if end - offset < _HEADER.size:
            raise WireError(f"{command.name} ends within the header of an attribute")
        length, number = _HEADER.unpack_from(message, offset)
        rule = _BY_NUMBER.get(number)
        if rule is None or rule.name not in carried:
            raise WireError(f"{command.name} does not carry an attribute {number}")
        if not _HEADER.size <= length <= end - offset:
            raise WireError(f"{command.name} ends within its attribute {rule.name}")
        value = _value(rule, message[offset + _HEADER.size : offset + length])
        if rule.multi:
            cast("list[object]", attributes.setdefault(rule.name, [])).append(value)
        elif rule.name in attributes:
            raise WireError(f"{command.name} carries {rule.name} twice")
        else:
            attributes[rule.name] = value
        offset += (length + 3) & ~3
    return command, cast("Attributes", attributes)


def _value(rule: _Rule, raw: bytes) -> object:
    if rule.kind == "string":
        length = raw.find(0)
        if length < 0:
            raise WireError(f"{rule.name} has no terminating NUL")
        _check_length(rule, length)
        return raw[:length].decode(errors="backslashreplace")
    if rule.kind == "binary":
        _check_length(rule, len(raw))
        return raw
    packed = _INTEGERS[rule.kind]
    if len(raw) != packed.size:
        raise WireError(f"{rule.name} must be {packed.size} bytes long, found {len(raw)}")
    value: int = packed.unpack(raw)[0]
    _check_value(rule, value)
    return value if rule.enum is None else rule.enum(value)


def _check_length(rule: _Rule, length: int) -> None:
    if length > rule.high:
        raise WireError(f"{rule.name} is {length} bytes long, at most {rule.high} are allowed")


def _check_value(rule: _Rule, value: int) -> None:
    if rule.enum is not None:
        try:
            rule.enum(value)
        except ValueError:
            raise WireError(f"{rule.name} {value} is not one of {rule.enum.__name__}") from None
    elif not rule.low <= value <= rule.high:
        raise WireError(f"{rule.name} must be {rule.low} to {rule.high}, found {value}")
