# SPDX-License-Identifier: BSD-3-Clause
"""Nobody gains by the daemon, or by another's socket, what he could not have alone."""

from __future__ import annotations

import errno
import os
import socket
import struct
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ssad.wire import FAMILY_NAME, GROUP_EVENTS, Attribute, Command, TlsOption
from tests.peers import tls_peer
from tests.peers.hostile import serving
from tests.peers.pki import Identity
from tests.system.daemon import sockets
from tests.system.netlink import (
    CTRL_ATTR_FAMILY_NAME,
    CTRL_CMD_GETFAMILY,
    GENL_ID_CTRL,
    SOL_NETLINK,
    Raw,
    attribute,
    attributes,
    u32,
    u64,
)
from tests.system.netns import (
    CLONE_NEWNET,
    CLONE_NEWNS,
    CLONE_NEWUSER,
    raise_loopback,
    unshare,
)
from tests.system.program import (
    NOBODY,
    await_child,
    connect,
    echo,
    get_id,
    in_child,
    name_of,
    refused,
    set_text,
    start_child,
    tls_socket,
)
from tests.system.server import await_queued, listening

if TYPE_CHECKING:
    from tests.peers.hostile import Peer
    from tests.peers.pki import Pki
    from tests.system.daemon import Daemon

pytestmark = pytest.mark.usefixtures("daemon")

NETLINK_ADD_MEMBERSHIP = 1
# <linux/genetlink.h>
CTRL_ATTR_MCAST_GROUPS = 7
CTRL_ATTR_MCAST_GRP_NAME = 1
CTRL_ATTR_MCAST_GRP_ID = 2

FILES = (
    TlsOption.TLS_TRUSTED_PEER_CERTIFICATES,
    TlsOption.TLS_CERTIFICATE_CHAIN,
    TlsOption.TLS_PRIVATE_KEY,
)


def check_file(sock: socket.socket, path: Path | str, *errors: int) -> None:
    """Check that no option takes this file."""
    for option in FILES:
        found = 0
        try:
            set_text(sock, option, str(path))
        except OSError as error:
            found = error.errno or -1
        assert found in errors, f"{option.name} {path}: {name_of(found)}"


@pytest.fixture
def secret(pki: Pki, directory: Path) -> Path:
    """Give a certificate that root alone can read, in a directory that is open to all."""
    path = directory / "secret.pem"
    path.write_bytes(pki.ecdsa.chain.read_bytes())
    path.chmod(0o600)
    return path


class TestFiles:
    """Those that a program names are opened as the program, when it names them."""

    def test_what_the_caller_cannot_read_is_not_read(self, secret: Path, directory: Path) -> None:
        link = directory / "link"
        link.symlink_to(secret)
        closed = directory / "closed"
        closed.mkdir(mode=0o700)
        (closed / "open.pem").write_bytes(secret.read_bytes())

        def try_them() -> None:
            with tls_socket() as sock:
                for path in (secret, link, closed / "open.pem", "/proc/1/mem", "/etc/shadow"):
                    check_file(sock, path, errno.EACCES)
                check_file(sock, "/proc/self/root" + str(secret), errno.EACCES)

        assert in_child(try_them, user=NOBODY) == 0

    def test_what_is_no_ordinary_file_is_not_read(self, directory: Path) -> None:
        fifo = directory / "isolation.fifo"
        os.mkfifo(fifo)
        loop = directory / "loop"
        loop.symlink_to(loop)
        with tls_socket() as sock, socket.socket(socket.AF_UNIX) as bound:
            bound.bind(str(directory / "unix"))
            check_file(sock, fifo, errno.EINVAL)
            check_file(sock, loop, errno.ELOOP)
            check_file(sock, directory / "unix", errno.ENXIO)
            check_file(sock, directory, errno.EISDIR)
            check_file(sock, "/dev/zero", errno.EINVAL)
            check_file(sock, "/dev/tty", errno.ENXIO, errno.EINVAL)
            # Its length is told as 0, but it has more: as a file that grows.
            check_file(sock, "/proc/cpuinfo", errno.EINVAL)
            check_file(sock, "/proc/self/mem", errno.EIO, errno.EINVAL)

    def test_the_effective_user_decides_at_the_time_of_the_call(self, secret: Path) -> None:
        def change() -> None:
            with tls_socket() as sock:
                # As a program that is set-user-id to root, run by an ordinary user.
                os.setresuid(NOBODY, 0, 0)
                set_text(sock, TlsOption.TLS_TRUSTED_PEER_CERTIFICATES, str(secret))
                os.seteuid(NOBODY)
                check_file(sock, secret, errno.EACCES)
                os.seteuid(0)
                set_text(sock, TlsOption.TLS_CERTIFICATE_CHAIN, str(secret))

        assert in_child(change) == 0

    def test_a_socket_of_root_opens_nothing_for_who_is_given_it(self, secret: Path) -> None:
        with tls_socket() as sock:

            def use() -> None:
                check_file(sock, secret, errno.EACCES)
                refused(errno.EACCES, lambda: sock.bind(("127.0.0.1", 80)))

            assert in_child(use, user=NOBODY) == 0


class TestUserNamespaces:
    """Who is root in a namespace of his own is an ordinary user outside."""

    def test_he_can_use_tls_sockets_in_it(self, pki: Pki, directory: Path) -> None:
        key = directory / "open.key"
        key.write_bytes(pki.ecdsa.key.read_bytes())
        identity = Identity(pki.ecdsa.chain, key)

        def act(connection: tls_peer.TlsConnection, _peer: Peer) -> None:
            connection.send(connection.receive(4))
            connection.await_close_notify()

        def alone() -> None:
            unshare(CLONE_NEWUSER | CLONE_NEWNET)
            raise_loopback()
            with serving(tls_peer.tls(identity, act)) as peer, connect(peer) as sock:
                echo(sock, b"here")
            with tls_socket(host=None) as listener:
                # A port of his own namespace.
                listener.bind(("127.0.0.1", 443))
                assert listener.getsockname() == ("127.0.0.1", 443)

        assert in_child(alone, user=NOBODY) == 0

    def test_he_has_no_more_rights_outside(self, secret: Path) -> None:
        with tls_socket(), Raw() as outside:
            family = outside.family

            def try_all() -> None:
                unshare(CLONE_NEWUSER)
                with tls_socket() as sock, Raw() as raw:
                    refused(errno.EACCES, lambda: sock.bind(("127.0.0.1", 80)))
                    check_file(sock, secret, errno.EACCES)
                    assert raw.request(Command.REGISTER, u32(Attribute.DAEMON, 1)).error == (
                        errno.EPERM
                    )
                    assert [entry["socket"] for entry in sockets()] == [get_id(sock)]
                unshare(CLONE_NEWNET)
                # The family is there in the initial network namespace only.
                with Raw() as raw:
                    assert raw.family == 0
                    raw.family = family
                    for command in (Command.REGISTER, Command.MODULE_GET):
                        assert raw.request(command).error == errno.ENOENT
                    assert raw.request(Command.SOCKET_GET, dump=True).error == errno.ENOENT

            assert in_child(try_all, user=NOBODY) == 0

    def test_he_hears_of_nothing(self) -> None:
        group = events_group()

        def listen() -> None:
            unshare(CLONE_NEWUSER | CLONE_NEWNET)
            with Raw() as raw:
                # As root of this namespace he may join; but what is sent is sent elsewhere.
                raw.socket.setsockopt(SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, group)
                tls_socket().close()
                raw.socket.setblocking(False)  # noqa: FBT003 -- takes no keyword
                refused(errno.EAGAIN, lambda: raw.socket.recv(1 << 16))

        assert in_child(listen, user=NOBODY) == 0


def events_group() -> int:
    """Ask for the number of the multicast group, as any user may."""
    with Raw() as raw:
        name = attribute(CTRL_ATTR_FAMILY_NAME, FAMILY_NAME.encode() + b"\0")
        request = struct.pack("=BBH", CTRL_CMD_GETFAMILY, 2, 0) + name
        ((_, found),) = raw.send(GENL_ID_CTRL, request).replies
    groups = [
        dict(attributes(value))
        for _, value in attributes(dict(attributes(found))[CTRL_ATTR_MCAST_GROUPS])
    ]
    numbers = {
        group[CTRL_ATTR_MCAST_GRP_NAME]: struct.unpack("=I", group[CTRL_ATTR_MCAST_GRP_ID])[0]
        for group in groups
    }
    return int(numbers[GROUP_EVENTS.encode() + b"\0"])


class TestOthersSockets:
    """Knowing the number of a socket is of no use."""

    def test_a_connection_is_brought_by_the_worker_only(self, pki: Pki) -> None:
        with listening(pki.ecdsa) as listener, Raw() as root:
            body = u64(Attribute.SOCKET, get_id(listener.sock)) + u32(Attribute.ERROR, 0)
            # Even root, unless it is the worker.
            answer = root.request(Command.ACCEPTED, body)
            assert answer.error == errno.EPERM, str(answer)

            def bring() -> None:
                with Raw() as raw:
                    for carried in (body, body + u32(Attribute.ENDPOINT_FD, 0)):
                        assert raw.request(Command.ACCEPTED, carried).error == errno.EPERM
                    refusal = u64(Attribute.SOCKET, get_id(listener.sock))
                    refusal += u32(Attribute.ERROR, errno.EPROTO)
                    assert raw.request(Command.ACCEPTED, refusal).error == errno.EPERM

            assert in_child(bring, user=NOBODY) == 0
            await_queued(get_id(listener.sock), 0)


class TestNames:
    """What the daemon is told of a program, by which it chooses the policy."""

    @pytest.mark.parametrize("flags", [0, CLONE_NEWNS, CLONE_NEWUSER])
    def test_a_program_has_a_name_where_nobody_else_can_give_it(
        self, any_daemon: Daemon, flags: int
    ) -> None:
        def make() -> None:
            if flags:
                unshare(flags)
            tls_socket(host=None).close()

        any_daemon.stop()
        with Raw() as raw:
            register(raw)
            child = start_child(make, user=NOBODY if flags == CLONE_NEWUSER else None)
            carried = grant(raw, Command.SOCKET)
            assert await_child(child) == 0
            assert carried.get(Attribute.EXECUTABLE) == (None if flags else own_name())

    def test_a_listener_is_its_programs_when_another_worker_gets_it(
        self, any_daemon: Daemon
    ) -> None:
        made: list[socket.socket] = []

        def listen() -> None:
            made.append(tls_socket(host=None))
            made[0].listen()

        any_daemon.stop()
        listener = threading.Thread(target=listen)
        with Raw() as raw:
            register(raw)
            listener.start()
            first = grant(raw, Command.SOCKET)
            grant(raw, Command.LISTEN)
            listener.join()
        with Raw() as raw, made[0]:
            register(raw)
            second = grant(raw, Command.SOCKET)
            grant(raw, Command.LISTEN)
        for attribute_ in (Attribute.EXECUTABLE, Attribute.PID, Attribute.UID, Attribute.COMM):
            assert first[attribute_] == second[attribute_]
        assert second[Attribute.EXECUTABLE] == own_name()


def own_name() -> bytes:
    """Return the path of this program, as an attribute has it."""
    return bytes(Path("/proc/self/exe").readlink()) + b"\0"


def register(raw: Raw) -> None:
    """Be the worker."""
    answer = raw.request(Command.REGISTER, u32(Attribute.DAEMON, os.getpid()))
    assert answer.error == 0, str(answer)


def grant(raw: Raw, command: Command) -> dict[int, bytes]:
    """Wait for the next request, which must be `command`, and grant it. Return its attributes."""
    found, carried = raw.unasked()
    assert found == command, f"wanted {command.name}, found {Command(found).name}"
    request = attribute(Attribute.REQUEST, carried[Attribute.REQUEST])
    answer = raw.request(Command.COMPLETE, request + u32(Attribute.ERROR, 0))
    assert answer.error == 0, str(answer)
    return carried
