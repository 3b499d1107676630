# SPDX-License-Identifier: BSD-3-Clause
"""From a TCP connection to a TLS connection with a transport, in either role."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import socket
from collections.abc import Callable
from dataclasses import dataclass

from ssad import errors, ktls
from ssad.alerts import Alert
from ssad.channel import socket_pair
from ssad.errors import HandshakeError
from ssad.handshake import Handshake, Result
from ssad.policy import Policy
from ssad.records import read_record
from ssad.revocation import Checker, Revoked
from ssad.sessions import Visit
from ssad.wire import CHAIN_PIECE_MAX, IDENTITY_MAX, Attributes, Transport, clip

log = logging.getLogger(__name__)

# More than OpenSSL takes of a peer's certificates (SSL_CTX_set_max_cert_list(3)), which are most
# of what a peer sends at once.
_FLIGHT_MAX = 256 * 1024
# A handshake takes about ten, and some more if certificates are long. OpenSSL itself passes over
# some kinds of message without end.
_RECORDS_MAX = 1000


@dataclass(slots=True)
class Connection:
    """A finished handshake. What it holds is closed by close()."""

    result: Result
    endpoint: socket.socket
    program: socket.socket | None = None  # the program's end of a channel
    relay: socket.socket | None = None  # our end of it
    chosen: int = 0  # which of the connect's endpoints it is
    visit: Visit | None = None  # of a client, what keeps its sessions

    @property
    def transport(self) -> Transport:
        """What carries the program's bytes."""
        return Transport.KTLS if self.program is None else Transport.CHANNEL

    def attributes(self, host_name: str | None) -> Attributes:
        """Say what was negotiated, as the module is told."""
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
        if host_name:
            found["host_name"] = host_name
        if self.chosen:
            found["endpoint"] = self.chosen
        if self.program is not None:
            found["fd"] = self.program.fileno()
        return found

    def close(self) -> None:
        """Close everything."""
        for held in (self.endpoint, self.program, self.relay):
            if held is not None:
                held.close()


class Establisher:
    """Makes TLS connections of TCP connections by the policy, many at once."""

    def __init__(self, policy: Policy, checker: Checker) -> None:
        self._policy = policy
        self._checker = checker
        self._fallbacks: set[str] = set()

    def adopt(self, policy: Policy) -> None:
        """Go by another policy with what begins from now on."""
        self._policy = policy

    async def establish(
        self, endpoint: socket.socket, begin: Callable[[], Handshake], uid: int
    ) -> Connection:
        """Do the handshake for a user and prepare the transport. Takes over the endpoint.

        Raises Refused: EPROTO if the handshake or a verification failed or took too long,
        ECONNABORTED if the connection broke meanwhile or the transport could not be made.
        """
        with contextlib.ExitStack() as cleanup:
            cleanup.callback(endpoint.close)
            limit = self._policy.handshake_timeout
            try:
                async with asyncio.timeout(limit):
                    loop = asyncio.get_running_loop()
                    result = await _shake_hands(loop, endpoint, begin(), self._checker, uid)
            except TimeoutError as error:
                raise errors.deadline(limit) from error
            connection = Connection(result, endpoint)
            if not self._install_ktls(endpoint, result):
                try:
                    connection.program, connection.relay = socket_pair()
                except OSError as error:
                    text = f"No channel could be made: {error.strerror}."
                    raise HandshakeError(errno.ECONNABORTED, text) from error
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
            if error.errno == errno.ENOTCONN and self._policy.transport == "auto":
                return False  # no fault of the kernel's: the peer has closed its side already
        if self._policy.transport == "ktls":
            raise HandshakeError(
                errno.ECONNABORTED, f"The policy wants kernel TLS for every connection. {reason}"
            )
        if reason not in self._fallbacks:
            self._fallbacks.add(reason)
            log.warning("%s The daemon relays such connections itself, which is slower.", reason)
        return False


async def _shake_hands(
    loop: asyncio.AbstractEventLoop,
    endpoint: socket.socket,
    handshake: Handshake,
    checker: Checker,
    uid: int,
) -> Result:
    first = handshake.start()
    if first:
        await _send(loop, endpoint, first)
    received = 0
    while not handshake.done:
        record = await read_record(loop, endpoint)
        received += 1
        if received > _RECORDS_MAX:
            raise HandshakeError(
                errno.EPROTO, f"The peer sent more than {_RECORDS_MAX} records in its handshake."
            )
        # What is there already is read without waiting: others, and the deadline, get their turn.
        await asyncio.sleep(0)
        try:
            answer = handshake.receive_record(record)
        except HandshakeError:
            _send_alert(endpoint, handshake.pending_output)
            raise
        if answer or handshake.done:
            await _check_peer(endpoint, handshake, checker, uid)
        if answer:
            await _send(loop, endpoint, answer)
    return handshake.result


async def _check_peer(
    endpoint: socket.socket, handshake: Handshake, checker: Checker, uid: int
) -> None:
    """Check the peer for revocation, if that is to be done now."""
    try:
        peer = handshake.unchecked_peer(uid)
        if peer is not None:
            await checker.check(peer)
    except HandshakeError as error:
        revoked = isinstance(error, Revoked)
        alert = Alert.CERTIFICATE_REVOKED if revoked else Alert.CERTIFICATE_UNKNOWN
        _send_alert(endpoint, lambda: handshake.alert(alert))
        raise


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


def _chain_pieces(chain: bytes) -> list[bytes]:
    """Cut a chain into pieces that one attribute can carry."""
    return [
        chain[start : start + CHAIN_PIECE_MAX] for start in range(0, len(chain), CHAIN_PIECE_MAX)
    ]
