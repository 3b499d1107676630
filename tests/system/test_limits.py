# SPDX-License-Identifier: BSD-3-Clause
"""A user has no more sockets that the daemon has to know than he may have, so that it has room for
those of others."""

from __future__ import annotations

import errno
import os
import resource
import socket
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ssad.wire import TlsOption
from tests.peers import hostile
from tests.peers.hostile import serving
from tests.system.daemon import PARAMETERS, await_condition, socket_count, written
from tests.system.netns import CLONE_NEWUSER, unshare
from tests.system.program import (
    await_child,
    connect,
    echo,
    get_bytes,
    in_child,
    refused,
    set_bytes,
    set_number,
    start_child,
    tls_error,
    tls_socket,
)
from tests.system.server import TlsListener, set_identity

if TYPE_CHECKING:
    from tests.peers.pki import Pki
    from tests.peers.servers import Server
    from tests.system.daemon import Daemon, Transport

PARAMETER = PARAMETERS / "sockets_per_user"
FILE_MAX = Path("/proc/sys/fs/file-max")

TRUSTED = TlsOption.TLS_TRUSTED_PEER_CERTIFICATES

# Nobody else's.
USER = 47110
OTHER = 47120

# How many sockets a user opens who means no good. 100,000 want some minutes and 4 GiB of memory.
MANY = int(os.environ.get("SOCKETS", "5000"))
PROCESSES = 4


def limited(value: int) -> AbstractContextManager[None]:
    """Let no user have more sockets than `value`."""
    return written(PARAMETER, value)


def opened_by(user: int, count: int) -> list[socket.socket]:
    """Return sockets that a process of `user` has opened, which has then ended."""
    ours, its = socket.socketpair()

    def open_them() -> None:
        with ExitStack() as opened:
            made = [opened.enter_context(tls_socket(host=None)) for _ in range(count)]
            socket.send_fds(its, [b"."], [sock.fileno() for sock in made])

    with ours, its:
        assert in_child(open_them, user=user) == 0
        descriptors = socket.recv_fds(ours, 1, count)[1]
    return [socket.socket(fileno=descriptor) for descriptor in descriptors]


def open_one() -> None:
    """Open a socket and close it."""
    tls_socket(host=None).close()


def too_many() -> None:
    """Check that no socket can be opened."""
    refused(errno.EMFILE, open_one)


def works_for(user: int, server: Server) -> None:
    """Check that a user can use a connection."""

    def use() -> None:
        with connect(server) as sock:
            echo(sock, b"I can")

    assert in_child(use, user=user) == 0


@pytest.mark.usefixtures("daemon")
class TestTheLimit:
    """As many sockets as the administrator says."""

    def test_who_has_reached_it_gets_emfile_and_others_still_connect(
        self, echo_server: Server, stack: ExitStack
    ) -> None:
        with limited(5):
            for sock in opened_by(USER, 5):
                stack.enter_context(sock)
            assert in_child(too_many, user=USER) == 0
            works_for(OTHER, echo_server)
            works_for(0, echo_server)

    def test_a_socket_that_is_closed_makes_room(self, stack: ExitStack) -> None:
        with limited(3):
            first, *others = opened_by(USER, 3)
            for sock in others:
                stack.enter_context(sock)
            first.close()
            assert in_child(open_one, user=USER) == 0
            stack.enter_context(opened_by(USER, 1)[0])
            assert in_child(too_many, user=USER) == 0

    def test_it_is_changed_while_sockets_are_open(self, stack: ExitStack) -> None:
        with limited(2):
            for sock in opened_by(USER, 2):
                stack.enter_context(sock)
            PARAMETER.write_text("3")
            assert in_child(open_one, user=USER) == 0
            # Those that are there stay.
            PARAMETER.write_text("1")
            assert in_child(too_many, user=USER) == 0

    def test_root_has_none(self, stack: ExitStack) -> None:
        with limited(0):
            stack.enter_context(tls_socket())
            assert in_child(too_many, user=USER) == 0

    def test_each_process_of_a_user_counts(self) -> None:
        def open_and_have_a_child_try() -> None:
            with tls_socket(host=None):
                assert in_child(too_many) == 0

        with limited(1):
            assert in_child(open_and_have_a_child_try, user=USER) == 0


@pytest.mark.usefixtures("daemon")
class TestWhoItCountsFor:
    """The real user who called socket(), and who gave him his ids."""

    def test_who_is_another_by_set_user_id_counts_as_himself(self, stack: ExitStack) -> None:
        def open_as_effective_root() -> None:
            os.setresuid(USER, 0, 0)
            with tls_socket(host=None):
                too_many()
                # What root opens does not count, but what USER has opened still does.
                os.setresuid(0, 0, 0)
                open_one()
                assert in_child(too_many, user=USER) == 0

        with limited(1):
            assert in_child(open_as_effective_root) == 0
            for sock in opened_by(USER, 1):
                stack.enter_context(sock)

    def test_a_namespace_of_his_own_gives_nobody_more(self, stack: ExitStack) -> None:
        def open_in_namespace() -> None:
            unshare(CLONE_NEWUSER)
            with tls_socket(host=None):
                too_many()

        with limited(2):
            stack.enter_context(opened_by(USER, 1)[0])
            assert in_child(open_in_namespace, user=USER) == 0
            assert in_child(open_one, user=USER) == 0

    def test_many_ids_in_a_namespace_have_one_limit(self) -> None:
        ours, its = socket.socketpair()

        def open_as_each() -> None:
            unshare(CLONE_NEWUSER)
            its.send(b".")
            its.recv(1)  # until the ids are given
            with ExitStack() as opened:
                for user in (0, 1):
                    os.setresuid(user, user, 0)
                    opened.enter_context(tls_socket(host=None))
                    os.setresuid(0, 0, 0)
                os.setresuid(2, 2, 0)
                too_many()

        with ours, its, limited(2):
            child = start_child(open_as_each, user=USER)
            ours.recv(1)
            # As newuidmap(1) gives them.
            Path(f"/proc/{child}/uid_map").write_text(f"0 {USER} 1\n1 {USER + 1} 2\n")
            ours.send(b".")
            assert await_child(child) == 0
            for user in (USER, USER + 1):
                assert in_child(open_one, user=user) == 0


def trust(sock: socket.socket, pki: Pki, size: int) -> None:
    """Set an option whose value has `size` bytes."""
    set_bytes(sock, TRUSTED, pki.root.read_bytes().ljust(size, b"\n"))


def take(sock: socket.socket, donor: socket.socket) -> None:
    """Take over what is set on another socket."""
    set_bytes(sock, TlsOption.TLS_CONTEXT, get_bytes(donor, TlsOption.TLS_ID))


@pytest.mark.usefixtures("daemon")
class TestWhatIsSet:
    """It counts as well: 4 KiB as much as a socket."""

    def test_more_than_the_limit_is_refused_and_what_was_set_before_stays(self, pki: Pki) -> None:
        def set_too_much() -> None:
            with tls_socket(host=None) as sock:
                trust(sock, pki, 12 << 10)
                too_many()
                refused(errno.ENOBUFS, lambda: trust(sock, pki, 16 << 10))
                assert "too much set on TLS sockets" in tls_error(sock)
                too_many()
                # What takes its place is less, and makes room.
                trust(sock, pki, (12 << 10) - 1)
                open_one()
                with tls_socket(host=None):
                    too_many()

        with limited(4):
            assert in_child(set_too_much, user=USER) == 0
            for _ in range(2):  # all of it is given back
                assert in_child(set_too_much, user=USER) == 0

    def test_what_the_daemon_refuses_does_not_count(self) -> None:
        def set_nonsense() -> None:
            with tls_socket(host=None) as sock:
                garbage = b"-----BEGIN CERTIFICATE-----\n".ljust(8 << 10, b"!")
                refused(errno.EINVAL, lambda: set_bytes(sock, TRUSTED, garbage))
                open_one()

        with limited(3):
            assert in_child(set_nonsense, user=USER) == 0

    def test_what_is_taken_over_counts_for_each_that_has_it(self, pki: Pki) -> None:
        def take_too_much() -> None:
            with tls_socket(host=None) as donor, tls_socket(host=None) as sock:
                trust(donor, pki, 12 << 10)
                take(sock, donor)
                with tls_socket(host=None) as third:
                    refused(errno.ENOBUFS, lambda: take(third, donor))
                    assert "too much set on TLS sockets" in tls_error(third)
                    # It is as it was: with little set, and served.
                    set_number(third, TlsOption.TLS_SESSION_REUSE, 1)
                donor.close()
                with tls_socket(host=None) as fourth, tls_socket(host=None):
                    take(fourth, sock)
                    too_many()

        with limited(9):
            assert in_child(take_too_much, user=USER) == 0

    def test_it_does_not_count_any_more_once_the_daemon_is_done_with_it(
        self, pki: Pki, echo_server: Server
    ) -> None:
        def use() -> None:
            with tls_socket() as sock:
                trust(sock, pki, 12 << 10)
                too_many()
                sock.connect((echo_server.address, echo_server.port))
                with tls_socket() as second:
                    trust(second, pki, 12 << 10)

        with limited(4):
            assert in_child(use, user=USER) == 0


class TestWhatCounts:
    """What the daemon has to know."""

    def test_a_connection_counts_only_if_the_daemon_relays_it(
        self, transport: Transport, echo_server: Server
    ) -> None:
        def connect_three() -> None:
            with ExitStack() as opened:
                for _ in range(2):
                    opened.enter_context(connect(echo_server))
                too_many() if transport == "channel" else open_one()

        with limited(2):
            assert in_child(connect_three, user=USER) == 0

    def test_an_accepted_one_as_well_for_the_user_of_the_listening_socket(
        self, transport: Transport, pki: Pki, stack: ExitStack
    ) -> None:
        with limited(2):
            sock = stack.enter_context(opened_by(USER, 1)[0])
            set_identity(sock, pki.ecdsa)
            sock.bind(("127.0.0.1", 0))
            sock.listen()
            listener = TlsListener(sock, *sock.getsockname())
            for _ in range(2):
                with connect(listener) as client, listener.accept() as server:
                    server.sendall(b"taken")
                    assert client.recv(5) == b"taken"
                    with connect(listener) as second:
                        if transport == "channel":
                            refused(errno.ECONNRESET, lambda: second.recv(1))
                        else:
                            listener.accept().close()
                    assert not listener.readable()
                # The first has made room, once it is closed on both sides.

    @pytest.mark.usefixtures("daemon")
    def test_one_whose_handshake_has_failed_does_not(self) -> None:
        def fail() -> None:
            with tls_socket() as sock:
                refused(errno.EPROTO, lambda: sock.connect((peer.address, peer.port)))
                open_one()

        with limited(1), serving(hostile.answer(hostile.GARBAGE)) as peer:
            assert in_child(fail, user=USER) == 0

    @pytest.mark.usefixtures("daemon")
    def test_a_listening_one_does_until_it_is_shut_down(self, pki: Pki, stack: ExitStack) -> None:
        with limited(1):
            sock = stack.enter_context(opened_by(USER, 1)[0])
            set_identity(sock, pki.ecdsa)
            sock.listen()
            assert in_child(too_many, user=USER) == 0
            sock.shutdown(socket.SHUT_RDWR)
            assert in_child(open_one, user=USER) == 0

    def test_one_that_could_not_be_opened_does_not(self, any_daemon: Daemon) -> None:
        def fail() -> None:
            for _ in range(3):
                refused(errno.ECANCELED, open_one)

        any_daemon.stop()
        with limited(1):
            assert in_child(fail, user=USER) == 0
            any_daemon.ensure()
            assert in_child(open_one, user=USER) == 0


@contextmanager
def held(user: int, count: int) -> Iterator[None]:
    """Have several processes of a user hold so many sockets."""
    share = count // PROCESSES
    ready, opened = socket.socketpair()
    end, wait = socket.socketpair()

    def hold() -> None:
        end.close()
        with ExitStack() as stack:
            for _ in range(share):
                stack.enter_context(tls_socket(host=None))
            opened.send(b".")
            wait.recv(1)  # until the other end is closed

    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    with ready, opened, end, wait, written(FILE_MAX, 4 * count + int(FILE_MAX.read_text())):
        resource.setrlimit(resource.RLIMIT_NOFILE, (share + 100, max(share + 100, limits[1])))
        try:
            children = [start_child(hold, user=user) for _ in range(PROCESSES)]
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        opened.close()
        for _ in children:
            assert ready.recv(1), "none that could be opened is to fail"
        yield
        end.close()
        for child in children:
            assert await_child(child) == 0


@pytest.mark.timeout(3000)
def test_many_sockets_of_one_user_leave_others_what_they_need(
    daemon: Daemon, echo_server: Server
) -> None:
    start = time.monotonic()
    with limited(MANY):
        with held(USER, MANY):
            took = time.monotonic() - start
            print(f"{socket_count()} sockets were opened in {took:.0f} s")
            assert in_child(too_many, user=USER) == 0
            works_for(OTHER, echo_server)
        await_condition("all are closed", lambda: socket_count() == 0, deadline=600)
        daemon.await_idle()
        print(f"and closed; after {time.monotonic() - start:.0f} s")
        works_for(USER, echo_server)
