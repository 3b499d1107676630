# SPDX-License-Identifier: BSD-3-Clause
"""Sessions of client connections, kept so that later connections can resume them.

A resumed connection shows no certificate: it is as good as the full handshake in which its session
began. So a session is resumed only by a socket that would have accepted that handshake: of the same
user in the same network namespace, to the same name and port, with the same settings, policy and
trust store. And only for a time that counts from that handshake, however often it was resumed since
(RFC 8446, 4.6.1), and not beyond the validity of the certificates that were shown in it.

What is kept is a worker's own: another worker makes a full handshake first.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import math
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, fields
from typing import NamedTuple

from cryptography import x509
from OpenSSL import SSL

from ssad import trust
from ssad.context import is_current_session, resumed
from ssad.policy import TLS_1_3, Policy
from ssad.settings import Settings
from ssad.wire import TICKETS_MAX

# Settings that make no difference to what a session is good for, or that count in another way.
_APART = {"host_name", "identities", "pending_chain", "session_reuse", "session_ttl"}

# Of one key. Most servers send two tickets, and a busy program uses some at once.
_PER_KEY = 4


def _boot_time() -> float:
    """Return seconds; they pass while the machine sleeps, too."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def _today() -> dt.datetime:
    return dt.datetime.now(dt.UTC)


class Owner(NamedTuple):
    """Whose sessions they are."""

    uid: int
    netns: int  # cookie


class Validity(NamedTuple):
    """When all certificates of a chain are valid."""

    first: dt.datetime
    last: dt.datetime

    @classmethod
    def of(cls, chain: Iterable[x509.Certificate]) -> Validity | None:
        """None if there is no chain."""
        times = [(one.not_valid_before_utc, one.not_valid_after_utc) for one in chain]
        if not times:
            return None
        return cls(max(first for first, _ in times), min(last for _, last in times))


@dataclass(frozen=True, slots=True)
class Kept:
    """A session that can be resumed. Times as the cache's clock has them."""

    session: SSL.Session = field(repr=False)
    began: float  # its full handshake
    ends: float
    valid: Validity  # the certificates that were shown in it


class SessionCache:
    """The sessions by what they are good for; the ones that were not used for longest go first."""

    def __init__(
        self,
        limit: int,
        clock: Callable[[], float] = _boot_time,
        today: Callable[[], dt.datetime] = _today,
    ) -> None:
        """`limit`: how many sessions; `clock` tells seconds, `today` the time that certificates are
        judged by, which can be set."""
        self._limit = limit
        self.clock = clock
        self._today = today
        self._kept: OrderedDict[bytes, list[Kept]] = OrderedDict()
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def set_limit(self, limit: int) -> None:
        """Change how many sessions are kept."""
        self._limit = limit
        self._shrink()

    def visit(
        self, owner: Owner, settings: Settings, policy: Policy, peer: str, port: int
    ) -> Visit | None:
        """Begin a connection to `peer`, as its certificate has to name it; None if its socket
        wants, or is allowed, full handshakes only.

        So it is where somebody has to be asked about the peer's certificates each time: a resumed
        connection does not show them all.

        Raises HandshakeError if there is no trust store.
        """
        if not (settings.session_reuse and policy.client_sessions):
            return None
        if settings.checks.rules(policy).online:
            return None
        key = _key(owner, settings, policy, (peer, port))
        return Visit(self, key, settings.session_lifetime(policy))

    def take(self, key: bytes, lifetime: float) -> Kept | None:
        """Take out the newest session, if its full handshake is less than `lifetime` ago.

        Taken out: with a ticket of TLS 1.3 that is used twice, who listens could link both
        connections (RFC 8446, C.4). One of TLS 1.2 comes back with the connection.
        """
        now, today = self.clock(), self._today()
        kept = self._kept.pop(key, [])
        alive = [
            one for one in kept if now < one.ends and one.valid.first <= today <= one.valid.last
        ]
        found = None
        if alive and now < alive[-1].began + lifetime:
            found = alive.pop()
        self._count -= len(kept) - len(alive)
        if alive:
            self._kept[key] = alive
        return found

    def add(self, key: bytes, kept: Kept) -> None:
        """Keep a session."""
        of_key = self._kept.setdefault(key, [])
        self._kept.move_to_end(key)
        of_key.append(kept)
        self._count += 1
        if len(of_key) > _PER_KEY:
            del of_key[0]
            self._count -= 1
        self._shrink()

    def _shrink(self) -> None:
        while self._count > self._limit:
            _, oldest = self._kept.popitem(last=False)
            self._count -= len(oldest)


class Visit:
    """The sessions of one connection: the one it may resume, and those that it brings."""

    def __init__(self, cache: SessionCache, key: bytes, lifetime: float) -> None:
        """`lifetime`: seconds that its sessions may be resumed."""
        self._cache = cache
        self._key = key
        self._lifetime = lifetime
        self._offered: Kept | None = None
        self._current: SSL.Session | None = None
        self._began = self._ends = 0.0
        self._valid: Validity | None = None
        self._left = TICKETS_MAX

    def offer(self, connection: SSL.Connection) -> None:
        """Let a connection that has not begun ask to resume a session, if there is one."""
        self._offered = self._cache.take(self._key, self._lifetime)
        if self._offered is not None:
            connection.set_session(self._offered.session)

    def begin(self, connection: SSL.Connection, chain: Iterable[x509.Certificate]) -> None:
        """The handshake is done, and the peer has proved to be whom the verified `chain` is for, or
        was known. Without a chain nothing is kept.

        In TLS 1.2 the session is there now, in TLS 1.3 it comes later.
        """
        now = self._cache.clock()
        if resumed(connection) and self._offered is not None:
            self._began, self._ends = self._offered.began, self._offered.ends
            self._valid = self._offered.valid
        else:
            self._began, self._ends = now, math.inf
            self._valid = Validity.of(chain)
        self._ends = min(self._ends, self._began + self._lifetime)
        self._offered = None
        self._current = connection.get_session()
        if connection.get_protocol_version() < TLS_1_3:
            self._keep()

    def look(self, connection: SSL.Connection) -> None:
        """The connection has read something, maybe a ticket: keep its session if it is new."""
        if self._current is None or is_current_session(connection, self._current):
            return
        self._current = connection.get_session()
        if self._left:
            self._left -= 1
            self._keep()

    def _keep(self) -> None:
        if self._current is None or self._valid is None or self._cache.clock() >= self._ends:
            return
        self._cache.add(self._key, Kept(self._current, self._began, self._ends, self._valid))


def _key(owner: Owner, settings: Settings, policy: Policy, peer: tuple[str, int]) -> bytes:
    """Return what all that a session is good for has in common.

    Settings and policies that are not known here count as well: fewer resumptions are the worst
    that can come of it.
    """
    values = [
        (one.name, _in_order(getattr(settings, one.name)))
        for one in fields(settings)
        if one.name not in _APART
    ]
    alike = (
        owner,
        peer,
        values,
        [one.chain for one in settings.identities],
        trust.trusted(settings, policy),
        policy,
    )
    return hashlib.sha256(repr(alike).encode()).digest()


def _in_order(value: object) -> object:
    return sorted(value) if isinstance(value, frozenset) else value
