# SPDX-License-Identifier: BSD-3-Clause
"""A TLS server in memory: OpenSSL, no socket."""

from __future__ import annotations

import ipaddress
from contextlib import suppress
from typing import TYPE_CHECKING

from OpenSSL import SSL

from ssad.errors import HandshakeError
from ssad.handshake import ClientHandshake, Result
from ssad.policy import Policy
from ssad.records import split
from ssad.settings import Settings
from tests.peers.pki import HOST

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ssad.identity import Address
    from tests.peers.pki import Identity, Pki

LOCALHOST = ipaddress.ip_address("127.0.0.1")


def context(
    identity: Identity,
    *,
    version: int | None = None,
    ciphers: str = "",
    ciphers13: str = "",
    alpn: Sequence[str] = (),
    client_root: str = "",
) -> SSL.Context:
    """Make a server's context. With `client_root` it wants a client certificate."""
    made = SSL.Context(SSL.TLS_SERVER_METHOD)
    made.use_certificate_chain_file(str(identity.chain))
    made.use_privatekey_file(str(identity.key))
    if ciphers:
        made.set_cipher_list(ciphers.encode())
    if ciphers13:
        made.set_tls13_ciphersuites(ciphers13.encode())
    if version is not None:
        made.set_min_proto_version(version)
        made.set_max_proto_version(version)
    if alpn:
        names = [name.encode() for name in alpn]
        # The first of ours that is offered, or else one that is not.
        made.set_alpn_select_callback(
            lambda _, offered: next((name for name in names if name in offered), names[0])
        )
    if client_root:
        made.load_verify_locations(client_root)
        made.set_verify(
            SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT, lambda *args: bool(args[-1])
        )
    return made


class MemoryServer:
    """One connection of a server. `alert` is the one that the client sent."""

    def __init__(self, server_context: SSL.Context) -> None:
        self.alert: int | None = None
        self.connection = SSL.Connection(server_context, None)
        self.connection.set_accept_state()
        self.connection.set_info_callback(self._note)

    def take(self, data: bytes) -> None:
        """Take what a client sent."""
        if data:
            self.connection.bio_write(data)
        # An error is for the client to notice; what it says of it is in `alert`.
        with suppress(SSL.Error):
            self.connection.do_handshake()

    def answer(self, data: bytes) -> bytes:
        """Take what a client sent and return what it gets."""
        self.take(data)
        return self.output()

    def output(self) -> bytes:
        """Return what is to be sent."""
        output = b""
        try:
            while True:
                output += self.connection.bio_read(65536)
        except SSL.WantReadError:
            return output

    def _note(self, _connection: SSL.Connection, where: int, code: int) -> None:
        if where & SSL.SSL_CB_ALERT and where & SSL.SSL_CB_READ:
            self.alert = code & 0xFF


def start(
    pki: Pki,
    settings: Settings | None = None,
    policy: Policy | None = None,
    remote: Address = LOCALHOST,
) -> ClientHandshake:
    """Make a client that wants HOST and trusts the test root, if nothing else is said."""
    return ClientHandshake(
        settings or Settings(host_name=HOST), policy or Policy(trust_store=pki.root), remote
    )


def shake_hands(client: ClientHandshake, server: MemoryServer) -> Result:
    """Let both talk until the client is done, and give the server the client's last words.

    Raises HandshakeError as the client does, after the server got the alert.
    """
    flight = client.start()
    while True:
        answer = server.answer(flight)
        if not answer:
            raise AssertionError("both wait for the other")
        flight = b""
        for record in split(answer):
            try:
                flight += client.receive_record(record)
            except HandshakeError:
                server.take(client.pending_output())
                raise
            if client.done:  # the rest is for the transport
                server.take(flight)
                return client.result
