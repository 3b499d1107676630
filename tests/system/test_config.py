# SPDX-License-Identifier: BSD-3-Clause
"""The policy file: what stops a start, and how another policy takes the place of one in force."""

from __future__ import annotations

import errno
import json
import os
import signal
import ssl
import threading
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner, Result

from ssad import reloads
from ssad.cli import main
from ssad.exits import Exit
from ssad.wire import TlsOption
from tests.peers import clients, servers
from tests.peers.clients import Target
from tests.peers.hostile import serving
from tests.system.daemon import await_condition
from tests.system.program import (
    connect,
    echo,
    get_number,
    get_text,
    receive_exactly,
    refused,
    set_number,
    tls_error,
    tls_socket,
)
from tests.system.server import Events, await_workers, echo_all, listening, served
from tests.system.test_cli import ssad

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator
    from pathlib import Path

    from tests.peers.hostile import Peer, Script
    from tests.peers.pki import Identity, Pki
    from tests.peers.servers import Server, Version
    from tests.system.daemon import Daemon
    from tests.system.server import TlsListener

TLS_1_2 = 0x0303


class PolicyFile:
    """A policy file that the daemon's user can read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.write("")

    def write(self, text: str) -> None:
        """Write the whole of it."""
        self.path.write_text(text)
        self.path.chmod(0o644)


@pytest.fixture
def policy(directory: Path) -> Iterator[PolicyFile]:
    """Have an empty policy file: all defaults."""
    made = PolicyFile(directory / "ssad.toml")
    yield made
    made.path.unlink()


@pytest.mark.usefixtures("no_daemon")
def test_a_faulty_policy_stops_the_start_and_says_where(
    policy: PolicyFile, pki: Pki, directory: Path
) -> None:
    path = str(policy.path)

    def failed_start(*arguments: str) -> list[str]:
        run = ssad("start", "--foreground", "--config", *arguments)
        assert run.returncode == Exit.FAILED, run.stderr
        return run.stderr.splitlines()

    policy.write('[tls]\nversion_min = 1.3\n\n[limits]\nhandshake = 5\nconnects_total = "all"\n')
    faults = [
        f'{path}:2: tls.version_min: wanted a string, found the float 1.3; allowed: "1.2", "1.3".',
        (
            f"{path}:5: limits.handshake: unknown key. It belongs into [deadlines]. Allowed in "
            "[limits]: handshakes_per_listener, handshakes_total, connects_total, "
            "connects_per_user."
        ),
        (
            f"{path}:6: limits.connects_total: wanted an integer, "
            'found the string "all"; allowed: 1 to 65536.'
        ),
    ]
    assert failed_start(path) == ["ssad: The policy can't be used.", *faults]
    run = command("config", "check", "--config", path)
    assert run.exit_code == Exit.FAILED
    assert run.output.splitlines()[1:] == faults

    # Readable for root, and not for the user that the daemon runs as.
    store = directory / "secret.pem"
    store.write_bytes(pki.root.read_bytes())
    store.chmod(0o600)
    policy.write(f'[trust]\n# whom to trust\nstore = "{store}"\n')
    said = failed_start(path)
    assert said[1].startswith(f"{path}:3: trust.store: The trust store {store} can't be used: Perm")
    assert command("config", "check", "--config", path).exit_code == Exit.DONE
    policy.path.chmod(0o600)
    said = failed_start(path)
    assert said[1].startswith(f"{path}: The policy file can't be read: Permission denied for user")

    assert command("reload").exit_code == Exit.NOT_RUNNING


def command(*arguments: str) -> Result:
    """Run a command in this process, for to start Python takes seconds here."""
    return CliRunner().invoke(main, arguments)


def reload(*, fails: bool = False) -> str:
    """Run `ssad reload`; return what it said."""
    run = command("reload")
    assert run.exit_code == (Exit.FAILED if fails else Exit.DONE), run.output
    return run.output


def hang_up(daemon: Daemon) -> None:
    """Send SIGHUP, and wait until the daemon is done with it."""
    before = reloads.read(daemon.pid)
    assert before is not None
    os.kill(daemon.pid, signal.SIGHUP)

    def done() -> bool:
        now = reloads.read(daemon.pid)
        return now is not None and now.finished > before.started

    await_condition("the policy was read again", done)


def old_server(identity: Identity) -> Script:
    """Make a server that speaks TLS 1.2 at most, and says hello."""
    trust = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trust.load_cert_chain(identity.chain, identity.key)
    trust.maximum_version = ssl.TLSVersion.TLSv1_2

    def script(raw: socket.socket, _: Peer) -> None:
        with trust.wrap_socket(raw, server_side=True) as sock:
            sock.sendall(b"hello")

    return script


def transport_of(sock: socket.socket) -> str:
    return get_text(sock, TlsOption.TLS_TRANSPORT)


def client_of(listener: TlsListener, pki: Pki, version: Version) -> ssl.SSLSocket:
    """Connect a client that speaks this version only."""
    trust = clients.context(pki.root, version)
    return clients.connect(trust, Target(listener.port, pki.root))


@pytest.mark.parametrize("count", [1, 3])
def test_a_reload_changes_what_begins_and_leaves_what_is_there(
    any_daemon: Daemon,
    policy: PolicyFile,
    pki: Pki,
    echo_server: Server,
    stack: ExitStack,
    count: int,
) -> None:
    any_daemon.ensure("ktls", "--config", str(policy.path), worker_count=count)
    first_pids = sorted(any_daemon.worker_pids)
    old = stack.enter_context(serving(old_server(pki.ecdsa)))
    listener = stack.enter_context(listening(pki.ecdsa))
    stack.enter_context(served(listener, echo_all))

    def let_in(version: Version) -> None:
        # Each listener has one worker; that each worker changes over is seen below.
        with client_of(listener, pki, version) as client:
            client.sendall(b"echo")
            assert client.recv(4) == b"echo"

    def shut_out() -> None:
        # Sockets that are there at the same time go to different workers.
        with ExitStack() as opened:
            for _ in range(count):
                sock = opened.enter_context(tls_socket())
                refused(errno.EPROTO, partial(sock.connect, (old.address, old.port)))
                assert "the policy wants TLS 1.3" in tls_error(sock)
        with pytest.raises(OSError, match=r"(?i)version|alert"):
            client_of(listener, pki, "TLSv1.2")

    over_ktls = [stack.enter_context(connect(echo_server)) for _ in range(count)]
    accepted = stack.enter_context(client_of(listener, pki, "TLSv1.2"))
    let_in("TLSv1.2")

    policy.write('[transport]\nmode = "channel"\n')
    hang_up(any_daemon)
    over_channel = [stack.enter_context(connect(echo_server)) for _ in range(count)]
    assert {transport_of(sock) for sock in over_ktls} == {"ktls"}
    assert {transport_of(sock) for sock in over_channel} == {"channel"}

    policy.write('[tls]\nversion_min = "1.3"\n')
    assert reload() == ""
    shut_out()
    let_in("TLSv1.3")

    policy.write('[tls]\nversion_min = "1.2"\nversion_max = "1.4"\n')
    assert f"{policy.path}:3: tls.version_max: wanted a string, found" in reload(fails=True)
    shut_out()
    told = json.loads(command("status", "--trust-store", str(pki.root), "--json").output)
    assert told["config"] == str(policy.path)
    assert "would not start with this policy" in told["problems"][0]

    for sock in over_channel:
        echo(sock, b"still there")
        sock.close()
    # Who takes the place of a worker goes by the policy in force, whatever the file says.
    any_daemon.kill_worker(first_pids[0])
    await_workers(count)
    shut_out()

    for sock in over_ktls:
        echo(sock, b"still there")
    accepted.sendall(b"still there")
    assert accepted.recv(16) == b"still there"

    policy.write("")
    assert reload() == ""
    with connect(old) as sock:
        assert get_number(sock, TlsOption.TLS_VERSION_CONN) == TLS_1_2
        assert receive_exactly(sock, 5) == b"hello"
    let_in("TLSv1.2")


def only_old(sock: socket.socket) -> None:
    """Have a socket want what a policy may forbid."""
    set_number(sock, TlsOption.TLS_VERSION_MAX, TLS_1_2)


def test_a_listener_that_the_policy_forbids_refuses_until_it_is_allowed_again(
    any_daemon: Daemon, policy: PolicyFile, pki: Pki
) -> None:
    any_daemon.ensure("ktls", "--config", str(policy.path))
    with Events() as events, listening(pki.ecdsa, prepare=only_old) as listener:
        policy.write('[tls]\nversion_min = "1.3"\n')
        reload()
        for version in servers.VERSIONS:
            with pytest.raises(OSError, match=r"(?i)eof|reset"):
                client_of(listener, pki, version)
            assert "this socket can't serve under it" in events.refusal()["text"]
        # What is in force stays so if nothing can be read.
        policy.path.chmod(0o600)
        assert "Permission denied for user" in reload(fails=True)
        with pytest.raises(OSError, match=r"(?i)eof|reset"):
            client_of(listener, pki, "TLSv1.2")
        policy.write("")
        reload()
        with client_of(listener, pki, "TLSv1.2") as client, listener.accept() as sock:
            client.sendall(b"served")
            assert receive_exactly(sock, 6) == b"served"


def test_accept_tells_that_a_new_worker_refuses_and_goes_on_once_it_does_not(
    any_daemon: Daemon, policy: PolicyFile, pki: Pki
) -> None:
    any_daemon.ensure("ktls", "--config", str(policy.path))
    with listening(pki.ecdsa, prepare=only_old) as listener:
        policy.write('[tls]\nversion_min = "1.3"\n')
        reload()
        any_daemon.kill_worker()
        refused(errno.EPROTO, listener.accept)
        assert "TLS_VERSION_MAX" in tls_error(listener.sock)
        policy.write("")
        reload()

        def visit() -> None:
            with client_of(listener, pki, "TLSv1.2") as client:
                client.sendall(b"served")
                client.recv(1)

        visitor = threading.Thread(target=visit)
        visitor.start()
        accepted = None
        while accepted is None:
            try:
                accepted = listener.accept()
            except OSError as error:
                # Of a try before it was allowed again.
                if error.errno != errno.EPROTO:
                    raise
        with accepted:
            assert receive_exactly(accepted, 6) == b"served"
        visitor.join()


def test_a_policy_of_kernel_tls_alone_refuses_what_that_can_not_do(
    any_daemon: Daemon, policy: PolicyFile, pki: Pki, logs: Path, echo_server: Server
) -> None:
    cipher = "TLS_AES_128_CCM_SHA256"
    any_daemon.ensure("ktls", "--config", str(policy.path))
    policy.write(
        f'[transport]\nmode = "ktls"\n'
        f'[tls]\nciphers_tls13 = ["TLS_AES_128_GCM_SHA256", "{cipher}"]\n'
    )
    reload()
    options = ("-www", "-tls1_3", "-ciphersuites", cipher)
    with servers.openssl(pki.ecdsa, logs, *options) as server, tls_socket() as sock:
        refused(errno.ECONNABORTED, lambda: sock.connect((server.address, server.port)))
        assert tls_error(sock) == (
            f"The policy wants kernel TLS for every connection. Kernel TLS can't do {cipher}."
        )
    with connect(echo_server) as sock:
        assert transport_of(sock) == "ktls"
        echo(sock, b"well")
    policy.write("")
    reload()


def test_the_depth_of_the_policy_holds_for_connect(
    any_daemon: Daemon, policy: PolicyFile, echo_server: Server
) -> None:
    any_daemon.ensure("ktls", "--config", str(policy.path))
    # One certificate is between the server's and the trusted one.
    policy.write("[trust]\ndepth = 0\n")
    reload()
    with tls_socket() as sock:
        refused(errno.EPROTO, lambda: sock.connect((echo_server.address, echo_server.port)))
        assert "more than the policy allows (trust.depth)" in tls_error(sock)
    policy.write("[trust]\ndepth = 1\n")
    reload()
    with connect(echo_server) as sock:
        echo(sock, b"well")
    policy.write("")
    reload()


def test_what_the_command_line_says_wins_over_the_file(
    any_daemon: Daemon, policy: PolicyFile, echo_server: Server
) -> None:
    policy.write('[transport]\nmode = "ktls"\n[trust]\nstore = "/no/such/file"\n')
    any_daemon.ensure("channel", "--config", str(policy.path))
    with connect(echo_server) as sock:
        assert transport_of(sock) == "channel"
        policy.write('[trust]\nstore = "/no/such/file"\ndepth = 3\n')
        reload()
        echo(sock, b"still there")
    with connect(echo_server) as sock:
        assert transport_of(sock) == "channel"
    policy.write(command("config", "show", "--config", str(policy.path)).output)
    assert "depth = 3" in policy.path.read_text()
    reload()
