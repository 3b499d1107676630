# SPDX-License-Identifier: BSD-3-Clause
"""The module comes by itself, does not go while it is used, and leaves nothing behind."""

from __future__ import annotations

import errno
import gc
import os
import socket
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ssad.wire import IPPROTO_TLS
from tests.system.conftest import PAGE
from tests.system.daemon import KMEMLEAK, await_condition, socket_count
from tests.system.program import (
    NOBODY,
    Address,
    connect,
    echo,
    in_child,
    receive_all,
    refused,
    tls_socket,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.peers.servers import Nginx, Server
    from tests.system.daemon import Daemon, Transport

LOADED = Path("/sys/module/ssa")
TAINT = Path("/proc/sys/kernel/tainted")

# How much a number may vary between two quiet moments, for all that else goes on in a machine. What
# leaks with every connection adds up to more in hundreds of them.
NOISE = {
    "kilobytes of the kernel's": 4 * 1024,
    "kilobytes of memory": 32 * 1024,  # free pages, and page cache that comes and goes
    # Counted by the slab or the page, with what is cached per CPU.
    "TCP objects": 64,
    "files": 64,
}


def load() -> None:
    """Load the module."""
    subprocess.run(["modprobe", "ssa"], check=True)


def remove() -> bool:
    """Try to remove the module; tell whether it is gone."""
    result = subprocess.run(["rmmod", "ssa"], check=False, capture_output=True)
    if result.returncode != 0:
        assert b"in use" in result.stderr, result.stderr.decode()
    return not LOADED.exists()


@pytest.fixture
def absent(any_daemon: Daemon) -> Iterator[None]:
    """Have the module not loaded, and loaded again afterwards."""
    any_daemon.stop()
    assert remove(), "the module should be unused"
    yield
    load()


class TestLoading:
    """socket() loads the module."""

    @pytest.mark.usefixtures("absent")
    @pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
    def test_a_socket_loads_it(self, family: int) -> None:
        # It is there, and says that there is no daemon.
        refused(errno.ECANCELED, lambda: socket.socket(family, socket.SOCK_STREAM, IPPROTO_TLS))
        assert LOADED.exists()

    @pytest.mark.usefixtures("absent")
    def test_a_socket_of_an_ordinary_user_loads_it(self) -> None:
        def make() -> None:
            refused(
                errno.ECANCELED,
                lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM, IPPROTO_TLS),
            )

        assert in_child(make, user=NOBODY) == 0
        assert LOADED.exists()


class TestRemoving:
    """The module does not go while something needs it."""

    def test_not_while_a_socket_is_open(self, any_daemon: Daemon) -> None:
        any_daemon.ensure()
        sock = tls_socket()
        any_daemon.stop()
        assert not remove()
        sock.close()
        assert remove()
        load()

    def test_not_while_a_connection_is_open(self, any_daemon: Daemon, echo_server: Server) -> None:
        any_daemon.ensure("ktls")
        with connect(echo_server) as sock:
            any_daemon.stop()
            assert not remove()
            echo(sock, b"goes on")
        assert remove()
        load()

    def test_not_while_a_daemon_runs(self, any_daemon: Daemon) -> None:
        any_daemon.ensure()
        assert not remove()
        any_daemon.stop()
        assert remove()
        load()

    def test_as_soon_as_a_daemon_is_killed(self, any_daemon: Daemon) -> None:
        any_daemon.ensure()
        any_daemon.kill()
        assert remove()
        load()


def settled() -> dict[str, int]:
    """Measure, in a quiet moment, all that could be left behind."""
    gc.collect()
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3")
    # Sockets and work of the kernel's that are on their way out.
    await_condition("no TIME_WAIT is left", lambda: tcp_count("tw") == 0, deadline=90)
    return {
        "kilobytes of the kernel's": meminfo("SUnreclaim", "VmallocUsed", "Percpu"),
        "kilobytes of memory": -meminfo("MemAvailable"),
        "TCP sockets": tcp_count("alloc"),
        "orphans": tcp_count("orphan"),
        "descriptors": len(list(Path("/proc/self/fd").iterdir())),
        # KASAN keeps what was freed; it comes with kmemleak, which finds what was not.
        "TCP objects": 0 if KMEMLEAK.exists() else slab_objects("TCP"),
        "files": int(Path("/proc/sys/fs/file-nr").read_text().split()[0]),
    }


def meminfo(*names: str) -> int:
    """Return the sum, in kilobytes, of what /proc/meminfo says under these names."""
    found = 0
    for line in Path("/proc/meminfo").read_text().splitlines():
        name, value = line.split()[:2]
        if name.rstrip(":") in names:
            found += int(value)
    assert found, f"/proc/meminfo has none of {names}"
    return found


def tcp_count(name: str) -> int:
    """Return a number from the line on TCP in /proc/net/sockstat."""
    for line in Path("/proc/net/sockstat").read_text().splitlines():
        if line.startswith("TCP:"):
            words = line.split()
            return int(words[words.index(name) + 1])
    raise AssertionError("there is no TCP in /proc/net/sockstat")


def slab_objects(cache: str) -> int:
    """Return how many objects of a slab cache are in use."""
    for line in Path("/proc/slabinfo").read_text().splitlines():
        words = line.split()
        if words[0] == cache:
            return int(words[1])
    return 0


def leaves_nothing(act: Callable[[], None]) -> None:
    """Check that `act` leaves everything where it was. It is done once before, for what the first
    time makes for good. The kernel frees some things later, when it has nothing else to do."""
    act()
    before = settled()
    act()
    more: list[str] = []

    def nothing_is_left() -> bool:
        more[:] = [
            f"{name}: {before[name]}, then {value}"
            for name, value in settled().items()
            if value > before[name] + NOISE.get(name, 0)
        ]
        return not more

    try:
        await_condition("nothing is left", nothing_is_left, deadline=180)
    except AssertionError as error:
        raise AssertionError("; ".join(more)) from error


@pytest.mark.timeout(600)
def test_loading_and_removing_it_50_times_leaves_nothing(any_daemon: Daemon) -> None:
    any_daemon.stop()

    def again() -> None:
        for _ in range(25):
            assert remove()
            load()

    leaves_nothing(again)


@pytest.mark.timeout(900)
def test_1000_connections_leave_nothing(
    any_daemon: Daemon, transport: Transport, web: Nginx
) -> None:
    any_daemon.ensure(transport)
    server = Address("127.0.0.1", web.ports["ecdsa", None])

    def again() -> None:
        for _ in range(250):
            with connect(server) as sock:
                sock.sendall(b"GET /page HTTP/1.0\r\n\r\n")
                assert receive_all(sock).endswith(PAGE)
        await_condition("no socket is left", lambda: socket_count() == 0)
        any_daemon.await_idle()

    leaves_nothing(again)


@pytest.mark.timeout(600)
def test_1000_sockets_that_are_only_made_leave_nothing(any_daemon: Daemon) -> None:
    any_daemon.ensure()

    def again() -> None:
        for _ in range(500):
            tls_socket().close()

    leaves_nothing(again)
