# SPDX-License-Identifier: BSD-3-Clause
"""Whatever calls programs make, from several threads on the same sockets, with peers good and bad:
every call returns, nothing is left of it, and the daemon goes on."""

from __future__ import annotations

import subprocess
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest
from OpenSSL import SSL

from tests.fuzz.kcov import share
from tests.fuzz.seeds import seconds_of_run, seed_of_run
from tests.peers import hostile, tls_peer
from tests.peers.hostile import serving
from tests.peers.pki import HOST
from tests.system.program import connect, echo

if TYPE_CHECKING:
    import socket
    from contextlib import ExitStack
    from pathlib import Path

    from tests.peers.hostile import Peer, Script
    from tests.peers.pki import Pki
    from tests.peers.servers import Server
    from tests.system.daemon import Transport
    from tests.system.server import Measured

THREADS = 6

# No call has to wait for so long: an option's value goes to the daemon in pieces, each of which it
# has ten seconds to answer.
BOUND = 120

pytestmark = pytest.mark.timeout(seconds_of_run() + 600)


def unruly(pki: Pki) -> Script:
    """Return a script that sends control records between data, then leaves without a word."""

    def act(connection: tls_peer.TlsConnection, _peer: Peer) -> None:
        for _ in range(3):
            connection.send_sealed(hostile.APPLICATION_DATA, b"data" * 100)
            connection.send_sealed(tls_peer.ALERT, bytes((tls_peer.WARNING, 90)))  # user_canceled
            connection.send_sealed(hostile.APPLICATION_DATA, b"")
        connection.send_sealed(tls_peer.HANDSHAKE, tls_peer.KEY_UPDATE)

    shake_hands_and_act = tls_peer.tls(pki.ecdsa, act)

    def script(raw: socket.socket, peer: Peer) -> None:
        with suppress(SSL.Error):  # the client wanted something else
            shake_hands_and_act(raw, peer)

    return script


def test_threads_make_any_calls(
    transport: Transport,
    echo_server: Server,
    pki: Pki,
    clients: Path,
    stack: ExitStack,
    measured: Measured,
) -> None:
    seed = seed_of_run()
    measured("call fuzzing, FUZZ_SEED", str(seed))
    bad = [
        stack.enter_context(serving(script)).port
        for script in (
            hostile.silent,
            hostile.answer(hostile.GARBAGE),
            hostile.reset_after_hello,
            hostile.close_after_hello,
            unruly(pki),
        )
    ]
    # Every second connection goes to the good one.
    ports = [echo_server.port] * len(bad) + bad
    run = subprocess.run(
        [
            clients / "calls",
            *(str(number) for number in (seed, seconds_of_run() // 2, THREADS, BOUND)),
            *(HOST, pki.ecdsa.chain, pki.ecdsa.key),
            *(str(port) for port in ports),
        ],
        check=False,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, f"status {run.returncode}; {run.stderr}"
    with connect(echo_server) as sock:
        echo(sock, b"goes on")
    lines = [line.split() for line in run.stdout.splitlines()]
    done = [f"{name} {good}+{failed}" for name, good, failed in (x for x in lines if len(x) == 3)]
    measured(f"calls, {transport}", f"{lines[0][1]}: {', '.join(done)}")
    reached = {int(place, 16) for kind, place in (x for x in lines if len(x) == 2) if kind == "pc"}
    if reached:
        measured(f"places in the module that calls reached, {transport}", share(reached))
