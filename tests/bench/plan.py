# SPDX-License-Identifier: BSD-3-Clause
"""What is measured: the columns and the rows of the tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Carrier = Literal["peer", "stunnel", "ktls", "channel"]
Certificate = Literal["ecdsa", "rsa"]
Transport = Literal["ktls", "channel"]
Via = Literal["tcp", "ktls", "openssl", "tls-socket"]
ClientLoad = Literal["send", "receive", "sendfile", "pingpong", "connect", "socket"]  # of load.c
ServerLoad = Literal["full", "resumed", "request"]  # of visitor.c
Load = ClientLoad | ServerLoad

TRANSPORTS: tuple[Transport, ...] = ("ktls", "channel")


@dataclass(frozen=True, slots=True)
class Column:
    """Something that is compared with others."""

    name: str
    title: str


@dataclass(frozen=True, slots=True)
class ClientColumn(Column):
    """One way to the server: `via` is the load generator's, `carrier` who else is on the way."""

    via: Via
    carrier: Carrier = "peer"

    @property
    def transport(self) -> Transport | None:
        """What the daemon has to be told to use, if it matters."""
        return self.carrier if self.carrier in {"ktls", "channel"} else None


@dataclass(frozen=True, slots=True)
class ServerColumn(Column):
    """One server: the processes that it is made of, and what the daemon is told if it is one."""

    processes: tuple[str, ...]
    transport: Transport | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """One kind of work, of which `count` bytes or operations are measured after `warm` others.

    `size` is that of a write, or of what a server answers with.
    """

    name: str
    title: str
    load: Load
    size: int
    count: int
    warm: int
    unit: Literal["bytes", "operations"]
    certificate: Certificate = "ecdsa"


@dataclass(frozen=True, slots=True)
class Part:
    """Columns that the same rows are measured of, and how to read them."""

    name: str
    title: str
    columns: Sequence[Column]
    rows: Sequence[Row]
    reference: Column  # the one whose work counts 1
    same: str  # the process that is the same for all columns
    rest: str  # what there is without it


KTLS = ClientColumn("ktls", "TLS socket, ktls", "tls-socket", "ktls")
CLIENT_COLUMNS = (
    ClientColumn("plain", "plain TCP", "tcp"),
    RAW := ClientColumn("raw-ktls", "raw kTLS", "ktls"),
    KTLS,
    ClientColumn("channel", "TLS socket, channel", "tls-socket", "channel"),
    ClientColumn("openssl", "OpenSSL in process", "openssl"),
    ClientColumn("stunnel", "stunnel", "tcp", "stunnel"),
)

TLS_HTTPD = "tls-httpd"  # httpd with TLS sockets, as a process
SERVER_KTLS = ServerColumn("ktls", "TLS socket, ktls", (TLS_HTTPD, "daemon"), "ktls")
SERVER_COLUMNS = (
    SERVER_KTLS,
    ServerColumn("channel", "TLS socket, channel", (TLS_HTTPD, "daemon"), "channel"),
    ServerColumn("stunnel", "stunnel", ("httpd", "stunnel")),
    NGINX := ServerColumn("nginx", "nginx", ("nginx",)),
    ServerColumn("asyncio", "Python asyncio", ("asyncio",)),
)

_KIB = 1024
_MIB = 1024 * _KIB

CLIENTS = Part(
    "clients",
    "Clients",
    CLIENT_COLUMNS,
    (
        Row("send-64k", "64 KiB writes, send", "send", 64 * _KIB, 16 * _MIB, _MIB, "bytes"),
        Row(
            "receive-64k", "64 KiB writes, receive", "receive", 64 * _KIB, 16 * _MIB, _MIB, "bytes"
        ),
        Row("send-1k", "1 KiB writes, send", "send", _KIB, 4 * _MIB, _MIB, "bytes"),
        Row("receive-1k", "1 KiB writes, receive", "receive", _KIB, 4 * _MIB, _MIB, "bytes"),
        Row("sendfile", "sendfile", "sendfile", 64 * _KIB, 16 * _MIB, _MIB, "bytes"),
        Row("pingpong", "64-byte ping-pong", "pingpong", 64, 1000, 100, "operations"),
        Row("connect-ecdsa", "connect, ECDSA P-256", "connect", 64, 10, 2, "operations"),
        Row("connect-rsa", "connect, RSA-2048", "connect", 64, 10, 2, "operations", "rsa"),
        Row("socket", "socket and close", "socket", 64, 50, 5, "operations"),
    ),
    reference=RAW,
    same="peer",
    rest="the client's side",
)

SERVERS = Part(
    "servers",
    "Servers",
    SERVER_COLUMNS,
    (
        Row("full-ecdsa", "accept, ECDSA P-256", "full", 64, 20, 3, "operations"),
        Row("full-rsa", "accept, RSA-2048", "full", 64, 20, 3, "operations", "rsa"),
        Row("resumed-ecdsa", "accept resumed, ECDSA", "resumed", 64, 20, 3, "operations"),
        Row("resumed-rsa", "accept resumed, RSA", "resumed", 64, 20, 3, "operations", "rsa"),
        Row("request-1k", "request of 1 KiB", "request", _KIB, 500, 20, "operations"),
        Row("request-100k", "request of 100 KiB", "request", 100 * _KIB, 100, 5, "operations"),
    ),
    reference=NGINX,
    same="client",
    rest="the server's side",
)

PARTS = (CLIENTS, SERVERS)

# One more row: connections that are open and idle, on TLS sockets and over plain TCP.
IDLE = "idle"
IDLE_LEVELS = (1, 10, 100, 1000, 5000)
IDLE_ACCEPTS = 10  # measured at each level

ROW_NAMES = (*(row.name for part in PARTS for row in part.rows), IDLE)

# Of whose handshakes there is a profile of the daemon.
PROFILED_LOADS = frozenset({"connect", "full", "resumed"})
PROFILED_HANDSHAKES = 20
