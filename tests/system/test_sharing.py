# SPDX-License-Identifier: BSD-3-Clause
"""One TLS socket in several hands: descriptors that are passed on, and pollers that share."""

from __future__ import annotations

import os
import select
import socket
from typing import TYPE_CHECKING

import pytest

from ssad.wire import IPPROTO_TLS
from tests.peers import clients
from tests.peers.clients import Target
from tests.system.program import await_child, connect, echo, receive_exactly, start_child
from tests.system.server import DEADLINE, listening

if TYPE_CHECKING:
    from tests.peers.pki import Pki
    from tests.peers.servers import Server


@pytest.mark.usefixtures("transport")
def test_a_descriptor_is_passed_to_another_process(echo_server: Server) -> None:
    here, there = socket.socketpair()
    with here, there:

        def act() -> None:
            _data, (descriptor,), _flags, _address = socket.recv_fds(there, 1, 1)
            with socket.socket(fileno=descriptor) as passed:
                assert passed.proto == IPPROTO_TLS
                echo(passed, b"from the other process")

        child = start_child(act)
        with connect(echo_server) as sock:
            socket.send_fds(here, [b"!"], [sock.fileno()])
        assert await_child(child) == 0


@pytest.mark.usefixtures("transport")
def test_a_duplicate_is_the_same_connection(echo_server: Server) -> None:
    with connect(echo_server) as sock, sock.dup() as copy:
        sock.send(b"data")
        assert receive_exactly(copy, 4) == b"data"
        sock.close()  # says no goodbye
        echo(copy, b"still here")
        copy.shutdown(socket.SHUT_WR)
        assert copy.recv(1) == b""


@pytest.mark.usefixtures("daemon")
def test_pollers_that_exclude_each_other_are_woken_one_by_one(pki: Pki) -> None:
    with listening(pki.ecdsa) as listener:
        pollers = [select.epoll() for _ in range(3)]
        for poller in pollers:
            poller.register(listener.sock, select.EPOLLIN | select.EPOLLEXCLUSIVE)
        trust = clients.context(pki.root)
        with clients.connect(trust, Target(listener.port, pki.root)):
            told = select.select(pollers, [], [], DEADLINE)[0]
            assert told
            with listener.sock.accept()[0] as accepted:
                os.set_blocking(accepted.fileno(), False)
            assert [each.poll(0) for each in pollers] == [[], [], []]
        for poller in pollers:
            poller.close()
