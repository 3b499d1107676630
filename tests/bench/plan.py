# SPDX-License-Identifier: BSD-3-Clause
"""What is measured: the columns and the rows of the table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Carrier = Literal["peer", "stunnel", "ktls", "channel"]
Certificate = Literal["ecdsa", "rsa"]


@dataclass(frozen=True, slots=True)
class Column:
    """One way to the server: `via` is the load generator's, `carrier` who else is on the way."""

    name: str
    title: str
    via: Literal["tcp", "ktls", "openssl", "tls-socket"]
    carrier: Carrier = "peer"


@dataclass(frozen=True, slots=True)
class Row:
    """One kind of work, of which `count` bytes or operations are measured after `warm` others."""

    name: str
    title: str
    load: Literal["send", "receive", "sendfile", "pingpong", "connect", "socket"]
    size: int
    count: int
    warm: int
    unit: Literal["bytes", "operations"]
    certificate: Certificate = "ecdsa"


PLAIN = Column("plain", "plain TCP", "tcp")
RAW = Column("raw-ktls", "raw kTLS", "ktls")
KTLS = Column("ktls", "TLS socket, ktls", "tls-socket", "ktls")
CHANNEL = Column("channel", "TLS socket, channel", "tls-socket", "channel")
OPENSSL = Column("openssl", "OpenSSL in process", "openssl")
STUNNEL = Column("stunnel", "stunnel", "tcp", "stunnel")

COLUMNS = (PLAIN, RAW, KTLS, CHANNEL, OPENSSL, STUNNEL)

_KIB = 1024
_MIB = 1024 * _KIB

ROWS = (
    Row("send-64k", "64 KiB writes, send", "send", 64 * _KIB, 16 * _MIB, _MIB, "bytes"),
    Row("receive-64k", "64 KiB writes, receive", "receive", 64 * _KIB, 16 * _MIB, _MIB, "bytes"),
    Row("send-1k", "1 KiB writes, send", "send", _KIB, 4 * _MIB, _MIB, "bytes"),
    Row("receive-1k", "1 KiB writes, receive", "receive", _KIB, 4 * _MIB, _MIB, "bytes"),
    Row("sendfile", "sendfile", "sendfile", 64 * _KIB, 16 * _MIB, _MIB, "bytes"),
    Row("pingpong", "64-byte ping-pong", "pingpong", 64, 1000, 100, "operations"),
    Row("connect-ecdsa", "connect, ECDSA P-256", "connect", 64, 10, 2, "operations"),
    Row("connect-rsa", "connect, RSA-2048", "connect", 64, 10, 2, "operations", "rsa"),
    Row("socket", "socket and close", "socket", 64, 50, 5, "operations"),
)
