# SPDX-License-Identifier: BSD-3-Clause
"""A TLS server that follows the rules until the script says otherwise.

OpenSSL does the handshake over memory BIOs, so every byte passes through here: a script can stop
after any of them. It can also seal records of its own making.
"""

from __future__ import annotations

import hmac
import struct
from collections.abc import Callable
from typing import TYPE_CHECKING

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand
from OpenSSL import SSL

from tests.peers.hostile import Peer, Script, read_record
from tests.peers.sealer import Sealer

if TYPE_CHECKING:
    import socket

    from tests.peers.pki import Identity
    from tests.peers.servers import Version

ALERT = 21
HANDSHAKE = 22

WARNING, FATAL = 1, 2
CLOSE_NOTIFY = bytes((WARNING, 0))
INTERNAL_ERROR = bytes((FATAL, 80))

# RFC 8446, 4.6.3: KeyUpdate, one byte long.
KEY_UPDATE = b"\x18\0\0\1\0"
KEY_UPDATE_REQUESTED = b"\x18\0\0\1\1"


class TlsConnection:
    """One connection, server's side."""

    def __init__(self, raw: socket.socket, identity: Identity, version: Version) -> None:
        self.raw = raw
        self._version = version
        self._secret = b""
        self._application_records = 0
        context = SSL.Context(SSL.TLS_SERVER_METHOD)
        number = {"TLSv1.2": SSL.TLS1_2_VERSION, "TLSv1.3": SSL.TLS1_3_VERSION}[version]
        context.set_min_proto_version(number)
        context.set_max_proto_version(number)
        context.set_tls13_ciphersuites(b"TLS_AES_128_GCM_SHA256")
        context.set_cipher_list(b"ECDHE+AESGCM+AES128")
        context.set_keylog_callback(self._note_secret)
        context.use_certificate_chain_file(str(identity.chain))
        context.use_privatekey_file(str(identity.key))
        self._tls = SSL.Connection(context, None)
        self._tls.set_accept_state()

    def handshake(self, *, stop_before_flight: int | None = None) -> bytes:
        """Do the handshake.

        With `stop_before_flight` n, return the server's nth flight (0 is ServerHello to Finished
        in TLS 1.3, to ServerHelloDone in 1.2) instead of sending it. Else return b"".
        """
        flight = 0
        while True:
            self._tls.bio_write(read_record(self.raw))
            try:
                self._tls.do_handshake()
                done = True
            except SSL.WantReadError:
                done = False
            output = self._output()
            if output and flight == stop_before_flight:
                return output
            flight += bool(output)
            self.raw.sendall(output)
            if done:
                # TLS 1.3: all after the client's Finished, the tickets, is under the new key.
                self._application_records = _count_records(output)
                return b""

    @property
    def server_name(self) -> str:
        """The host name that the client asked for, empty if it did not."""
        return (self._tls.get_servername() or b"").decode()

    def send(self, data: bytes) -> None:
        """Send application data."""
        self._tls.send(data)
        output = self._output()
        self._application_records += _count_records(output)
        self.raw.sendall(output)

    def receive(self, size: int) -> bytes:
        """Receive exactly `size` bytes of application data. Raises SSL.Error at the end."""
        data = b""
        while len(data) < size:
            try:
                data += self._tls.recv(size - len(data))
            except SSL.WantReadError:
                self._tls.bio_write(read_record(self.raw))
        return data

    def await_close_notify(self) -> None:
        """Drop application data until the client's close_notify. Raises if there is none."""
        while True:
            try:
                self._tls.recv(65536)
            except SSL.WantReadError:
                self._tls.bio_write(read_record(self.raw))
            except SSL.ZeroReturnError:
                return

    def close_notify(self) -> None:
        """Send close_notify. The TCP connection stays."""
        self._tls.shutdown()
        self.raw.sendall(self._output())

    def ask_to_renegotiate(self) -> None:
        """TLS 1.2: send a HelloRequest."""
        self._tls.renegotiate()
        self._tls.do_handshake()
        self.raw.sendall(self._output())

    def send_sealed(self, kind: int, body: bytes, *, spoil: bool = False) -> None:
        """TLS 1.3: send `body` as one record of type `kind`, however long or wrong it is.

        With `spoil` its authentication tag is wrong. OpenSSL does not know of this record, so
        nothing can be sent through `send` afterwards.
        """
        self.raw.sendall(self.seal(kind, body, spoil=spoil))

    def seal(self, kind: int, body: bytes, *, spoil: bool = False) -> bytes:
        """TLS 1.3: return the record that `send_sealed` would send."""
        sealer = self.sealer()
        self._application_records += 1
        return sealer.seal(kind, body, spoil=spoil)

    def sealer(self) -> Sealer:
        """Return what seals the next record and those after it; OpenSSL does not know of them."""
        if self._version == "TLSv1.3":
            return Sealer(
                self._version,
                "AES-128-GCM",
                _expand_label(self._secret, b"key", 16),
                _expand_label(self._secret, b"iv", 12),
                self._application_records,
            )
        # RFC 5246, 6.3: the keys of client and server, then their salts; all in the same order.
        parts = self._tls.server_random(), self._tls.client_random(), self._tls.master_key()
        server_random, client_random, master = (part or b"" for part in parts)
        block = _prf(master, b"key expansion" + server_random + client_random, 2 * (16 + 4))
        salt = block[-4:]
        # After its Finished. OpenSSL counts nonces from a random number, so none is used twice.
        return Sealer(self._version, "AES-128-GCM", block[16:32], salt + bytes(8), 1)

    def update_key(self) -> None:
        """TLS 1.3: go on with the next sending key, as after a KeyUpdate."""
        self._secret = _expand_label(self._secret, b"traffic upd", 32)
        self._application_records = 0

    def _output(self) -> bytes:
        output = b""
        while True:
            try:
                output += self._tls.bio_read(65536)
            except SSL.WantReadError:
                return output

    def _note_secret(self, _connection: SSL.Connection, line: bytes) -> None:
        label, _random, secret = line.split()
        if label == b"SERVER_TRAFFIC_SECRET_0":
            self._secret = bytes.fromhex(secret.decode())


# What a server does once it is connected.
Act = Callable[[TlsConnection, Peer], None]


def tls(identity: Identity, act: Act, version: Version = "TLSv1.3") -> Script:
    """Return a script that does the handshake and then `act`, whose end closes the connection."""

    def script(raw: socket.socket, peer: Peer) -> None:
        connection = TlsConnection(raw, identity, version)
        connection.handshake()
        act(connection, peer)

    return script


def _count_records(output: bytes) -> int:
    count = offset = 0
    while offset < len(output):
        offset += 5 + int.from_bytes(output[offset + 3 : offset + 5], "big")
        count += 1
    return count


def _expand_label(secret: bytes, label: bytes, length: int) -> bytes:
    """RFC 8446, 7.1, with an empty context and SHA-256."""
    label = b"tls13 " + label
    info = struct.pack("!HB", length, len(label)) + label + b"\0"
    return HKDFExpand(hashes.SHA256(), length, info).derive(secret)


def _prf(secret: bytes, seed: bytes, length: int) -> bytes:
    """RFC 5246, 5, with SHA-256."""
    output = b""
    a = seed
    while len(output) < length:
        a = hmac.digest(secret, a, "sha256")
        output += hmac.digest(secret, a + seed, "sha256")
    return output[:length]
