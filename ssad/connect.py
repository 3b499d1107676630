# SPDX-License-Identifier: BSD-3-Clause
"""One connect request: from the endpoint under way to a transport for the program."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass

from ssad import errors, ktls
from ssad.address import Address
from ssad.channel import socket_pair
from ssad.errors import HandshakeError, Refused
from ssad.handshake import ClientHandshake, Result
from ssad.policy import Policy
from ssad.records import read_record
from ssad.settings import Settings
from ssad.wire import (
    CHAIN_PIECE_MAX,
    IDENTITY_MAX,
    Attributes,
    Transport,
    clip,
)

log = logging.getLogger(__name__)

# More than OpenSSL takes of a peer's certificates (SSL_CTX_set_max_cert_list(3)), which are most
# of what a peer sends at once.
_FLIGHT_MAX = 256 * 1024


@dataclass(slots=True)
class Connection:
    """A finished connect. What it holds is closed by close()."""

    result: Result
    transport: Transport
    endpoint: socket.socket | None = None  # channel only: with ktls the program's is the last one
    program: socket.socket | None = None  # the program's end of the channel
    relay: socket.socket | None = None  # our end of it

    def attributes(self, host_name: str | None) -> Attributes:
        """Say what was negotiated, as the completion carries it."""
        result = self.result
        found: Attributes = {
            "transport": self.transport,
            "version": result.version,
            "cipher": result.cipher,
            "peer_identity": clip(result.peer_identity, IDENTITY_MAX),
            "peer_chain": _chain_pieces(result.peer_chain),
            "resumed": int(result.resumed),
        }
        if result.alpn:
            found["alpn"] = result.alpn
        if host_name is not None:
            found["host_name"] = host_name
        if self.program is not None:
            found["fd"] = self.program.fileno()
        return found

    def close(self) -> None:
        """Close everything."""
        for held in (self.endpoint, self.program, self.relay):
            if held is not None:
                held.close()


class Connector:
    """Makes connections by the policy, many at once."""

    # Handshakes under way at once; further ones wait for their turn. It bounds the memory, and
    # keeps a burst of connects from slowing every one of them beyond its deadline.
    HANDSHAKES_MAX = 1024

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._turns = asyncio.Semaphore(self.HANDSHAKES_MAX)
        self._fallbacks: set[str] = set()

    async def connect(
        self, endpoint: socket.socket, remote: Address, settings: Settings
    ) -> Connection:
        """Wait for TCP, do the handshake, prepare the transport. Takes over the endpoint.

        Raises Refused: TCP's own errno if it did not connect, EPROTO if the handshake or a
        verification failed, ECONNABORTED if the connection broke meanwhile or the transport could
        not be made.
        """
        with contextlib.ExitStack() as cleanup:
            cleanup.callback(endpoint.close)
            loop = asyncio.get_running_loop()
            await _established(loop, endpoint)
            limit = self._policy.handshake_timeout
            try:
                # A wait for our turn is no fault of the peer's.
                async with self._turns, asyncio.timeout(limit):
                    handshake = ClientHandshake(settings, self._policy, remote.ip)
                    result = await _shake_hands(loop, endpoint, handshake)
            except TimeoutError as error:
                raise errors.deadline(limit) from error
            if self._install_ktls(endpoint, result):
                return Connection(result, Transport.KTLS)
            connection = _with_channel(endpoint, result)
            cleanup.pop_all()
            return connection

    def _install_ktls(self, endpoint: socket.socket, result: Result) -> bool:
        """Hand the keys to the kernel. False if the channel has to do instead."""
        if self._policy.transport == "channel":
            return False
        try:
            if result.keys is None:
                reason = f"Kernel TLS can't do {result.cipher}."
            else:
                ktls.install(endpoint, result.keys)
                return True
        except OSError as error:
            reason = str(error.strerror)
        if self._policy.transport == "ktls":
            raise HandshakeError(
                errno.ECONNABORTED, f"The policy wants kernel TLS for every connection. {reason}"
            )
        if reason not in self._fallbacks:
            self._fallbacks.add(reason)
            log.warning("%s The daemon relays such connections itself, which is slower.", reason)
        return False


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


async def _shake_hands(
    loop: asyncio.AbstractEventLoop, endpoint: socket.socket, handshake: ClientHandshake
) -> Result:
    await _send(loop, endpoint, handshake.start())
    while not handshake.done:
        record = await read_record(loop, endpoint)
        try:
            answer = handshake.receive_record(record)
        except HandshakeError:
            _send_alert(endpoint, handshake.pending_output)
            raise
        if answer:
            await _send(loop, endpoint, answer)
    return handshake.result


async def _send(loop: asyncio.AbstractEventLoop, endpoint: socket.socket, data: bytes) -> None:
    try:
        await loop.sock_sendall(endpoint, data)
    except OSError as error:
        raise errors.peer_reset(error) from error


def _send_alert(endpoint: socket.socket, pending_output: Callable[[], bytes]) -> None:
    # The handshake has failed already: a peer that does not take the alert does not get it.
    with contextlib.suppress(OSError):
        endpoint.send(pending_output())
        endpoint.shutdown(socket.SHUT_WR)
        # To close a socket with something unread resets the connection, and the peer might hear of
        # that before it reads the alert.
        endpoint.recv(_FLIGHT_MAX)


def _with_channel(endpoint: socket.socket, result: Result) -> Connection:
    program, relay = socket_pair()
    return Connection(result, Transport.CHANNEL, endpoint, program, relay)


def _chain_pieces(chain: bytes) -> list[bytes]:
    """Cut a chain into pieces that one attribute can carry."""
    return [
        chain[start : start + CHAIN_PIECE_MAX] for start in range(0, len(chain), CHAIN_PIECE_MAX)
    ]
