# SPDX-License-Identifier: BSD-3-Clause
"""OCSP responses that a listening socket staples to its certificates (RFC 6066, 8).

They are fetched in the background, so that no handshake waits for a responder: until the first has
come, nothing is stapled. A response is verified before it is used, and renewed when half of its
time is over.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import logging

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from OpenSSL import crypto

from ssad import answer, ocsp, trust
from ssad.answer import SKEW, Answer, Unusable
from ssad.context import ServerContexts, client_context
from ssad.credentials import Identity
from ssad.errors import Refused
from ssad.fetch import FetchError
from ssad.identity import UNREADABLE, subject
from ssad.revocation import Checker
from ssad.settings import Settings

log = logging.getLogger(__name__)

# Seconds from one attempt to the next: at least, and at most after those that failed.
_FIRST_DELAY = 10.0
_LONGEST_DELAY = 3600.0


class Stapling:
    """Keeps the responses of one listening socket fresh. To be made in a running event loop."""

    def __init__(self, contexts: ServerContexts, checker: Checker, uid: int) -> None:
        """`contexts` are the listener's, and staple what they find in `contexts.staples`; `uid` is
        whose listener it is."""
        self._contexts = contexts
        self._checker = checker
        self._uid = uid
        self._tasks = [
            asyncio.create_task(self._keep(certificate, issuer, url, one))
            for one in contexts.settings.identities
            for certificate, issuer, url in _responder(one)
        ]

    def close(self) -> None:
        """End it. What is stapled stays as it is."""
        for task in self._tasks:
            task.cancel()

    async def _keep(
        self, certificate: x509.Certificate, issuer: x509.Certificate, url: str, one: Identity
    ) -> None:
        staples = self._contexts.staples
        key = certificate.public_bytes(Encoding.DER)
        public = not _vouched_for(self._contexts, one)
        delay = _FIRST_DELAY
        until: dt.datetime | None = None
        while True:
            try:
                response, found = await self._checker.staple(
                    certificate, issuer, url, self._uid, public=public
                )
                why = answer.refusal(certificate, found, "the OCSP responder")
                if why:
                    staples.pop(key, None)
            except (FetchError, Unusable) as error:
                why = f"The OCSP responder at {url} {error}."
            except TimeoutError:
                why = f"The OCSP responder at {url} gave no answer in time."
            except Exception:
                log.exception("Asking for something to staple failed.")
                why = "ssad failed internally."
            if not why:
                staples[key] = response
                until = found.until
                delay = _FIRST_DELAY
                await asyncio.sleep(_renewal(found))
                continue
            log.warning("Nothing new to staple for %s: %s", subject(certificate), why)
            if until is not None and until - SKEW < dt.datetime.now(dt.UTC):
                staples.pop(key, None)
            await asyncio.sleep(delay)
            delay = min(2 * delay, _LONGEST_DELAY)


def _renewal(found: Answer) -> float:
    """Return the seconds until a response is to be renewed."""
    half = found.since + (found.until - SKEW - found.since) / 2
    return max(_FIRST_DELAY, (half - dt.datetime.now(dt.UTC)).total_seconds())


def _responder(one: Identity) -> list[tuple[x509.Certificate, x509.Certificate, str]]:
    """Return a certificate, its issuer and where to ask; nothing if that is not known."""
    chain = x509.load_pem_x509_certificates(one.chain)
    urls = ocsp.urls(chain[0])
    if len(chain) < 2 or not urls:
        return []
    return [(chain[0], chain[1], urls[0])]


def _vouched_for(contexts: ServerContexts, one: Identity) -> bool:
    """Tell whether a certificate is one of an authority that the policy trusts, whose responders
    may be anywhere. A program could have made any other, with any URL in it."""
    try:
        store = trust.store_of(client_context(Settings(), contexts.policy))
        chain = [
            crypto.X509.from_cryptography(certificate)
            for certificate in x509.load_pem_x509_certificates(one.chain)
        ]
        crypto.X509StoreContext(store, chain[0], chain[1:]).verify_certificate()
    except (Refused, crypto.X509StoreContextError, crypto.Error, *UNREADABLE):
        return False
    return True
