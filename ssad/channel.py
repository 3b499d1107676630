# SPDX-License-Identifier: BSD-3-Clause
"""The channel: relays between a program's socket and a TLS connection, both ways at once.

    program <-- socket pair --> Outgoing: plaintext in, records out  --> endpoint --> peer
                                Incoming: plaintext out, records in  <--

A direction that can't pass on what it has stops reading until it can. So it holds no more than what
one read brought, and back-pressure reaches whoever writes too much.

Each direction ends by itself: the program's end of stream becomes close_notify and then FIN, the
peer's close_notify becomes end of stream for the program. An error of the connection ends both.

Everything happens in callbacks of the event loop, for as many records as there are: a coroutine's
turn for each would cost more than the encryption. They leave for the next turn what they don't
read, as asyncio's loop allows; uvloop 0.23 calls only once for a socket that has an error.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import select
import socket
from collections.abc import Awaitable, Callable

from OpenSSL import SSL

from ssad import alerts, records
from ssad.alerts import Alert
from ssad.context import Notes, attach
from ssad.policy import TLS_1_3

_READ = 256 * 1024  # bytes to ask a socket for at once
_RECORD = records.PLAINTEXT_MAX  # OpenSSL gives the plaintext of one record at a time
# Records without data, as session tickets, that are passed over before others get their turn.
_WITHOUT_DATA_MAX = 64
# What the peer still sends after the program closed is read, so that our FIN is not overtaken by
# a reset, but not for ever.
_DISCARD_MAX = 4 * 1024 * 1024

# The loop runs one callback at a time, so that all channels share the memory to read into. What
# has to wait is copied.
_inbox = memoryview(bytearray(_READ))
_outbox = memoryview(bytearray(_READ))


def socket_pair() -> tuple[socket.socket, socket.socket]:
    """Make the two ends of a channel: the program's, blocking, and the relay's, nonblocking."""
    pair = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    for end in pair:
        # The kernel limits it to net.core.wmem_max and then doubles it. Only the sender's buffer
        # counts for this family (unix(7)).
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * _READ)
    pair[1].settimeout(0)
    return pair


class Channel:
    """A relay between a program and its peer. To be made in the event loop that runs it."""

    def __init__(
        self,
        connection: SSL.Connection,
        endpoint: socket.socket,
        program: socket.socket,
        on_end: Callable[[int, str], Awaitable[None]],
        close_timeout: float,
        on_ticket: Callable[[], None] | None = None,
    ) -> None:
        """`connection` has done its handshake, over memory, and nothing is left there. The sockets
        are nonblocking and become the channel's: `endpoint` is the TCP socket, `program` the
        relay's end of a socket pair.

        `on_end` is told how the peer's stream ended, once all of it is in the program's socket:
        with 0, or with an errno and a sentence. `on_ticket` is called after a record without data,
        which may have been a session ticket.
        """
        self._loop = asyncio.get_running_loop()
        self._connection = connection
        self._endpoint = endpoint
        self._program = program
        self._on_end = on_end
        self._close_timeout = close_timeout
        self._closing: asyncio.TimerHandle | None = None
        self._incoming = _Incoming(self._loop, connection, endpoint, program)
        self._incoming.on_ticket = on_ticket or _nothing
        self._outgoing = _Outgoing(self._loop, connection, program, endpoint, self._incoming)

    async def run(self) -> None:
        """Relay until both directions have ended, then close both sockets.

        If it fails, or is cancelled, that is for the caller to tell the program; and then to close
        the channel, so that the program does not see an end without its reason.
        """
        try:
            attach(self._connection, self._endpoint)
            self._outgoing.start()
            self._incoming.start()
            error, text = await self._incoming.ended
            await self._on_end(error, text)
            if not error:
                with contextlib.suppress(OSError):
                    self._program.shutdown(socket.SHUT_WR)
            if not error or self._closing:
                await self._outgoing.ended
        finally:
            if self._closing:
                self._closing.cancel()
            self._outgoing.end()
            self._incoming.stop()
        self.close()

    def close(self) -> None:
        """Close both sockets."""
        self._endpoint.close()
        self._program.close()

    def close_soon(self) -> None:
        """The program has closed its socket: deliver what it wrote, say goodbye, and end.

        What could not be delivered within the close timeout is lost.
        """
        if self._closing is None:
            self._closing = self._loop.call_later(self._close_timeout, self._give_up)
            self._incoming.discard()

    def _give_up(self) -> None:
        self._outgoing.end()
        self._incoming.end(errno.ECONNRESET, "The peer did not close its side in time.")


class _Outgoing:
    """From the program to the peer."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        connection: SSL.Connection,
        program: socket.socket,
        endpoint: socket.socket,
        incoming: _Incoming,
    ) -> None:
        self.ended: asyncio.Future[None] = loop.create_future()
        self._incoming = incoming
        incoming.on_read = self._retry
        self._connection = connection
        self._program = program
        self._endpoint = endpoint
        self._reader = _Reader(loop, program, self._readable)
        self._writer = _Writer(loop, endpoint, self._writable)
        # What OpenSSL did not take whole. It knows how far it is, and wants the very same again.
        self._unsent = b""
        self._ending = False

    def start(self) -> None:
        """Begin to read from the program."""
        self._reader.resume()

    def end(self) -> None:
        """Nothing more goes to the peer."""
        self._reader.pause()
        self._writer.forget()
        self._unsent = b""
        if not self.ended.done():
            self.ended.set_result(None)

    def _retry(self) -> None:
        """Something came from the peer: OpenSSL may take what it did not want to take before."""
        if self._unsent and not self._writer.waiting:
            self._writable()

    def _readable(self) -> None:
        try:
            length = self._program.recv_into(_outbox)
        except BlockingIOError:
            return
        except OSError:
            length = 0  # the program has closed its socket and left something unread
        if length:
            self._send(_outbox[:length])
        else:
            self._reader.pause()
            self._ending = True
            self._say_goodbye()

    def _writable(self) -> None:
        self._writer.forget()
        if self._unsent:
            self._send(self._unsent)
        if self._unsent or self.ended.done():
            return
        if self._ending:
            self._say_goodbye()
        else:
            self._reader.resume()

    def _send(self, plaintext: memoryview | bytes) -> None:
        # When a write has failed, OpenSSL reads no more either. So a last word that came before the
        # reset has to be read before.
        self._incoming.catch_up()
        try:
            self._connection.send(plaintext)
        except SSL.WantWriteError:
            self._wait(plaintext)
            self._writer.wait()
        except SSL.WantReadError:
            # OpenSSL is in the middle of a handshake message of the peer's that came in part.
            self._wait(plaintext)
        except SSL.Error as error:
            self._fail(error)
        else:
            self._unsent = b""

    def _wait(self, plaintext: memoryview | bytes) -> None:
        # A copy, for the memory is every channel's.
        self._unsent = bytes(plaintext)
        self._reader.pause()

    def _say_goodbye(self) -> None:
        try:
            self._connection.shutdown()
        except SSL.WantWriteError:
            self._writer.wait()
            return
        except SSL.Error:
            pass  # the connection broke while reading, and that direction reports it
        with contextlib.suppress(OSError):
            self._endpoint.shutdown(socket.SHUT_WR)
        self.end()

    def _fail(self, error: SSL.Error) -> None:
        self._incoming.fail(error)
        self.end()
        # Else the program would wait for ever for room to write.
        with contextlib.suppress(OSError):
            self._program.shutdown(socket.SHUT_RD)


class _Incoming:
    """From the peer to the program."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        connection: SSL.Connection,
        endpoint: socket.socket,
        program: socket.socket,
    ) -> None:
        self.ended: asyncio.Future[tuple[int, str]] = loop.create_future()
        self._connection = connection
        self._notes: Notes = connection.get_app_data()
        self._program = program
        self.on_read: Callable[[], None] = _nothing
        self.on_ticket: Callable[[], None] = _nothing
        self._poll = select.poll()
        self._poll.register(endpoint, select.POLLIN)
        self._reader = _Reader(loop, endpoint, self._readable)
        self._writer = _Writer(loop, program, self._writable)
        self._unread = memoryview(b"")  # what the program's socket did not take
        self._end: tuple[int, str] | None = None  # known, but data may wait before it
        self._discarded: int | None = None  # bytes, once the program has closed its socket

    def start(self) -> None:
        """Begin to read from the peer."""
        self._reader.resume()

    def stop(self) -> None:
        """Touch the sockets no more."""
        self._reader.pause()
        self._writer.forget()

    def discard(self) -> None:
        """There is no one to read it any more, but OpenSSL still gets to see it."""
        if self._discarded is None:
            self._discarded = 0
            if self._unread:
                self._flushed()

    def end(self, error: int, text: str) -> None:
        """Nothing more comes from the peer; what waits still goes to the program."""
        if self._end is None:
            self._end = error, text
        self._reader.pause()
        if not self._unread and not self.ended.done():
            self.ended.set_result(self._end)

    def fail(self, error: SSL.Error) -> None:
        """The connection broke while sending."""
        self.end(*self._why(error))

    def catch_up(self) -> None:
        """Read what is there, unless the program has to read first."""
        if self._end is None and not self._unread and self._poll.poll(0):
            self._read()

    def _readable(self) -> None:
        self._read()
        self.on_read()

    def _read(self) -> None:
        length = without_data = 0
        end: tuple[int, str] | None = None
        try:
            # Always with room for a whole record: what OpenSSL kept of one, no poll would tell of.
            while length <= _READ - _RECORD:
                try:
                    record = self._connection.recv_into(_inbox[length:], _RECORD)
                except (SSL.WantReadError, SSL.WantWriteError):
                    # There is no more; or a record held no data, and more may follow it.
                    self.on_ticket()
                    without_data += 1
                    if without_data > _WITHOUT_DATA_MAX or not self._poll.poll(0):
                        break
                    continue
                length += record
                # A short message mostly comes alone, and to ask costs less than to try to read.
                if length == record < _RECORD and not self._poll.poll(0):
                    break
        except SSL.ZeroReturnError:
            end = 0, ""
        except SSL.Error as error:
            end = self._why(error)
        if length:
            self._deliver(_inbox[:length])
        if end:
            self.end(*end)

    def _deliver(self, plaintext: memoryview) -> None:
        if self._discarded is not None:
            self._discarded += len(plaintext)
            if self._discarded > _DISCARD_MAX:
                self.end(0, "")
            return
        try:
            sent = self._program.send(plaintext)
        except BlockingIOError:
            sent = 0
        except OSError:
            self.discard()  # the program has closed its socket
            return
        if sent < len(plaintext):
            # A copy, for the memory is every channel's.
            self._unread = memoryview(bytes(plaintext[sent:]))
            self._reader.pause()
            self._writer.wait()

    def _writable(self) -> None:
        try:
            sent = self._program.send(self._unread)
        except BlockingIOError:
            return
        except OSError:
            self.discard()
            return
        self._unread = self._unread[sent:]
        if not self._unread:
            self._flushed()

    def _flushed(self) -> None:
        self._unread = memoryview(b"")
        self._writer.forget()
        if self._end is not None:
            self.end(*self._end)
        else:
            self._reader.resume()

    def _why(self, error: SSL.Error) -> tuple[int, str]:
        alert = self._notes.alert_received
        # That one ends nothing in TLS 1.3, whatever its level (RFC 8446, 6.1).
        if alert == Alert.USER_CANCELED and self._connection.get_protocol_version() == TLS_1_3:
            alert = None
        if alert is not None:
            text = f"The peer ended the connection with the alert {alerts.name(alert)}."
            return errno.EPROTO, text
        if not isinstance(error, SSL.SysCallError):
            reasons = ", ".join(reason for *_, reason in error.args[0]) if error.args else ""
            return errno.EPROTO, f"The peer broke the TLS protocol: {reasons or 'unknown error'}."
        number = error.args[0]
        if number <= 0 and self._connection.get_shutdown() & SSL.RECEIVED_SHUTDOWN:
            # OpenSSL does not tell close_notify as such once user_canceled has come (TLS 1.3).
            return 0, ""
        if number <= 0:
            text = "The peer closed the connection without close_notify; data may be missing."
            return errno.ECONNRESET, text
        if number in {errno.ECONNRESET, errno.EPIPE}:
            return errno.ECONNRESET, "The peer reset the connection."
        return number, f"The connection failed: {os.strerror(number)}."


class _Reader:
    """Calls back whenever a socket can be read, unless paused."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, sock: socket.socket, callback: Callable[[], None]
    ) -> None:
        self._loop = loop
        self._sock = sock
        self._callback = callback
        self._reading = False

    def resume(self) -> None:
        if not self._reading:
            self._reading = True
            self._loop.add_reader(self._sock, self._callback)

    def pause(self) -> None:
        if self._reading:
            self._reading = False
            self._loop.remove_reader(self._sock)


class _Writer:
    """Calls back when a socket that was full can be written."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, sock: socket.socket, callback: Callable[[], None]
    ) -> None:
        self._loop = loop
        self._sock = sock
        self._callback = callback
        self.waiting = False

    def wait(self) -> None:
        if not self.waiting:
            self.waiting = True
            self._loop.add_writer(self._sock, self._callback)

    def forget(self) -> None:
        if self.waiting:
            self.waiting = False
            self._loop.remove_writer(self._sock)


def _nothing() -> None:
    pass
