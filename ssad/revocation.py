# SPDX-License-Identifier: BSD-3-Clause
"""Whether a peer's certificates were revoked: by what it stapled, and by whom they name.

What is stapled is checked in the middle of the handshake (`staple_fault`), where OpenSSL asks for
it. Responders and lists take time: `Checker` asks them once the chain is verified, before anything
else is sent to the peer.

All certificates of a verified chain are checked but the trusted one at its end, which is trusted
because it is in the trust store. The peer's own has to name somebody who can be asked; issuers
between are asked for if they name somebody.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import errno
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from cryptography import x509
from cryptography.hazmat.primitives import hashes

from ssad import answer, crl, ocsp
from ssad.answer import Answer, Status, Unusable
from ssad.checks import Rules
from ssad.errors import HandshakeError
from ssad.fetch import Fetcher, FetchError
from ssad.identity import subject
from ssad.policy import Policy

# A certificate can name as many as it likes; those in use name one or two.
_SOURCES_MAX = 3
# What may be kept for later connections of a worker.
_ANSWERS_MAX = 10_000
_LISTS_MAX = 64
_LISTS_SIZE_MAX = 4 * crl.SIZE_MAX  # bytes

_STAPLED = "the OCSP response that the server stapled"

T = TypeVar("T")


class Revoked(HandshakeError):
    """A certificate is revoked, or its authority does not know it."""


@dataclass(frozen=True, slots=True)
class Peer:
    """Whom a connection's peer has shown itself to be, and how that is to be checked."""

    chain: Sequence[x509.Certificate]  # verified: its own first, the trusted one last
    rules: Rules
    stapled: bool  # its own certificate is good, as it has proved
    own_trust: bool  # it was the program that said whom to trust
    uid: int  # of the user who wants to know


def staple_fault(
    response: bytes, chain: Sequence[x509.Certificate], rules: Rules, now: dt.datetime
) -> tuple[str, bool]:
    """Check what a server has stapled, or that it has not; `chain` as in Peer.

    Returns why its certificate is refused for that, empty if it is not, and whether it is known to
    be good. There need not be a response, unless the certificate says that there is always one
    (RFC 7633) or the program wants one. A bad one is refused in any case.
    """
    if len(chain) < 2:
        return "", False
    certificate, issuer = chain[:2]
    name = subject(certificate)
    missing = "the server stapled no OCSP response"
    if response:
        try:
            found = ocsp.check(response, certificate, issuer, now)
        except ocsp.NoAnswer as error:
            missing = f"the OCSP response that the server stapled {error}"
        except Unusable as error:
            return (
                f"The certificate of {name} is refused: {_STAPLED} {error}; "
                "the policy wants a valid one, or none."
            ), False
        else:
            return answer.refusal(certificate, found, _STAPLED), found.status is Status.GOOD
    if ocsp.must_staple(certificate):
        return (
            f"The certificate of {name} is to be shown together with a valid OCSP response only "
            f"(RFC 7633), but {missing}."
        ), False
    if rules.want_staple and not rules.online:
        return (
            f"The certificate of {name} could not be checked for revocation: {missing}, "
            "and TLS_OCSP_STAPLED_CHECKS wants one."
        ), False
    return "", False


class Checker:
    """Asks the responders and fetches the lists that certificates name; one for each worker.

    To be used in one event loop. Answers are kept as long as they hold, for all connections.
    """

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._fetcher = Fetcher()
        self._answers: _Cache[Answer] = _Cache(_ANSWERS_MAX, _ANSWERS_MAX)
        self._lists: _Cache[crl.List] = _Cache(_LISTS_MAX, _LISTS_SIZE_MAX)
        self._under_way: dict[Hashable, asyncio.Task[Any]] = {}

    def adopt(self, policy: Policy) -> None:
        """Go by another policy with what begins from now on."""
        self._policy = policy

    async def check(self, peer: Peer) -> None:
        """Check a chain. Raises Revoked; HandshakeError (EPROTO) if somebody who has to be asked
        gave no usable answer in time."""
        if not peer.rules.online:
            return
        deadline = asyncio.get_running_loop().time() + self._policy.revocation_timeout
        certificates = peer.chain[1:-1] if peer.stapled else peer.chain[:-1]
        issuers = peer.chain[-len(certificates) :] if certificates else ()
        tasks = [
            asyncio.create_task(self._check_one(peer, certificate, issuer, deadline))
            for certificate, issuer in zip(certificates, issuers, strict=True)
        ]
        try:
            for task in tasks:
                await task
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def staple(
        self,
        certificate: x509.Certificate,
        issuer: x509.Certificate,
        url: str,
        uid: int,
        *,
        public: bool,
    ) -> tuple[bytes, Answer]:
        """Get a response that a user's server can staple, afresh, and verify it.

        Raises Unusable, FetchError, TimeoutError.
        """
        async with asyncio.timeout(self._policy.revocation_timeout):
            return await self._ask_responder(certificate, issuer, url, uid, public=public)

    async def _check_one(
        self,
        peer: Peer,
        certificate: x509.Certificate,
        issuer: x509.Certificate,
        deadline: float,
    ) -> None:
        sources = self._sources(peer, certificate, issuer)
        if not sources and certificate is not peer.chain[0]:
            return
        reasons = []
        for left, (what, ask) in zip(range(len(sources), 0, -1), sources, strict=True):
            # One that is silent leaves the others their share of the time.
            now = asyncio.get_running_loop().time()
            try:
                async with asyncio.timeout((deadline - now) / left):
                    found = await ask()
            except TimeoutError:
                reasons.append(f"{what} gave no answer in time")
            except (FetchError, Unusable) as error:
                reasons.append(f"{what} {error}")
            else:
                why = answer.refusal(certificate, found, what)
                if why:
                    raise Revoked(errno.EPROTO, why)
                return
        raise HandshakeError(
            errno.EPROTO,
            f"The certificate of {subject(certificate)} could not be checked for revocation: "
            f"{'; '.join(reasons) or _names_nobody(peer.rules)}.",
        )

    def _sources(
        self, peer: Peer, certificate: x509.Certificate, issuer: x509.Certificate
    ) -> list[tuple[str, Callable[[], Awaitable[Answer]]]]:
        """Return whom to ask, in order, by the words for it."""
        kinds: list[tuple[str, Sequence[str], _Ask]] = []
        if peer.rules.ocsp:
            kinds.append(("the OCSP responder", ocsp.urls(certificate), self._by_responder))
        if peer.rules.crl:
            kinds.append(("the CRL", crl.urls(certificate), self._by_list))

        def asking(ask: _Ask, url: str) -> Callable[[], Awaitable[Answer]]:
            return lambda: ask(peer, certificate, issuer, url)

        return [
            (f"{words} at {url}", asking(ask, url))
            for words, urls, ask in kinds
            for url in urls[:_SOURCES_MAX]
        ]

    async def _by_responder(
        self, peer: Peer, certificate: x509.Certificate, issuer: x509.Certificate, url: str
    ) -> Answer:
        async def ask() -> Answer:
            _, found = await self._ask_responder(
                certificate, issuer, url, peer.uid, public=peer.own_trust
            )
            self._answers.put(key, found, found.until)
            return found

        key = ("ocsp", url, peer.own_trust, _digest(issuer), certificate.serial_number)
        return await self._cached(self._answers, key, ask, peer)

    async def _by_list(
        self, peer: Peer, certificate: x509.Certificate, issuer: x509.Certificate, url: str
    ) -> Answer:
        async def ask() -> Answer:
            found = await self._cached(self._lists, list_key, fetch, peer)
            # To look something up in a long list takes a while as well.
            said = await asyncio.to_thread(found.answer, certificate, _now())
            self._answers.put(key, said, said.until)
            return said

        async def fetch() -> crl.List:
            public = peer.own_trust
            data = await self._fetcher.fetch(url, crl.SIZE_MAX, peer.uid, public=public)
            found = await asyncio.to_thread(crl.read, data, issuer)
            _, until = answer.validity(found.since, found.until, _now())
            self._lists.put(list_key, found, until, found.size)
            return found

        # Who may not ask an address himself gets nothing of what others were told there.
        list_key = (url, peer.own_trust, _digest(issuer))
        key = ("crl", *list_key, certificate.serial_number)
        return await self._cached(self._answers, key, ask, peer)

    async def _ask_responder(
        self,
        certificate: x509.Certificate,
        issuer: x509.Certificate,
        url: str,
        uid: int,
        *,
        public: bool,
    ) -> tuple[bytes, Answer]:
        body = ocsp.REQUEST_TYPE, ocsp.request(certificate, issuer)
        response = await self._fetcher.fetch(url, ocsp.RESPONSE_MAX, uid, body=body, public=public)
        return response, ocsp.check(response, certificate, issuer, _now())

    async def _cached(
        self, cache: _Cache[T], key: Hashable, make: Callable[[], Awaitable[T]], peer: Peer
    ) -> T:
        """Return what is known, or what the same user is asking for already, if the rules allow it.

        What another one is asking for may wait for that one's turns.
        """
        if not peer.rules.cached:
            return await make()
        found = cache.get(key, _now())
        if found is not None:
            return found
        own = peer.uid, key
        running = self._under_way.get(own)
        if running is None:
            running = asyncio.create_task(self._bounded(make))
            self._under_way[own] = running
            running.add_done_callback(lambda task: self._over(own, task))
        result: T = await asyncio.shield(running)
        return result

    async def _bounded(self, make: Callable[[], Awaitable[T]]) -> T:
        # Whoever waits for it may give up earlier.
        async with asyncio.timeout(self._policy.revocation_timeout):
            return await make()

    def _over(self, key: Hashable, task: asyncio.Task[Any]) -> None:
        del self._under_way[key]
        if not task.cancelled():
            task.exception()  # there may be nobody left who wants to know


_Ask = Callable[[Peer, x509.Certificate, x509.Certificate, str], Awaitable[Answer]]


class _Cache(Generic[T]):
    """The things that were used last, as long as they hold, up to a number and a size."""

    def __init__(self, count: int, size: int) -> None:
        self._most = count
        self._room = size
        self._kept: OrderedDict[Hashable, tuple[T, dt.datetime, int]] = OrderedDict()

    def get(self, key: Hashable, now: dt.datetime) -> T | None:
        found = self._kept.get(key)
        if found is None:
            return None
        if found[1] < now:
            self._drop(key)
            return None
        self._kept.move_to_end(key)
        return found[0]

    def put(self, key: Hashable, value: T, until: dt.datetime, size: int = 1) -> None:
        self._drop(key)
        self._kept[key] = value, until, size
        self._room -= size
        while len(self._kept) > self._most or self._room < 0:
            self._drop(next(iter(self._kept)))

    def _drop(self, key: Hashable) -> None:
        if key in self._kept:
            self._room += self._kept.pop(key)[2]


def _names_nobody(rules: Rules) -> str:
    wanted = [("an OCSP responder", rules.ocsp), ("a CRL", rules.crl)]
    return f"it does not name {' or '.join(words for words, on in wanted if on)} to ask"


def _digest(issuer: x509.Certificate) -> bytes:
    return issuer.fingerprint(hashes.SHA256())


def _now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)
