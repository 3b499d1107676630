# SPDX-License-Identifier: BSD-3-Clause
"""A TLS client in memory, OpenSSL without a socket, and the listener that it talks to."""

from __future__ import annotations

import socket
from contextlib import suppress
from typing import TYPE_CHECKING

from cryptography.hazmat.bindings.openssl.binding import Binding
from OpenSSL import SSL

from ssad.context import ServerContexts, TicketContexts
from ssad.errors import HandshakeError
from ssad.handshake import Result, ServerHandshake
from ssad.policy import Policy
from ssad.records import split
from ssad.settings import Settings
from ssad.wire import TlsOption
from tests.peers.pki import HOST

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from cryptography import x509

    from tests.peers.pki import Identity


def settings_of(*identities: Identity, **others: object) -> Settings:
    """Make the settings of a program that has set these identities."""
    made = Settings(**others)  # type: ignore[arg-type]
    for one in identities:
        made.set(TlsOption.TLS_CERTIFICATE_CHAIN, one.chain.read_bytes(), Policy())
        made.set(TlsOption.TLS_PRIVATE_KEY, one.key.read_bytes(), Policy())
    return made


def listen(
    settings: Settings,
    policy: Policy | None = None,
    tickets: TicketContexts | None = None,
    uid: int = 1000,
) -> ServerContexts:
    """Make the contexts of a listener."""
    policy = policy or Policy()
    return ServerContexts(settings, policy, tickets or TicketContexts(policy), uid)


def client_context(
    *,
    version: int | None = None,
    ciphers: str = "",
    sigalgs: str = "",
    groups: str = "",
    identity: Identity | None = None,
    trusted: Path | None = None,
) -> SSL.Context:
    """Make a client's context. With `trusted` it verifies the server's chain."""
    context = SSL.Context(SSL.TLS_CLIENT_METHOD)
    if version is not None:
        context.set_min_proto_version(version)
        context.set_max_proto_version(version)
    if ciphers:
        context.set_cipher_list(ciphers.encode())
    if sigalgs:
        # pyOpenSSL has no call for this one and the next.
        assert Binding.lib.SSL_CTX_set1_sigalgs_list(context._context, sigalgs.encode())
    if groups:
        assert Binding.lib.SSL_CTX_set1_curves_list(context._context, groups.encode())
    if identity is not None:
        context.use_certificate_chain_file(str(identity.chain))
        context.use_privatekey_file(str(identity.key))
    if trusted is not None:
        context.load_verify_locations(str(trusted))
        context.set_verify(SSL.VERIFY_PEER, lambda *args: bool(args[-1]))
    return context


class MemoryClient:
    """One connection of a client. `alert` is the one it got."""

    def __init__(
        self,
        context: SSL.Context | None = None,
        *,
        name: str | bytes = HOST,
        alpn: Sequence[str] = (),
        session: SSL.Session | None = None,
    ) -> None:
        """`session` must be one that began with the same context."""
        self.context = context or client_context()
        self.alert: int | None = None
        self.connection = SSL.Connection(self.context, None)
        self.connection.set_connect_state()
        self.connection.set_info_callback(self._note)
        if name:
            self.connection.set_tlsext_host_name(name.encode() if isinstance(name, str) else name)
        if alpn:
            self.connection.set_alpn_protos([one.encode() for one in alpn])
        if session is not None:
            self.connection.set_session(session)

    def again(self, name: str = HOST) -> MemoryClient:
        """Make a client that resumes this one's session."""
        # A session whose connection is freed without it can't be resumed (SSL_free(3)).
        self.connection.set_shutdown(SSL.SENT_SHUTDOWN | SSL.RECEIVED_SHUTDOWN)
        return MemoryClient(self.context, name=name, session=self.connection.get_session())

    @property
    def certificate(self) -> x509.Certificate | None:
        """What the server showed as its own."""
        return self.connection.get_peer_certificate(as_cryptography=True)

    def take(self, data: bytes) -> None:
        """Take what the server sent, in the handshake or after it."""
        if data:
            self.connection.bio_write(data)
        # An error is for the server to notice.
        with suppress(SSL.Error):
            self.connection.do_handshake()
            self.connection.recv(1, socket.MSG_PEEK)

    def answer(self, data: bytes) -> bytes:
        """Take what the server sent and return what it gets."""
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


def serve(server: ServerHandshake | ServerContexts, client: MemoryClient) -> Result:
    """Let both talk until the server is done, and give the client the server's last words.

    Raises HandshakeError as the server does, after the client got the alert.
    """
    if isinstance(server, ServerContexts):
        server = ServerHandshake(server)
    answer = server.start()
    assert answer == b""
    while not server.done:
        flight = client.answer(answer)
        if not flight:
            raise AssertionError("both wait for the other")
        answer = b""
        for record in split(flight):
            try:
                answer += server.receive_record(record)
            except HandshakeError:
                client.take(answer + server.pending_output())
                raise
    client.take(answer)
    return server.result
