# SPDX-License-Identifier: BSD-3-Clause
"""Listening sockets: accept from TCP, do the handshakes, hand the connections over.

So that peers that are silent or slow can't keep others out, the handshakes under way are bounded,
for a listener and in all. Where a bound is reached, the one that has waited for longest gives way,
but no earlier than a second after it began; until then no more are accepted, and TCP's backlog
holds them.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
from collections.abc import Callable

from ssad.address import Address
from ssad.connection import Connection, Establisher
from ssad.errors import HandshakeError, Refused
from ssad.handshake import Handshake

log = logging.getLogger(__name__)

# Connections taken in one turn of the event loop, so that handshakes under way get theirs.
_BATCH = 16
# Seconds that a handshake may take before others may push it out.
_GRACE = 1.0
# Seconds without accepting after the system has run out of descriptors or memory.
_PAUSE = 0.5

_SHORTAGES = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
# The listener itself is closed: EINVAL, or EBADF. The rest is a connection's that failed before
# it was accepted (accept(2), "Error handling").
_ENDED = {errno.EINVAL, errno.EBADF, errno.ENOTSOCK, errno.EOPNOTSUPP}

_GAVE_WAY = (
    "The client did not finish the TLS handshake, and gave way to others: "
    "as many as are allowed were under way."
)


class Bound:
    """Handshakes under way, of one listener or of all, in the order in which they began."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._under_way: dict[asyncio.Task[None], float] = {}

    def set_limit(self, limit: int) -> None:
        """Change the limit. If more are under way, each new one pushes out an old one."""
        self._limit = limit

    def add(self, task: asyncio.Task[None], now: float) -> None:
        """One has begun."""
        self._under_way[task] = now

    def remove(self, task: asyncio.Task[None]) -> None:
        """One is over."""
        self._under_way.pop(task, None)

    def make_room(self, now: float) -> float:
        """Return 0 if another handshake may begin, else the seconds until one can be pushed out.

        Pushes out the oldest, if there is no room and it has had its time.
        """
        if len(self._under_way) < self._limit:
            return 0.0
        oldest, began = next(iter(self._under_way.items()))
        if now - began < _GRACE:
            return _GRACE - (now - began)
        del self._under_way[oldest]
        oldest.cancel(_GAVE_WAY)
        return 0.0

    def tasks(self) -> set[asyncio.Task[None]]:
        """Return those that are under way."""
        return set(self._under_way)


class Listener:
    """Serves one listening socket. To be made in the event loop that runs it."""

    def __init__(
        self,
        endpoint: socket.socket,
        begin: Callable[[], Handshake],
        establisher: Establisher,
        bounds: tuple[Bound, Bound],
        deliver: Callable[[Address, Connection | Refused], None],
        uid: int,
    ) -> None:
        """`endpoint` is nonblocking, listens, and becomes the listener's. `begin` makes the
        handshake of a connection; `bounds` are this listener's own and the one of all; `deliver`
        is given each connection, or the reason why there is none; `uid` is whose it is."""
        self._loop = asyncio.get_running_loop()
        self._endpoint = endpoint
        self._begin = begin
        self._establisher = establisher
        self._own, self._all = bounds
        self._deliver = deliver
        self._uid = uid
        self._full = False  # the program's queue
        self._pause: asyncio.TimerHandle | None = None
        self._reading = False
        self._closed = False

    def start(self) -> None:
        """Begin to accept."""
        self._update()

    def close(self) -> set[asyncio.Task[None]]:
        """Accept no more. Returns the handshakes under way, to be awaited or cancelled."""
        self._closed = True
        self._update()
        self._endpoint.close()
        return self._own.tasks()

    def change(self, begin: Callable[[], Handshake], limit: int) -> None:
        """Make handshakes in another way from now on, and no more than `limit` at once."""
        self._begin = begin
        self._own.set_limit(limit)

    def set_full(self, full: bool) -> None:  # noqa: FBT001 - it is what it says
        """The program's queue is full, or has room again."""
        self._full = full
        self._update()

    def _update(self) -> None:
        """Accept, or do not, as things stand."""
        if self._closed and self._pause is not None:
            self._pause.cancel()
            self._pause = None
        reading = not (self._closed or self._full or self._pause is not None)
        if reading == self._reading:
            return
        self._reading = reading
        if reading:
            self._loop.add_reader(self._endpoint, self._accept)
        else:
            self._loop.remove_reader(self._endpoint)

    def _rest(self, seconds: float) -> None:
        self._pause = self._loop.call_later(seconds, self._go_on)
        self._update()

    def _go_on(self) -> None:
        if self._pause is not None:
            self._pause.cancel()
            self._pause = None
            self._update()

    def _accept(self) -> None:
        for _ in range(_BATCH):
            now = self._loop.time()
            wait = self._own.make_room(now) or self._all.make_room(now)
            if wait:
                self._rest(wait)
                return
            try:
                connection, address = self._endpoint.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if not self._accept_failed(error):
                    return
                continue
            connection.settimeout(0)
            remote = Address.of_socket(address)
            task = self._loop.create_task(self._serve(connection, remote))
            self._own.add(task, now)
            self._all.add(task, now)
            task.add_done_callback(self._over)

    def _accept_failed(self, error: OSError) -> bool:
        """Tell whether to go on."""
        if error.errno in _SHORTAGES:
            log.warning("No connection can be accepted for a moment: %s.", error.strerror)
            self._rest(_PAUSE)
            return False
        if error.errno in _ENDED:
            # The program has closed its socket; the module is about to say so.
            self._closed = True
            self._update()
            return False
        return True

    def _over(self, task: asyncio.Task[None]) -> None:
        self._own.remove(task)
        self._all.remove(task)
        self._go_on()

    async def _serve(self, endpoint: socket.socket, remote: Address) -> None:
        found: Connection | Refused
        try:
            found = await self._establisher.establish(endpoint, self._begin, self._uid)
        except Refused as refused:
            found = refused
        except asyncio.CancelledError as cancelled:
            if cancelled.args != (_GAVE_WAY,):
                raise
            found = HandshakeError(errno.EPROTO, _GAVE_WAY)
        except Exception:
            log.exception("A handshake with %s failed.", remote)
            found = Refused(errno.ECANCELED, "ssad failed internally; its log says more.")
        self._deliver(remote, found)
