# SPDX-License-Identifier: BSD-3-Clause
"""Both transports do the same with what a server sends: kernel TLS, and the channel, where OpenSSL
reads. FUZZ_SEED and FUZZ_SECONDS are as in `test_control_records.py`.

OpenSSL is stricter than the module where nothing follows: it ends the connection after a record
between the parts of a message, an empty record of the handshake, several warnings in a row, and
no_renegotiation. Such records are left out here.
"""

from __future__ import annotations

import os
import random
import threading
import time
from typing import TYPE_CHECKING

import pytest

from tests.peers import servers, tls_peer
from tests.system.program import connect
from tests.system.record_model import Model
from tests.system.record_sequences import PATIENCE, play
from tests.system.server import Measured

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.peers.hostile import Peer
    from tests.peers.servers import Version
    from tests.system.conftest import Peers
    from tests.system.daemon import Transport

pytestmark = pytest.mark.long


@pytest.mark.timeout(0)
@pytest.mark.parametrize("version", servers.VERSIONS)
def test_each_transport_does_what_the_model_says(
    peers: Peers,
    transport: Transport,
    version: Version,
    capsys: pytest.CaptureFixture[str],
    record_testsuite_property: Callable[[str, object], None],
) -> None:
    connections: list[tuple[tls_peer.TlsConnection, threading.Event]] = []

    def act(connection: tls_peer.TlsConnection, peer: Peer) -> None:
        over = threading.Event()
        connections.append((connection, over))
        peer.report("connected")
        over.wait(PATIENCE)

    first = int(os.environ.get("FUZZ_SEED", random.SystemRandom().randrange(1 << 32)))
    end = time.monotonic() + float(os.environ.get("FUZZ_SECONDS", "10"))
    seed, records = first, 0
    with peers(act, version) as peer:
        while time.monotonic() < end or seed == first:
            try:
                source = random.Random(seed)  # noqa: S311 -- wants to be the same each time
                sock = connect(peer)
                peer.await_report("connected")
                connection, over = connections.pop()
                model = Model(version, "connected")
                if transport == "channel":
                    model.without_words()
                records += play(
                    sock, connection.raw, connection.sealer(), model, source, strict=True
                )
                over.set()
            except BaseException as error:
                error.add_note(f"FUZZ_SEED={seed}, {version}, {transport}")
                raise
            seed += 1
    Measured(capsys, record_testsuite_property)(
        f"random sequences, {version}, {transport}",
        f"{seed - first}, of {records} records (FUZZ_SEED={first})",
    )
