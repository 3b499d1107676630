# SPDX-License-Identifier: BSD-3-Clause
"""A worker that changes over to another policy: what begins goes by it, what is there stays."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import ssl
import struct
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from ssad.errors import Refused
from ssad.policy import TLS_1_2, TLS_1_3, Policy
from ssad.settings import AUTH_OPTIONAL
from ssad.wire import TlsOption
from tests.peers.pki import HOST, Pki
from tests.unit.test_server import POLICY, Listener, Worker, received, working


@pytest.fixture
def policy(pki: Pki) -> Policy:
    return replace(POLICY, trust_store=pki.root)


@pytest.fixture
async def worker(policy: Policy) -> AsyncIterator[Worker]:
    async with working(policy) as worker:
        yield worker


def change(worker: Worker, policy: Policy) -> None:
    """Let it change over."""
    worker.server.adopt(worker.server.prepare(policy))


def tls_server(pki: Pki) -> ssl.SSLContext:
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made.load_cert_chain(pki.ecdsa.chain, pki.ecdsa.key)
    return made


def client(pki: Pki) -> ssl.SSLContext:
    trust = ssl.create_default_context(cafile=str(pki.root))
    trust.maximum_version = ssl.TLSVersion.TLSv1_2
    return trust


async def visit(port: int, trust: ssl.SSLContext) -> None:
    """Do a handshake with a listening socket."""
    _, writer = await asyncio.open_connection(
        "127.0.0.1", port, ssl=trust, server_hostname=HOST, ssl_handshake_timeout=20
    )
    writer.transport.abort()
    with contextlib.suppress(OSError):
        await writer.wait_closed()


async def test_a_connect_goes_by_the_new_policy_and_a_channel_stays(
    worker: Worker, policy: Policy, pki: Pki
) -> None:
    async with Listener(tls_server(pki)) as listener:
        for socket_id in (1, 2, 3, 4):
            await worker.open(socket_id)
            await worker.set(TlsOption.TLS_HOSTNAME, HOST.encode(), socket_id)
        assert (await worker.connect(listener.port, 1))["error"] == 0

        change(worker, replace(policy, version_max=TLS_1_2))
        assert (await worker.connect(listener.port, 4))["version"] == TLS_1_2

        change(worker, replace(policy, trust_store=pki.unknown_root))
        completion = await worker.connect(listener.port, 2)
        assert completion["error"] == errno.EPROTO
        assert "the policy wants a complete chain" in completion["text"]
        program = worker.programs[0]
        program.sendall(b"still there")
        assert await received(program) == b"still there"

        change(worker, policy)

        assert (await worker.connect(listener.port, 3))["error"] == 0


async def test_a_listener_goes_by_the_new_policy_or_refuses_until_it_can(
    worker: Worker, policy: Policy, pki: Pki
) -> None:
    port = await worker.listen(pki)
    trust = client(pki)
    await visit(port, trust)
    assert (await worker.accepted())["version"] == TLS_1_2

    change(worker, replace(policy, version_min=TLS_1_3))
    with pytest.raises(ssl.SSLError):
        await visit(port, trust)
    assert "the policy wants TLS 1.3" in (await worker.accepted())["text"]
    trust.maximum_version = ssl.TLSVersion.TLSv1_3
    await visit(port, trust)
    assert (await worker.accepted())["version"] == TLS_1_3


async def test_a_listener_whose_own_settings_contradict_the_policy_refuses(
    worker: Worker, policy: Policy, pki: Pki
) -> None:
    options = {
        TlsOption.TLS_TRUSTED_PEER_CERTIFICATES: pki.root.read_bytes(),
        TlsOption.TLS_REQUEST_PEER_AUTH: struct.pack("=I", AUTH_OPTIONAL),
    }
    port = await worker.listen(pki, 2, options)
    await visit(port, client(pki))
    assert (await worker.accepted())["error"] == 0

    change(worker, replace(policy, program_trust=False))
    with pytest.raises((ssl.SSLError, ConnectionError)):
        await visit(port, client(pki))
    refusal = await worker.accepted()
    assert refusal["error"] == errno.EPROTO
    assert refusal["text"] == (
        "The policy has changed, and this socket can't serve under it: "
        "The policy does not let programs choose whom they trust."
    )

    change(worker, policy)
    await visit(port, client(pki))
    assert (await worker.accepted())["error"] == 0


async def test_what_can_not_be_prepared_changes_nothing(
    worker: Worker, policy: Policy, pki: Pki
) -> None:
    port = await worker.listen(pki)
    with pytest.raises(Refused, match="Not a directory"):
        worker.server.prepare(replace(policy, trust_store=pki.root / "none", version_min=TLS_1_3))
    await visit(port, client(pki))
    assert (await worker.accepted())["version"] == TLS_1_2


async def test_a_listener_that_comes_between_preparing_and_adopting_goes_by_the_new_policy(
    worker: Worker, policy: Policy, pki: Pki
) -> None:
    first = await worker.listen(pki, 1)
    prepared = worker.server.prepare(replace(policy, version_min=TLS_1_3))
    second = await worker.listen(pki, 2)
    worker.server.adopt(prepared)
    for port in (first, second):
        with pytest.raises(ssl.SSLError):
            await visit(port, client(pki))
        assert (await worker.accepted())["error"] == errno.EPROTO


async def test_options_that_were_fine_do_not_outlive_the_policy(
    worker: Worker, policy: Policy
) -> None:
    await worker.open()
    cipher = b"TLS_AES_128_GCM_SHA256"
    assert await worker.set(TlsOption.TLS_TRUSTED_CIPHERS, cipher) == {"error": 0}
    change(worker, replace(policy, ciphers13="TLS_AES_256_GCM_SHA384"))
    completion = await worker.connect(1)
    assert completion["error"] == errno.EINVAL
    assert "No cipher is left" in completion["text"]


async def test_one_user_can_not_take_all_connects(policy: Policy, pki: Pki) -> None:
    async with (
        working(replace(policy, connects_total=2, connects_per_user=1)) as worker,
        Listener(tls_server(pki)) as listener,
    ):
        silent = socket.create_server(("127.0.0.1", 0))
        for socket_id, uid in ((1, 1), (2, 1), (3, 2)):
            await worker.open(socket_id, uid=uid)
            await worker.set(TlsOption.TLS_HOSTNAME, HOST.encode(), socket_id)
        worker.begin_connect(silent.getsockname()[1], 1)
        worker.begin_connect(listener.port, 2)
        # The other user's is done, though the second of the first user came before it.
        third = worker.begin_connect(listener.port, 3)
        assert (await worker.completion(third))["error"] == 0
        silent.close()
