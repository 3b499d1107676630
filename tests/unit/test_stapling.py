# SPDX-License-Identifier: BSD-3-Clause
"""Responses for a listening socket's own certificates: fetched, verified, kept fresh."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp

from ssad import stapling
from ssad.answer import SKEW, Answer, Status
from ssad.context import ServerContexts
from ssad.policy import Policy
from ssad.revocation import Checker
from ssad.stapling import Stapling
from tests.peers.authority import HOUR, Authority, now, sources
from tests.peers.pki import Pki
from tests.peers.responder import Responder, responding
from tests.unit.memory_client import listen, settings_of

UID = 1000


@pytest.fixture
def responder() -> Iterator[Responder]:
    with responding() as made:
        yield made


class Listening:
    """A listener whose certificate names the responder."""

    def __init__(self, pki: Pki, responder: Responder, directory: Path) -> None:
        self.ca, self.responder = Authority.load(pki.intermediate), responder
        key = Authority.load(pki.ecdsa).key
        self.leaf = self.ca.issue(*sources(ocsp_url=responder.url("/ocsp")), key=key)
        self.policy = Policy(trust_store=pki.root)
        identity = self.ca.identity(directory, self.leaf, pki.ecdsa.key)
        self.contexts: ServerContexts = listen(settings_of(identity, pki.rsa), self.policy)

    def stapling(self, policy: Policy | None = None) -> Stapling:
        if policy is not None:
            self.contexts.policy = policy
        return Stapling(self.contexts, Checker(policy or self.policy), UID)

    @property
    def staple(self) -> bytes | None:
        return self.contexts.staples.get(self.leaf.public_bytes(Encoding.DER))


@pytest.fixture
def listening(pki: Pki, responder: Responder, tmp_path: Path) -> Listening:
    return Listening(pki, responder, tmp_path)


async def until(holds: Callable[[], object]) -> None:
    """Wait until something holds that nothing announces."""
    async with asyncio.timeout(10):
        while not holds():  # noqa: ASYNC110
            await asyncio.sleep(0.001)


async def test_a_response_is_fetched_and_verified(listening: Listening) -> None:
    response = listening.ca.ocsp(listening.leaf)
    listening.responder.put("/ocsp", response)
    with closing(listening.stapling()):
        assert listening.staple is None
        await until(lambda: listening.staple == response)
    assert list(listening.contexts.staples.values()) == [response]


async def test_it_is_renewed_before_it_ends(
    listening: Listening, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stapling, "_FIRST_DELAY", 0.01)
    old = listening.ca.ocsp(listening.leaf, since=now() - 3 * HOUR, until=now() + HOUR)
    new = listening.ca.ocsp(listening.leaf, until=now() + 9 * HOUR)
    listening.responder.put("/ocsp", old)
    with closing(listening.stapling()):
        await until(lambda: listening.staple == old)
        listening.responder.put("/ocsp", new)
        await until(lambda: listening.staple == new)


def test_it_is_renewed_when_half_of_its_time_is_over() -> None:
    answer = Answer(Status.GOOD, now() - HOUR, now() + 5 * HOUR + SKEW)
    assert 7190 <= stapling._renewal(answer) <= 7200
    assert stapling._renewal(Answer(Status.GOOD, now() - HOUR, now() + SKEW)) == 10


async def test_a_failure_is_logged_and_the_old_one_stays(
    listening: Listening, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(stapling, "_FIRST_DELAY", 0.01)
    old = listening.ca.ocsp(listening.leaf, since=now() - 3 * HOUR, until=now() + HOUR)
    listening.responder.put("/ocsp", old)
    with closing(listening.stapling()), caplog.at_level(logging.WARNING):
        await until(lambda: listening.staple == old)
        listening.responder.put("/ocsp", b"garbage")
        await until(lambda: "can't be read" in caplog.text)
        assert listening.staple == old
        listening.responder.put("/ocsp", 500)
        await until(lambda: "status 500" in caplog.text)
        revoked = listening.ca.ocsp(listening.leaf, ocsp.OCSPCertStatus.REVOKED)
        listening.responder.put("/ocsp", revoked)
        await until(lambda: "was revoked" in caplog.text)
        assert listening.staple is None


async def test_one_that_is_over_is_not_stapled_any_more(
    listening: Listening, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stapling, "_FIRST_DELAY", 0.01)
    monkeypatch.setattr(stapling, "SKEW", 2 * HOUR)
    response = listening.ca.ocsp(listening.leaf, since=now() - 3 * HOUR, until=now() + HOUR)
    listening.responder.put("/ocsp", response)
    with closing(listening.stapling()):
        await until(lambda: listening.staple == response)
        listening.responder.put("/ocsp", 500)
        await until(lambda: listening.staple is None)


async def test_a_program_can_not_send_the_daemon_anywhere(
    listening: Listening, pki: Pki, caplog: pytest.LogCaptureFixture
) -> None:
    """Its certificate may be its own making: nobody whom the policy trusts vouches for it."""
    listening.responder.put("/ocsp", listening.ca.ocsp(listening.leaf))
    with closing(listening.stapling(Policy(trust_store=pki.unknown_root))):
        await until(lambda: "not public" in caplog.text)
    assert listening.responder.asked["/ocsp"] == 0


async def test_closing_ends_it(listening: Listening) -> None:
    listening.responder.silent.add("/ocsp")
    made = listening.stapling()
    await asyncio.to_thread(listening.responder.arrived.wait)
    made.close()
    await asyncio.gather(*made._tasks, return_exceptions=True)
    assert all(task.cancelled() for task in made._tasks)
    assert listening.staple is None
