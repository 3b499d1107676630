# SPDX-License-Identifier: BSD-3-Clause
"""One connect request: from the endpoint under way to a transport for the program."""

from __future__ import annotations

import asyncio
import os
import socket

from ssad.address import Address
from ssad.connection import Connection, Establisher
from ssad.errors import Refused
from ssad.handshake import ClientHandshake
from ssad.policy import Policy
from ssad.settings import Settings


class Connector:
    """Makes connections by the policy, many at once."""

    # Handshakes under way at once; further ones wait for their turn. It bounds the memory, and
    # keeps a burst of connects from slowing every one of them beyond its deadline.
    HANDSHAKES_MAX = 1024

    def __init__(self, policy: Policy, establisher: Establisher) -> None:
        self._policy = policy
        self._establisher = establisher
        self._turns = asyncio.Semaphore(self.HANDSHAKES_MAX)

    async def connect(
        self, endpoint: socket.socket, remote: Address, settings: Settings
    ) -> Connection:
        """Wait for TCP, then for our turn, and establish. Takes over the endpoint.

        Raises Refused: TCP's own errno if it did not connect, else as Establisher.establish.
        """
        try:
            await _established(asyncio.get_running_loop(), endpoint)
            # A wait for our turn is no fault of the peer's: its deadline does not run yet.
            async with self._turns:
                return await self._establisher.establish(
                    endpoint, lambda: ClientHandshake(settings, self._policy, remote.ip)
                )
        except BaseException:
            endpoint.close()
            raise


async def _established(loop: asyncio.AbstractEventLoop, endpoint: socket.socket) -> None:
    """Wait until TCP's connect is over. Raises Refused with its errno if it failed."""
    try:
        endpoint.getpeername()  # fails as long as there is none: spares waiting on a fast network
    except OSError:
        await _writable(loop, endpoint)
        number = endpoint.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if number:
            text = f"TCP could not connect: {os.strerror(number)}."
            raise Refused(number, text) from None


async def _writable(loop: asyncio.AbstractEventLoop, sock: socket.socket) -> None:
    ready: asyncio.Future[None] = loop.create_future()
    loop.add_writer(sock.fileno(), _wake, ready)
    try:
        await ready
    finally:
        loop.remove_writer(sock.fileno())


def _wake(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)
