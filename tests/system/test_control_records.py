# SPDX-License-Identifier: BSD-3-Clause
"""What a peer can put between data on kernel TLS: control records of every kind, and broken ones.

A model says, for what the peer has sent, which bytes are the program's and how the stream ends. The
random sequences depend on a seed only, which is printed: FUZZ_SEED=n does the same again, and
FUZZ_SECONDS=n goes on for longer.
"""

from __future__ import annotations

import errno
import fcntl
import itertools
import os
import random
import select
import socket
import struct
import termios
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING

import pytest

from tests.peers import hostile, servers
from tests.peers.hostile import APPLICATION_DATA, HANDSHAKE
from tests.peers.sealer import CIPHERS, PLAIN_MAX
from tests.peers.tls_peer import ALERT, FATAL, WARNING
from tests.system.messages import Messages
from tests.system.own_worker import TICKETS_WANTED, OwnWorker
from tests.system.program import receive_exactly, refused, tls_error
from tests.system.record_model import (
    BAD_RECORD_MAC,
    CLOSE_NOTIFY,
    INTERNAL_ERROR,
    NEW_SESSION_TICKET,
    RECORD_OVERFLOW,
    SIDES,
    UNEXPECTED_MESSAGE,
    USER_CANCELED,
    Model,
    message,
)
from tests.system.record_sequences import (
    PATIENCE,
    check_end,
    play,
    result_of,
    result_of_any,
    spliced,
    wait_with_patience,
)
from tests.system.server import Measured

if TYPE_CHECKING:
    from tests.peers.sealer import Cipher
    from tests.peers.servers import Version
    from tests.system.daemon import Daemon
    from tests.system.own_worker import Ends
    from tests.system.record_model import Side

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def worker(any_daemon: Daemon) -> Iterator[OwnWorker]:
    """Be the worker, in the daemon's place."""
    any_daemon.stop()
    with OwnWorker() as own:
        yield own


@pytest.fixture(params=servers.VERSIONS)
def version(request: pytest.FixtureRequest) -> Version:
    """Give each version in turn."""
    found: Version = request.param
    return found


@pytest.fixture(params=SIDES)
def side(request: pytest.FixtureRequest) -> Side:
    """Give each way to a connection in turn."""
    found: Side = request.param
    return found


@pytest.fixture
def measured(
    capsys: pytest.CaptureFixture[str], record_testsuite_property: Callable[[str, object], None]
) -> Measured:
    """Tell how much was done."""
    return Measured(capsys, record_testsuite_property)


class Maker:
    """Makes connections of one version and side."""

    def __init__(self, worker: OwnWorker, version: Version, side: Side, stack: ExitStack) -> None:
        self._worker = worker
        self.version = version
        self.side = side
        self._listener = stack.enter_context(worker.listener()) if side == "accepted" else None

    def __call__(self, cipher: Cipher = "AES-128-GCM") -> Ends:
        """Make one; its reads do not wait for ever."""
        if self._listener is None:
            made = self._worker.connected(self.version, cipher)
        else:
            made = self._worker.accepted(self._listener, self.version, cipher)
        wait_with_patience(made.program)
        wait_with_patience(made.peer)
        return made

    def model(self) -> Model:
        """Return the model of a new connection."""
        return Model(self.version, self.side)


@pytest.fixture
def make(worker: OwnWorker, version: Version, side: Side, stack: ExitStack) -> Maker:
    """Make connections."""
    return Maker(worker, version, side, stack)


def check_alert(ends: Ends, number: int | None) -> None:
    """Check what the peer hears: a fatal alert, or nothing but the end."""
    if number is None:
        assert ends.peer.recv(1) == b""
        return
    kind, content = ends.receiving.open(hostile.read_record(ends.peer))
    assert (kind, content) == (ALERT, bytes((FATAL, number)))


def check_one(make: Maker, kind: int, body: bytes) -> None:
    """Send one record between data, alone on its connection; check what the model says."""
    model = make.model()
    with make() as ends:
        wire = b""
        for each in ((APPLICATION_DATA, b"before"), (kind, body), (APPLICATION_DATA, b"after")):
            model.take(*each)
            wire += ends.sending.seal(*each)
        ends.peer.sendall(wire)
        assert receive_exactly(ends.program, len(model.data)) == model.data
        if model.error is None:
            ends.peer.shutdown(socket.SHUT_WR)
            model.cut()
        check_end(ends.program, model)
        if model.error == errno.EPROTO:
            check_alert(ends, model.alert)


def check_passed_over(make: Maker, records: list[tuple[int, bytes]]) -> None:
    """Send records each of which is followed by data; check that there is nothing but data."""
    with make() as ends:
        for number, (kind, body) in enumerate(records):
            mark = number.to_bytes(4)
            wire = ends.sending.seal(kind, body) + ends.sending.seal(APPLICATION_DATA, mark)
            ends.peer.sendall(wire)
            assert receive_exactly(ends.program, 4) == mark


def check_each(make: Maker, records: list[tuple[int, bytes]]) -> None:
    """Check each record: alone if it ends the stream, else one after the other."""
    harmless: list[tuple[int, bytes]] = []
    ending: list[tuple[int, bytes]] = []
    for each in records:
        model = make.model()
        model.take(*each)
        (harmless if model.error is None else ending).append(each)
    check_passed_over(make, harmless)
    for each in ending:
        check_one(make, *each)


@pytest.mark.timeout(600)
def test_alerts_of_every_number_and_level(make: Maker, measured: Measured) -> None:
    alerts = [bytes((level, number)) for level in (WARNING, FATAL) for number in range(256)]
    check_each(make, [(ALERT, body) for body in alerts])
    measured(f"alerts, {make.version}, {make.side}", str(len(alerts)))


def test_alerts_of_levels_that_there_are_not(make: Maker) -> None:
    for level in (0, 3, 255):
        for number in (CLOSE_NOTIFY, INTERNAL_ERROR, USER_CANCELED, 255):
            check_one(make, ALERT, bytes((level, number)))


def test_alerts_of_every_length_but_theirs(make: Maker) -> None:
    for length in (0, 1, 3, 4, 100, PLAIN_MAX):
        check_one(make, ALERT, bytes(length))


@pytest.mark.timeout(600)
def test_handshake_messages_of_every_type(make: Maker, measured: Measured) -> None:
    messages = [(HANDSHAKE, message(kind, b"content")) for kind in range(256)]
    check_each(make, messages)
    measured(f"handshake messages, {make.version}, {make.side}", str(len(messages)))


@pytest.mark.timeout(600)
def test_records_of_every_type(make: Maker, measured: Measured) -> None:
    # Type 0 is none: the padding of TLS 1.3 is made of it. Kernel TLS takes it for a bad record.
    kinds = range(1, 256)
    for kind in kinds:
        check_one(make, kind, bytes((WARNING, USER_CANCELED)))
    measured(f"types of records, {make.version}, {make.side}", str(len(kinds)))


class TestTickets:
    """A server's tickets, which TLS 1.3 lets come at any time."""

    @pytest.fixture
    def ends(self, worker: OwnWorker, stack: ExitStack) -> Ends:
        """Connect by TLS 1.3."""
        worker.tickets.clear()
        return stack.enter_context(Maker(worker, "TLSv1.3", "connected", stack)())

    def test_of_a_burst_the_first_are_passed_on(self, ends: Ends, worker: OwnWorker) -> None:
        tickets = [message(NEW_SESSION_TICKET, b"%d" % number) for number in range(1000)]
        wire = b"".join(ends.sending.seal(HANDSHAKE, ticket) for ticket in tickets)
        ends.peer.sendall(wire + ends.sending.seal(APPLICATION_DATA, b"data"))
        assert receive_exactly(ends.program, 4) == b"data"
        worker.await_tickets(TICKETS_WANTED)
        assert worker.tickets == tickets[:TICKETS_WANTED]

    def test_there_is_no_end_to_them_only_with_data_between(self, ends: Ends) -> None:
        most = 4096
        ticket = message(NEW_SESSION_TICKET, b"")

        def send(count: int) -> None:
            ends.peer.sendall(b"".join(ends.sending.seal(HANDSHAKE, ticket) for _ in range(count)))

        def send_all() -> None:
            for _ in range(2):
                send(most)
                ends.peer.sendall(ends.sending.seal(APPLICATION_DATA, b"data"))
            send(most + 1)

        sender = threading.Thread(target=send_all)
        sender.start()
        for _ in range(2):
            assert receive_exactly(ends.program, 4) == b"data"
        refused(errno.EPROTO, lambda: ends.program.recv(1))
        sender.join()
        assert f"more than {most} records without data" in tls_error(ends.program)
        check_alert(ends, UNEXPECTED_MESSAGE)

    def test_many_in_one_record(self, ends: Ends, worker: OwnWorker) -> None:
        tickets = [message(NEW_SESSION_TICKET, b"%d" % number) for number in range(500)]
        ends.peer.sendall(ends.sending.seal(HANDSHAKE, b"".join(tickets)))
        ends.peer.sendall(ends.sending.seal(APPLICATION_DATA, b"data"))
        assert receive_exactly(ends.program, 4) == b"data"
        worker.await_tickets(TICKETS_WANTED)
        assert worker.tickets == tickets[:TICKETS_WANTED]

    def test_one_byte_a_record(self, ends: Ends, worker: OwnWorker) -> None:
        ticket = message(NEW_SESSION_TICKET, bytes(range(100)))
        wire = b"".join(ends.sending.seal(HANDSHAKE, bytes((byte,))) for byte in ticket)
        ends.peer.sendall(wire + ends.sending.seal(APPLICATION_DATA, b"data"))
        assert receive_exactly(ends.program, 4) == b"data"
        worker.await_tickets(1)
        assert worker.tickets == [ticket]

    def test_one_longer_than_any_is_dropped(self, ends: Ends, worker: OwnWorker) -> None:
        ticket = message(NEW_SESSION_TICKET, bytes(1 << 20))
        sender = threading.Thread(target=lambda: self._send_long(ends, ticket))
        sender.start()
        assert receive_exactly(ends.program, 4) == b"data"
        sender.join()
        worker.await_tickets(1)
        assert worker.tickets == [message(NEW_SESSION_TICKET, b"short")]

    @staticmethod
    def _send_long(ends: Ends, ticket: bytes) -> None:
        for start in range(0, len(ticket), PLAIN_MAX):
            ends.peer.sendall(ends.sending.seal(HANDSHAKE, ticket[start : start + PLAIN_MAX]))
        ends.peer.sendall(ends.sending.seal(HANDSHAKE, message(NEW_SESSION_TICKET, b"short")))
        ends.peer.sendall(ends.sending.seal(APPLICATION_DATA, b"data"))

    def test_half_of_one_is_forgotten_with_the_socket(self, ends: Ends, worker: OwnWorker) -> None:
        ends.peer.sendall(ends.sending.seal(HANDSHAKE, message(NEW_SESSION_TICKET, b"half")[:6]))
        ends.peer.sendall(ends.sending.seal(APPLICATION_DATA, b"data"))
        assert receive_exactly(ends.program, 4) == b"data"
        ends.close()
        assert worker.tickets == []


class TestSizes:
    """Records at and beyond the limits of RFC 8446, 5.1 and 5.4."""

    def test_nothing_but_padding(self, make: Maker) -> None:
        if make.version == "TLSv1.2":
            return  # which has none
        with make() as ends:
            wire = ends.sending.seal(APPLICATION_DATA, b"", padding=PLAIN_MAX)
            ends.peer.sendall(wire + ends.sending.seal(APPLICATION_DATA, b"data"))
            assert receive_exactly(ends.program, 4) == b"data"
            for size in (1, 100, PLAIN_MAX - 1, PLAIN_MAX):
                body = os.urandom(size)
                ends.peer.sendall(
                    ends.sending.seal(APPLICATION_DATA, body, padding=PLAIN_MAX - size)
                )
                assert receive_exactly(ends.program, size) == body

    def test_1000_empty_records(self, make: Maker) -> None:
        with make() as ends:
            for kind in (APPLICATION_DATA, HANDSHAKE):
                wire = b"".join(ends.sending.seal(kind, b"") for _ in range(1000))
                ends.peer.sendall(wire + ends.sending.seal(APPLICATION_DATA, b"data"))
                assert receive_exactly(ends.program, 4) == b"data"

    def test_a_type_that_is_none(self, make: Maker) -> None:
        if make.version == "TLSv1.2":
            return  # all are types there
        with make() as ends:
            ends.peer.sendall(ends.sending.seal(0, b"", padding=100))
            refused(errno.EPROTO, lambda: ends.program.recv(1))
            check_alert(ends, BAD_RECORD_MAC)

    def test_the_type_that_everybody_sees_means_nothing(self, make: Maker) -> None:
        if make.version == "TLSv1.2":
            return  # which has no other
        with make() as ends:
            for outer in (ALERT, HANDSHAKE, 0, 24, 255):
                ends.peer.sendall(ends.sending.seal(APPLICATION_DATA, b"data", outer=outer))
                assert receive_exactly(ends.program, 4) == b"data"

    def test_one_byte_too_much(self, make: Maker) -> None:
        for kind in (APPLICATION_DATA, HANDSHAKE, ALERT):
            with make() as ends:
                ends.peer.sendall(ends.sending.seal(kind, bytes(PLAIN_MAX + 1)))
                refused(errno.EPROTO, lambda: ends.program.recv(1))
                check_alert(ends, RECORD_OVERFLOW)


@pytest.mark.timeout(0)
def test_random_sequences_do_what_the_model_says(make: Maker, measured: Measured) -> None:
    first = int(os.environ.get("FUZZ_SEED", random.SystemRandom().randrange(1 << 32)))
    end = time.monotonic() + float(os.environ.get("FUZZ_SECONDS", "15"))
    seed, records = first, 0
    while time.monotonic() < end or seed == first:
        try:
            source = random.Random(seed)  # noqa: S311 -- wants to be the same each time
            ends = make(source.choice(CIPHERS))
            records += play(ends.program, ends.peer, ends.sending, make.model(), source)
        except BaseException as error:
            error.add_note(f"FUZZ_SEED={seed}, {make.version}, {make.side}")
            raise
        seed += 1
    measured(
        f"random sequences, {make.version}, {make.side}",
        f"{seed - first}, of {records} records (FUZZ_SEED={first})",
    )


# It says so by its version.
NO_HEADER = struct.pack("!BHH", APPLICATION_DATA, 0x0202, 100) + bytes(100)

CANCELED = (ALERT, bytes((WARNING, USER_CANCELED)))
CLOSED = (ALERT, bytes((WARNING, CLOSE_NOTIFY)))


@pytest.mark.parametrize("last", [b"", NO_HEADER], ids=["the end", "no header"])
@pytest.mark.parametrize("behind", [[], [CLOSED], [CANCELED, (APPLICATION_DATA, b"data"), CLOSED]])
def test_peeks_see_what_is_behind_empty_records(
    make: Maker, behind: list[tuple[int, bytes]], last: bytes
) -> None:
    # Kernel TLS has what was peeked at once, and says no more than that nothing comes.
    model = make.model()
    with make() as ends:
        for each in [(APPLICATION_DATA, b""), (APPLICATION_DATA, b""), *behind]:
            model.take(*each)
            ends.peer.sendall(ends.sending.seal(*each))
        if last:
            model.broken()
        else:
            model.cut()
        ends.peer.sendall(last)
        ends.peer.shutdown(socket.SHUT_WR)
        for _ in range(3):
            seen = result_of(lambda: ends.program.recv(10, socket.MSG_PEEK))
            assert seen == (model.data or model.error)
        assert receive_exactly(ends.program, len(model.data)) == model.data
        check_end(ends.program, model)


def test_what_has_no_header_of_a_record_ends_every_read(make: Maker) -> None:
    # Kernel TLS tells of it once, to whoever looks first.
    looks: list[Callable[[socket.socket], object]] = [
        lambda _: None,
        lambda sock: select.select([sock], [], [], PATIENCE),
        lambda sock: fcntl.ioctl(sock, termios.FIONREAD, bytes(4)),
    ]
    reads: list[Callable[[socket.socket], bytes]] = [
        lambda sock: sock.recv(1),
        lambda sock: sock.recv(1, socket.MSG_PEEK),
        lambda sock: spliced(sock, 1),
    ]
    for look, read in itertools.product(looks, reads):
        with make() as ends:
            wire = ends.sending.seal(APPLICATION_DATA, b"data")
            ends.peer.sendall(wire + ends.sending.seal(APPLICATION_DATA, b"") + NO_HEADER)
            assert receive_exactly(ends.program, 4) == b"data"
            look(ends.program)
            refused(errno.EPROTO, partial(read, ends.program))
            check_alert(ends, BAD_RECORD_MAC)


def so_error(sock: socket.socket) -> int:
    """Return the error that is pending."""
    return sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)


def recvmmsg(sock: socket.socket) -> int:
    """Return the errno of a call that the kernel's core answers when an error is pending."""
    return int(result_of_any(lambda: Messages(b"1").call("recvmmsg", sock, 0, None)) or 0)


@pytest.mark.parametrize("ask", [so_error, recvmmsg])
def test_the_core_tells_of_a_bad_record_as_a_read_does(
    make: Maker, ask: Callable[[socket.socket], int]
) -> None:
    model = make.model()
    model.broken()
    with make() as ends:
        ends.peer.sendall(NO_HEADER)
        poller = select.poll()
        poller.register(ends.program, 0)  # POLLERR alone
        assert poller.poll(PATIENCE * 1000)
        assert ask(ends.program) == errno.EPROTO
        assert model.words in tls_error(ends.program)
        check_end(ends.program, model)
        check_alert(ends, BAD_RECORD_MAC)
