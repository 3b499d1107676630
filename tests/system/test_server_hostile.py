# SPDX-License-Identifier: BSD-3-Clause
"""Clients that mean no good: they get nothing, good ones are served meanwhile, and afterwards
nothing is left of them."""

from __future__ import annotations

import errno
import json
import os
import re
import select
import socket
import struct
import subprocess
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from OpenSSL import SSL

from ssad.wire import TlsOption
from tests.peers import clients, hostile
from tests.peers.clients import Target
from tests.peers.hostile import ENCRYPTED_MAX, HANDSHAKE, PLAIN_MAX, record
from tests.peers.pki import HOST
from tests.system.daemon import SLOWNESS, await_condition
from tests.system.program import get_text
from tests.system.server import (
    DEADLINE,
    Events,
    Measured,
    Stopwatch,
    check_served,
    close_all,
    echo_all,
    listening,
    reset,
    served,
    tcp_connections,
    worker_pids,
)
from tests.system.test_cli import Monitor

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from tests.peers.pki import Pki
    from tests.peers.servers import Version
    from tests.system.daemon import Daemon
    from tests.system.server import TlsListener

LOOPBACK = "127.0.0.1"

# What the daemon promises: handshakes under way for one listener.
UNDER_WAY = 512


@pytest.fixture
def listener(request: pytest.FixtureRequest, pki: Pki) -> Iterator[TlsListener]:
    """Give a TLS socket that listens, with the daemon that the test wants."""
    wanted = {"transport", "impatient"} & set(request.fixturenames)
    request.getfixturevalue(wanted.pop() if wanted else "daemon")
    with listening(pki.ecdsa) as made:
        yield made


@pytest.fixture
def measured(
    capsys: pytest.CaptureFixture[str], record_testsuite_property: Callable[[str, object], None]
) -> Measured:
    """Print and record what is measured."""
    return Measured(capsys, record_testsuite_property)


# --- the first bytes of a client ----------------------------------------------------------------


class Handshake:
    """A client's handshake over memory BIOs: each flight can be had and spoiled."""

    def __init__(self, version: Version = "TLSv1.3", *, ciphers: bytes | None = None) -> None:
        context = SSL.Context(SSL.TLS_CLIENT_METHOD)
        number = {"TLSv1.2": SSL.TLS1_2_VERSION, "TLSv1.3": SSL.TLS1_3_VERSION}[version]
        context.set_min_proto_version(number)
        context.set_max_proto_version(number)
        if ciphers is not None:
            context.set_cipher_list(ciphers)
        self.tls = SSL.Connection(context, None)
        self.tls.set_tlsext_host_name(HOST.encode())
        self.tls.set_connect_state()

    def step(self, answer: bytes = b"") -> bytes:
        """Take what the server said; return the next flight."""
        if answer:
            self.tls.bio_write(answer)
        with suppress(SSL.WantReadError):
            self.tls.do_handshake()
        return self.output()

    def output(self) -> bytes:
        """Return what is to be sent."""
        with suppress(SSL.WantReadError):
            return self.tls.bio_read(1 << 16)
        return b""

    def finish(self, raw: socket.socket) -> None:
        """Do the handshake over a TCP connection."""
        raw.sendall(self.step())
        while True:
            flight = self.step(hostile.read_record(raw))
            if flight:
                raw.sendall(flight)
            if self.tls.get_state_string() in {b"SSLOK ", b"SSL negotiation finished successfully"}:
                return


def hello(version: Version = "TLSv1.3", *, ciphers: bytes | None = None) -> bytes:
    """Return a good ClientHello in its record."""
    return Handshake(version, ciphers=ciphers).step()


def byte_records(data: bytes) -> list[bytes]:
    """Return one record for each byte of a record."""
    return [record(HANDSHAKE, data[index : index + 1]) for index in range(5, len(data))]


OLD_HELLO = record(
    HANDSHAKE,
    # RFC 4346, 7.4.1.2: TLS 1.1, no session, TLS_RSA_WITH_AES_128_CBC_SHA, no compression.
    b"\x01\0\0\x2d\x03\x02" + bytes(32) + b"\0\0\x02\0\x2f\x01\0\0\x02\0\0",
)

REFUSALS: dict[str, tuple[bytes, str]] = {
    "garbage": (hostile.GARBAGE, "other than TLS"),
    "plain HTTP": (b"GET / HTTP/1.1\r\nHost: server.test\r\n\r\n", "HTTP"),
    "too long for a record": (record(HANDSHAKE, bytes(ENCRYPTED_MAX + 1)), "record"),
    "a hello that is none": (record(HANDSHAKE, b"\x01\0\0\x04oops"), "TLS"),
    "a hello of 16 MB": (record(HANDSHAKE, b"\x01\xff\xff\xff" + bytes(PLAIN_MAX - 4)), "TLS"),
    "no record with data": (hostile.EMPTY_RECORDS, "record"),
    "data before the handshake": (record(hostile.APPLICATION_DATA, b"data"), "TLS"),
    "an alert": (record(21, b"\x02\x28"), "unexpected message"),
    "an old version": (OLD_HELLO, "version|protocol"),
    "no common cipher": (hello("TLSv1.2", ciphers=b"AES256-GCM-SHA384"), "cipher"),
}


@pytest.mark.usefixtures("daemon")
@pytest.mark.parametrize("what", REFUSALS)
def test_what_is_no_handshake_is_refused_with_its_reason(
    listener: TlsListener, pki: Pki, what: str
) -> None:
    data, words = REFUSALS[what]
    with Events() as events:
        with socket.create_connection((LOOPBACK, listener.port), DEADLINE) as raw:
            local = raw.getsockname()
            with suppress(OSError):
                raw.sendall(data)
                raw.shutdown(socket.SHUT_WR)
            with suppress(ConnectionResetError):
                hostile.read_until_closed(raw)
        event = events.refusal()
    assert re.search(words, event["text"]), event
    assert event["text"].endswith((".", "?")), event
    assert event["error"] in {errno.EPROTO, errno.ECONNABORTED}
    assert struct.unpack_from("!H", event["remote_address"], 2)[0] == local[1]
    assert not listener.readable()
    check_served(listener, pki.root)


@pytest.mark.usefixtures("daemon")
def test_ssad_monitor_tells_who_was_refused_and_why(listener: TlsListener) -> None:
    with Monitor("--json") as monitor:
        monitor.await_start()
        with socket.create_connection((LOOPBACK, listener.port), DEADLINE) as raw:
            local = raw.getsockname()
            raw.sendall(hostile.GARBAGE)
            with suppress(ConnectionResetError):
                hostile.read_until_closed(raw)
        event = json.loads(monitor.line())
        while event["event"] != "refused":
            event = json.loads(monitor.line())
    assert event["peer"] == f"{local[0]}:{local[1]}"
    assert "other than TLS" in event["text"]
    assert event["error"] == errno.EPROTO


# How a client leaves, and after how much of its flights.
STEPS: dict[str, tuple[Version, int]] = {
    "before the hello": ("TLSv1.3", 0),
    "after the hello, TLS 1.3": ("TLSv1.3", 1),
    "after the hello, TLS 1.2": ("TLSv1.2", 1),
}


@pytest.mark.usefixtures("daemon")
class TestLeaving:
    """A client leaves at each step."""

    @pytest.mark.parametrize("how", ["reset", "close"])
    @pytest.mark.parametrize("step", STEPS)
    def test_between_flights(self, listener: TlsListener, pki: Pki, step: str, how: str) -> None:
        version, flights = STEPS[step]
        with Events() as events:
            raw = socket.create_connection((LOOPBACK, listener.port), DEADLINE)
            if flights:
                raw.sendall(hello(version))
                hostile.read_record(raw)
            reset(raw) if how == "reset" else raw.close()
            event = events.refusal()
        assert event["text"].endswith("."), event
        assert not listener.readable()
        check_served(listener, pki.root)

    def test_right_after_the_last_flight(self, listener: TlsListener, pki: Pki) -> None:
        # Whether the program gets to see them is a matter of luck; the next one is served.
        with served(listener, echo_all):
            for _ in range(10):
                tls = Handshake("TLSv1.2")
                raw = socket.create_connection((LOOPBACK, listener.port), DEADLINE)
                raw.sendall(tls.step())
                flight = b""
                while not flight:
                    flight = tls.step(hostile.read_record(raw))
                raw.sendall(flight)
                reset(raw)
            Stopwatch(listener, pki.root).median(1)

    def test_within_a_hello(self, listener: TlsListener, pki: Pki) -> None:
        whole = hello()
        with Events() as events:
            for size in (1, 5, 6, len(whole) // 2, len(whole) - 1):
                raw = socket.create_connection((LOOPBACK, listener.port), DEADLINE)
                raw.sendall(whole[:size])
                raw.close()
                assert "middle" in events.refusal()["text"]
        check_served(listener, pki.root)

    def test_a_port_scan(self, listener: TlsListener, pki: Pki) -> None:
        for number in range(200):
            raw = socket.create_connection((LOOPBACK, listener.port), DEADLINE)
            reset(raw) if number % 2 else raw.close()
        check_served(listener, pki.root)
        assert not listener.readable()


@pytest.mark.usefixtures("daemon")
def test_a_hello_of_one_byte_a_record_is_read_or_refused(listener: TlsListener, pki: Pki) -> None:
    tls = Handshake()
    with socket.create_connection((LOOPBACK, listener.port), DEADLINE) as raw:
        with suppress(OSError):
            raw.sendall(b"".join(byte_records(tls.step())))
        start = time.monotonic()
        with suppress(OSError):
            assert hostile.read_record(raw)[0] in {HANDSHAKE, 21}  # or an alert
        assert time.monotonic() - start < DEADLINE / 2
    check_served(listener, pki.root)


@pytest.mark.usefixtures("transport")
def test_a_client_of_tls_1_2_that_renegotiates_gets_no_handshake(
    listener: TlsListener, pki: Pki
) -> None:
    tls = Handshake("TLSv1.2")
    with socket.create_connection((LOOPBACK, listener.port), DEADLINE) as raw:
        tls.finish(raw)
        with listener.accept() as accepted:
            tls.tls.send(b"before")
            raw.sendall(tls.output())
            assert accepted.recv(6, socket.MSG_WAITALL) == b"before"
            tls.tls.renegotiate()
            raw.sendall(tls.step())
            # The program is told of an end, or of nothing at all; never of data.
            accepted.settimeout(1)
            with suppress(OSError):
                assert accepted.recv(1) == b""
            raw.settimeout(1)
            with suppress(OSError, SSL.Error):
                while True:
                    raw.sendall(tls.step(hostile.read_record(raw)))
            assert tls.tls.renegotiate_pending(), "another handshake has come to its end"
    check_served(listener, pki.root)


# --- many of them, and good clients meanwhile ---------------------------------------------------


@contextmanager
def silent(listener: TlsListener) -> Iterator[None]:
    """500 connections that say nothing."""
    made = tcp_connections(listener.port, 500)
    try:
        yield
    finally:
        close_all(made)


@contextmanager
def half_a_hello(listener: TlsListener) -> Iterator[None]:
    """100 connections that stop in the middle."""
    half = hello()[:100]
    made = tcp_connections(listener.port, 100)
    try:
        for raw in made:
            raw.sendall(half)
        yield
    finally:
        close_all(made)


@contextmanager
def one_byte_a_second(listener: TlsListener) -> Iterator[None]:
    """100 connections that take their time."""
    made = tcp_connections(listener.port, 100)
    with in_background(lambda index: trickle(made, hello(), index), pause=1):
        yield
    close_all(made)


def trickle(made: Sequence[socket.socket], data: bytes, index: int) -> None:
    """Send the next byte of `data` on all connections."""
    for raw in made:
        with suppress(OSError):
            raw.send(data[index % len(data)].to_bytes(1, "big"))


@contextmanager
def port_scan(listener: TlsListener) -> Iterator[None]:
    """Connections that come and go, as fast as they can."""

    def knock(index: int) -> None:
        with suppress(OSError):
            raw = socket.create_connection((LOOPBACK, listener.port), DEADLINE)
            reset(raw) if index % 2 else raw.close()

    with in_background(knock):
        yield


@contextmanager
def garbage(listener: TlsListener) -> Iterator[None]:
    """Connections that send garbage, one after the other."""

    def send(_index: int) -> None:
        with (
            suppress(OSError),
            socket.create_connection((LOOPBACK, listener.port), DEADLINE) as raw,
        ):
            raw.sendall(hostile.GARBAGE)
            hostile.read_until_closed(raw)

    with in_background(send):
        yield


@contextmanager
def in_background(act: Callable[[int], None], pause: float = 0) -> Iterator[None]:
    """Call `act` again and again in a thread, until the context ends."""
    stop = threading.Event()

    def run() -> None:
        index = 0
        while not stop.wait(pause):
            act(index)
            index += 1

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


ATTACKS = {
    "500 that say nothing": silent,
    "100 halves of a hello": half_a_hello,
    "100 at a byte a second": one_byte_a_second,
    "a port scan": port_scan,
    "garbage": garbage,
}


@pytest.mark.usefixtures("daemon")
@pytest.mark.parametrize("attack", ATTACKS)
def test_good_clients_are_served_meanwhile(
    listener: TlsListener, pki: Pki, measured: Measured, attack: str
) -> None:
    watch = Stopwatch(listener, pki.root)
    with served(listener, echo_all):
        watch.median(3)  # the first ones are slower
        before = watch.median()
        with ATTACKS[attack](listener):
            during = watch.median()
        measured(
            f"a good client during {attack}",
            f"{during * 1000:.0f} ms, alone {before * 1000:.0f} ms ({during / before:.1f} times)",
        )
    await_condition("all of them are gone", lambda: tcp_connections_of(listener.port) == 0)


def tcp_connections_of(port: int) -> int:
    """Count the connections that are established at the server's port, or wait to be closed."""
    count = 0
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        local, _remote, state = line.split()[1:4]
        count += local.endswith(f":{port:04X}") and state in {"01", "08"}
    return count


@pytest.mark.usefixtures("daemon")
def test_more_than_can_be_under_way_do_not_keep_good_ones_out(
    listener: TlsListener, pki: Pki
) -> None:
    made = tcp_connections(listener.port, UNDER_WAY)
    try:
        # Who has waited for more than a second makes room.
        with served(listener, echo_all):
            start = time.monotonic()
            Stopwatch(listener, pki.root).median(3)
            assert time.monotonic() - start < DEADLINE / 2
        assert any(select.select([raw], [], [], 0)[0] for raw in made), (
            "the oldest should have been given up"
        )
    finally:
        close_all(made)


@pytest.mark.usefixtures("daemon")
def test_a_listener_does_not_suffer_from_anothers_guests(listener: TlsListener, pki: Pki) -> None:
    with listening(pki.ecdsa) as other:
        made = tcp_connections(other.port, UNDER_WAY)
        try:
            check_served(listener, pki.root)
        finally:
            close_all(made)


class TestDeadline:
    """--handshake-timeout."""

    PATIENCE = 6.0

    @pytest.fixture
    def impatient(self, any_daemon: Daemon) -> None:
        """Have a daemon that gives a handshake so long: good clients are through before that."""
        any_daemon.ensure("ktls", "--handshake-timeout", f"{self.PATIENCE:g}")

    def check_given_up(self, raw: socket.socket, events: Events) -> None:
        """Check that a connection is ended by the other side, and that those who watch hear it."""
        raw.settimeout(DEADLINE)
        with suppress(ConnectionResetError):
            hostile.read_until_closed(raw)
        event = events.refusal()
        assert re.search(rf"\b{self.PATIENCE:g} s\b|second|time", event["text"]), event

    @pytest.mark.usefixtures("impatient")
    @pytest.mark.parametrize("said", [0, 1, 100], ids="after {} bytes".format)
    def test_who_says_no_more_is_given_up(self, listener: TlsListener, pki: Pki, said: int) -> None:
        with (
            Events() as events,
            socket.create_connection((LOOPBACK, listener.port), DEADLINE) as raw,
        ):
            raw.sendall(hello()[:said])
            self.check_given_up(raw, events)
        check_served(listener, pki.root)

    @pytest.mark.usefixtures("impatient")
    def test_who_stops_after_its_hello_is_given_up(self, listener: TlsListener, pki: Pki) -> None:
        with (
            Events() as events,
            socket.create_connection((LOOPBACK, listener.port), DEADLINE) as raw,
        ):
            raw.sendall(hello())
            self.check_given_up(raw, events)
        check_served(listener, pki.root)

    @pytest.mark.usefixtures("impatient")
    def test_bytes_now_and_then_do_not_extend_it(self, listener: TlsListener) -> None:
        with socket.create_connection((LOOPBACK, listener.port), DEADLINE) as raw:
            start = time.monotonic()
            for byte in hello():
                try:
                    raw.send(bytes((byte,)))
                except OSError:
                    break
                if select.select([raw], [], [], 0.2)[0]:
                    break
            assert time.monotonic() - start < 40, "it should have been given up after six seconds"

    @pytest.mark.usefixtures("impatient")
    def test_what_is_connected_has_no_deadline(self, listener: TlsListener, pki: Pki) -> None:
        trust = clients.context(pki.root)
        with (
            clients.connect(trust, Target(listener.port, pki.root)) as client,
            listener.accept() as accepted,
        ):
            time.sleep(self.PATIENCE + 0.5)  # longer than the deadline: nothing is to happen
            client.sendall(b"still")
            assert accepted.recv(5) == b"still"


# --- what is left of them -----------------------------------------------------------------------


def resident(pid: int) -> int:
    """Return the memory of a process in bytes."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.timeout(400)
def test_10000_handshakes_that_fail(
    daemon: Daemon, listener: TlsListener, pki: Pki, clients_in_c: Path, measured: Measured
) -> None:
    count, seconds = 10_000, 300 * SLOWNESS
    watch = Stopwatch(listener, pki.root)
    with served(listener, echo_all):
        watch.median(3)
        before = watch.median()
        pids = worker_pids()
        attack(clients_in_c, listener, 500, seconds)  # so that what is cached is there
        memory = [resident(pid) for pid in pids]
        descriptors = len(daemon.descriptors())
        times: list[float] = []
        with in_background(lambda _: times.append(watch.median(1))):
            start = time.monotonic()
            done = attack(clients_in_c, listener, count, seconds)
            took = time.monotonic() - start
        during = sorted(times)[len(times) // 2]
        grown = sum(resident(pid) for pid in pids) - sum(memory)
    measured(
        "10,000 handshakes that fail",
        f"{done} in {took:.0f} s; a good client {during * 1000:.0f} ms, alone "
        f"{before * 1000:.0f} ms; the daemon has grown by {grown / 1024:.0f} KiB",
    )
    assert done == count
    assert worker_pids() == pids
    assert grown < 8 << 20
    await_condition(
        "its descriptors are closed", lambda: len(daemon.descriptors()) <= descriptors, deadline=30
    )


def attack(built: Path, listener: TlsListener, count: int, seconds: int) -> int:
    """Send garbage over so many connections; return how many were closed in the time given."""
    command = [str(built / "barrage"), str(count), "32", str(seconds), LOOPBACK, str(listener.port)]
    run = subprocess.run(command, check=True, input=hostile.GARBAGE[:64], stdout=subprocess.PIPE)
    return int(run.stdout)


@pytest.fixture
def clients_in_c(request: pytest.FixtureRequest) -> Path:
    """Find the C clients; here `clients` is a module."""
    found: Path = request.getfixturevalue("clients")
    return found


@pytest.mark.usefixtures("daemon")
def test_500_handshakes_that_openssl_refuses_leave_no_memory(
    listener: TlsListener, pki: Pki, measured: Measured
) -> None:
    data = hello("TLSv1.2", ciphers=b"AES256-GCM-SHA384")  # OpenSSL has to find out

    def fail(count: int) -> None:
        for _ in range(count):
            with socket.create_connection((LOOPBACK, listener.port), DEADLINE) as raw:
                raw.sendall(data)
                hostile.read_until_closed(raw)

    pids = worker_pids()
    fail(150)
    before = sum(resident(pid) for pid in pids)
    fail(500)
    grown = sum(resident(pid) for pid in pids) - before
    measured("500 handshakes without a common cipher", f"{grown / 1024:.0f} KiB more")
    assert grown < 4 << 20
    check_served(listener, pki.root)


@pytest.mark.usefixtures("transport")
def test_a_client_that_never_reads_harms_itself_only(listener: TlsListener, pki: Pki) -> None:
    trust = clients.context(pki.root)
    target = Target(listener.port, pki.root)
    with clients.connect(trust, target) as lazy, listener.accept() as stuck:
        stuck.settimeout(0)
        sent = 0
        with suppress(BlockingIOError):
            while sent < 64 << 20:
                sent += stuck.send(bytes(1 << 16))
        for _ in range(3):
            check_served(listener, pki.root)
        assert get_text(stuck, TlsOption.TLS_CHOSEN_CIPHER)
        lazy.settimeout(DEADLINE)
        assert lazy.recv(1) == b"\0"
