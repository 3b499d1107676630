# SPDX-License-Identifier: BSD-3-Clause
"""python -m tests.unit.no_imports DIRECTORY: what a worker does for programs, with nothing left to
import. Exits 0 if that is possible; DIRECTORY holds a PKI."""

from __future__ import annotations

import ipaddress
import sys
from pathlib import Path

from ssad import daemon, records
from ssad.context import ServerContexts, TicketContexts
from ssad.handshake import ClientHandshake, Handshake, ServerHandshake
from ssad.policy import Policy
from ssad.settings import Settings
from ssad.wire import TlsOption
from tests.peers.pki import HOST, Identity, Pki


def settings(policy: Policy, pki: Pki, identity: Identity) -> Settings:
    """Set what takes the most of the libraries."""
    found = Settings()
    for option, value in (
        (TlsOption.TLS_CERTIFICATE_CHAIN, identity.chain.read_bytes()),
        (TlsOption.TLS_PRIVATE_KEY, identity.key.read_bytes()),
        (TlsOption.TLS_TRUSTED_PEER_CERTIFICATES, pki.root.read_bytes()),
        (TlsOption.TLS_HOSTNAME, "b\u00fccher.test".encode()),
        (TlsOption.TLS_HOSTNAME, HOST.encode()),
    ):
        found.set(option, value, policy)
    return found


def shake_hands(client: Handshake, server: Handshake) -> None:
    """Do a handshake over memory."""
    flight, receiver, sender = client.start() + server.start(), server, client
    while not (client.done and server.done):
        flight = b"".join(receiver.receive_record(record) for record in records.split(flight))
        receiver, sender = sender, receiver


def main() -> None:
    """Do it all."""
    pki = Pki(Path(sys.argv[1]))
    daemon.import_all()
    sys.meta_path.clear()  # from here on every import of something new fails
    policy = Policy(trust_store=pki.root)
    tickets = TicketContexts(policy)
    for kind in (pki.rsa, pki.ecdsa):
        for version in (0x0303, 0x0304):
            serving = settings(policy, pki, kind)
            serving.set(TlsOption.TLS_REQUEST_PEER_AUTH, (2).to_bytes(4, sys.byteorder), policy)
            serving.set(TlsOption.TLS_VERSION_MAX, version.to_bytes(4, sys.byteorder), policy)
            serving.listen_warnings()
            contexts = ServerContexts(serving, policy, tickets, 0)
            visiting = settings(policy, pki, pki.client)
            address = ipaddress.IPv4Address("127.0.0.1")
            shake_hands(ClientHandshake(visiting, policy, address), ServerHandshake(contexts))


if __name__ == "__main__":
    main()
