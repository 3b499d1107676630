# SPDX-License-Identifier: BSD-3-Clause
"""From a finished handshake to what carries the data. The sockets are real and of a kind that
kernel TLS can't be put onto; the server is OpenSSL's, in memory."""

from __future__ import annotations

import asyncio
import errno
import socket

import pytest

from ssad.connection import Connection, Establisher
from ssad.errors import HandshakeError
from ssad.policy import Policy, TransportChoice
from ssad.revocation import Checker
from ssad.wire import Transport
from tests.peers.pki import Pki
from tests.unit.memory_server import MemoryServer, context, start

GCM = "TLS_AES_128_GCM_SHA256"
CCM = "TLS_AES_128_CCM_SHA256"  # which kernel TLS is never asked for


async def answer(sock: socket.socket, server: MemoryServer) -> None:
    """Be a server until the client closes its end."""
    loop = asyncio.get_running_loop()
    while data := await loop.sock_recv(sock, 1 << 16):
        await loop.sock_sendall(sock, server.answer(data))


async def established(
    endpoint: socket.socket, peer: socket.socket, pki: Pki, transport: TransportChoice, cipher: str
) -> Connection:
    """Establish a connection by a policy of this transport and this cipher."""
    policy = Policy(trust_store=pki.root, transport=transport, ciphers13=cipher)
    server = MemoryServer(context(pki.ecdsa, ciphers13=cipher))
    answering = asyncio.create_task(answer(peer, server))
    try:
        return await Establisher(policy, Checker(policy)).establish(
            endpoint, lambda: start(pki, policy=policy), uid=1
        )
    finally:
        answering.cancel()


def pair() -> tuple[socket.socket, socket.socket]:
    """Make both ends of a connection that is not TCP's."""
    ends = socket.socketpair()
    for end in ends:
        end.settimeout(0)
    return ends


@pytest.mark.parametrize(
    ("cipher", "why"),
    [
        (CCM, f"Kernel TLS can't do {CCM}."),
        (GCM, "The kernel did not put TLS onto the TCP connection: Operation not supported."),
    ],
    ids=["a cipher that it lacks", "a socket that it does not take"],
)
async def test_what_kernel_tls_can_not_do_is_refused_if_the_policy_wants_nothing_else(
    pki: Pki, cipher: str, why: str
) -> None:
    endpoint, peer = pair()
    with peer:
        with pytest.raises(HandshakeError) as caught:
            await established(endpoint, peer, pki, "ktls", cipher)
        assert caught.value.errno == errno.ECONNABORTED
        assert caught.value.text == f"The policy wants kernel TLS for every connection. {why}"
        assert endpoint.fileno() == -1


@pytest.mark.parametrize("cipher", [CCM, GCM])
async def test_what_kernel_tls_can_not_do_is_relayed_if_the_policy_leaves_it_open(
    pki: Pki, cipher: str
) -> None:
    endpoint, peer = pair()
    with peer:
        connection = await established(endpoint, peer, pki, "auto", cipher)
        assert connection.transport is Transport.CHANNEL
        assert connection.result.cipher == cipher
        connection.close()
