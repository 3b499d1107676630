# SPDX-License-Identifier: BSD-3-Clause
"""One connect request: from where it is to go to a transport for the program."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
from collections.abc import Callable, Sequence
from typing import Protocol

from ssad.address import Address
from ssad.connection import Connection, Establisher
from ssad.errors import Refused
from ssad.handshake import ClientHandshake
from ssad.policy import Policy
from ssad.race import Race, Start, interleave
from ssad.resolver import Resolver
from ssad.sessions import Visit
from ssad.settings import Settings
from ssad.turns import Turns

BeginVisit = Callable[[Policy], Visit | None]

_IP_VERSIONS = {socket.AF_INET: 4, socket.AF_INET6: 6}


class Endpoints(Protocol):
    """The endpoints of a connect request, which it has as long as the program waits."""

    def __len__(self) -> int: ...

    def open(self, index: int) -> socket.socket:
        """Return a new, nonblocking descriptor of an endpoint.

        Raises LinkError, with ENOENT if the program has given up.
        """


class Connector:
    """Makes connections by the policy, many at once."""

    def __init__(self, policy: Policy, establisher: Establisher) -> None:
        self._policy = policy
        self._establisher = establisher
        # They bound the memory, and keep a burst of connects from slowing every one of them beyond
        # its deadline.
        self._turns = Turns(policy.connects_total, policy.connects_per_user)
        self._races = Turns(policy.connects_total, policy.connects_per_user)
        self._resolver = Resolver()

    def adopt(self, policy: Policy) -> None:
        """Go by another policy with what begins from now on."""
        self._policy = policy
        self._turns.set_limits(policy.connects_total, policy.connects_per_user)
        self._races.set_limits(policy.connects_total, policy.connects_per_user)

    async def connect(
        self,
        endpoints: Endpoints,
        remote: Address,
        settings: Settings,
        uid: int,
        visit: BeginVisit,
    ) -> Connection:
        """Wait until the one endpoint, which the module is connecting, is connected, then for a
        turn of this user's, and establish. `visit` finds the sessions that can be resumed.

        Raises Refused: TCP's own errno if it did not connect, else as Establisher.establish.
        """
        endpoint = endpoints.open(0)
        try:
            await _established(endpoint)
        except BaseException:
            endpoint.close()
            raise
        return await self._establish(endpoint, remote, settings, uid, visit)

    async def connect_to_name(
        self,
        endpoints: Endpoints,
        name: str,
        port: int,
        settings: Settings,
        uid: int,
        visit: BeginVisit,
    ) -> Connection:
        """Connect one of the endpoints to a host, and establish.

        Raises Refused as `connect` and Resolver.resolve.
        """
        addresses = await self._resolver.resolve(name, port, uid, self._policy.resolve_timeout)
        # Each has descriptors of all its endpoints.
        async with self._races.one(uid):
            opened = await _race(endpoints, addresses, name, self._policy.attempt_delay)
        connection = await self._establish(opened.sock, opened.address, settings, uid, visit)
        connection.chosen = opened.endpoint
        return connection

    async def _establish(
        self,
        endpoint: socket.socket,
        remote: Address,
        settings: Settings,
        uid: int,
        visit: BeginVisit,
    ) -> Connection:
        try:
            # A wait for our turn is no fault of the peer's: its deadline does not run yet.
            async with self._turns.one(uid):
                # The session, the handshake and what is kept of it go by one policy.
                policy = self._policy
                begun = visit(policy)
                connection = await self._establisher.establish(
                    endpoint, lambda: ClientHandshake(settings, policy, remote.ip, begun), uid
                )
                connection.visit = begun
                return connection
        except BaseException:
            endpoint.close()
            raise


async def _established(endpoint: socket.socket) -> None:
    """Wait until TCP's connect is over. Raises Refused with its errno if it failed."""
    try:
        endpoint.getpeername()  # fails as long as there is none: spares waiting on a fast network
    except OSError:
        await _writable(endpoint)
        number = endpoint.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if number:
            text = f"TCP could not connect: {os.strerror(number)}."
            raise Refused(number, text) from None


class _Attempt:
    """One endpoint on its way to one address."""

    def __init__(self, start: Start, sock: socket.socket) -> None:
        self.endpoint = start.endpoint
        self.address = start.address
        self.sock = sock
        self.task = asyncio.create_task(self._connect())

    async def _connect(self) -> None:
        """Connect, or raise OSError; then the endpoint can be connected once more."""
        name = str(self.address.ip), self.address.port
        number = self.sock.connect_ex(name)
        while number in {errno.EINPROGRESS, errno.EALREADY}:
            await _writable(self.sock)
            # To ask again, rather than for SO_ERROR, is what makes TCP ready for another address.
            number = self.sock.connect_ex(name)
            if number == errno.EINPROGRESS:
                # A new attempt: the module has ended the first, for the program has given up.
                self.sock.shutdown(socket.SHUT_RDWR)
                number = errno.ECONNABORTED
        if number:
            raise OSError(number, os.strerror(number))

    @property
    def connected(self) -> bool:
        """Whether TCP is connected, be it that nobody has noticed yet."""
        try:
            self.sock.getpeername()
        except OSError:
            return False
        return True

    def stop(self) -> None:
        """Begin to stop; once the task is done the endpoint can be connected once more."""
        self.task.cancel()
        # Before those that wake who waits for the task, and also if nobody does any more.
        self.task.add_done_callback(self._close)

    def _close(self, _task: asyncio.Task[None]) -> None:
        with contextlib.suppress(OSError):  # it has ended already
            self.sock.shutdown(socket.SHUT_RDWR)  # which ends TCP's attempt
        self.sock.close()


async def _race(
    endpoints: Endpoints, addresses: Sequence[Address], name: str, attempt_delay: float
) -> _Attempt:
    """Return the first attempt that is connected.

    Raises Refused with the errno of the attempt that got farthest, if none is.
    """
    versions = _versions(endpoints)
    usable = [address for address in interleave(addresses) if address.ip.version in versions]
    if not usable:
        wanted = " or ".join(f"IPv{version}" for version in sorted(set(versions)))
        raise Refused(errno.ECONNABORTED, f"{name} has no {wanted} address.")
    race = Race(versions, usable)
    running: dict[int, _Attempt] = {}
    failures: list[tuple[Address, OSError]] = []
    winner: _Attempt | None = None
    try:
        while winner is None and not race.lost:
            winner = await _start_next(race, running, endpoints)
            if winner is None:
                delay = race.delay(attempt_delay)
                winner = await _first_ended(race, running, failures, delay)
    finally:
        await _stop([attempt for attempt in running.values() if attempt is not winner], winner)
    if winner is None:
        raise _all_failed(name, failures)
    return winner


async def _first_ended(
    race: Race,
    running: dict[int, _Attempt],
    failures: list[tuple[Address, OSError]],
    delay: float | None,
) -> _Attempt | None:
    """Wait until an attempt ends, `delay` seconds at most. Returns one that is connected, and takes
    those that failed out of `running`."""
    tasks = [attempt.task for attempt in running.values()]
    done, _ = await asyncio.wait(tasks, timeout=delay, return_when=asyncio.FIRST_COMPLETED)
    for attempt in [one for one in running.values() if one.task in done]:
        error = attempt.task.exception()
        if error is None:
            return attempt
        if not isinstance(error, OSError):
            raise error
        del running[attempt.endpoint]
        attempt.sock.close()
        race.failed(attempt.endpoint)
        failures.append((attempt.address, error))
    return None


async def _stop(losers: Sequence[_Attempt], winner: _Attempt | None) -> None:
    """Stop what is still under way; if this is itself ended before, nothing is left open."""
    for attempt in losers:
        attempt.stop()
    if not losers:
        return
    try:
        await asyncio.wait([attempt.task for attempt in losers])
    except BaseException:
        if winner is not None:
            winner.sock.close()
        raise


async def _start_next(
    race: Race, running: dict[int, _Attempt], endpoints: Endpoints
) -> _Attempt | None:
    """Start the next attempt, if there is one. Returns one that was to give way to it, but is
    connected."""
    start = race.next()
    if start is None:
        return None
    before = running.get(start.endpoint)
    if before is not None:
        if before.connected:
            await asyncio.wait([before.task])
            if before.task.exception() is None:
                return before
        before.stop()
        await asyncio.wait([before.task])
        del running[start.endpoint]
    running[start.endpoint] = _Attempt(start, endpoints.open(start.endpoint))
    return None


# Errors that say nothing of the host, only that it can't be reached from here.
_UNREACHED = {errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT}


def _all_failed(name: str, failures: Sequence[tuple[Address, OSError]]) -> Refused:
    reached = [error for _, error in failures if error.errno not in _UNREACHED]
    error = (reached or [error for _, error in failures])[0]
    each = "; ".join(f"{address}: {error.strerror}" for address, error in failures)
    return Refused(error.errno or errno.ECONNABORTED, f"TCP could not connect to {name} ({each}).")


def _versions(endpoints: Endpoints) -> list[int]:
    """Return the version of IP that each endpoint speaks."""
    versions = []
    for index in range(len(endpoints)):
        with endpoints.open(index) as endpoint:
            versions.append(_IP_VERSIONS[socket.AddressFamily(endpoint.family)])
    return versions


async def _writable(sock: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()
    loop.add_writer(sock.fileno(), _wake, ready)
    try:
        await ready
    finally:
        loop.remove_writer(sock.fileno())


def _wake(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)
