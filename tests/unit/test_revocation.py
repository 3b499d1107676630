# SPDX-License-Identifier: BSD-3-Clause
"""Checks of a verified chain: who is asked, what is kept, and what is refused."""

from __future__ import annotations

import asyncio
import datetime as dt
import errno
from collections.abc import Iterator
from dataclasses import replace

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.x509 import ocsp

from ssad.answer import Answer, Status
from ssad.checks import Rules
from ssad.errors import HandshakeError
from ssad.policy import Policy
from ssad.revocation import Checker, Peer, Revoked, _Cache, staple_fault
from tests.peers.authority import HOUR, MUST_STAPLE, Authority, now, sources
from tests.peers.pki import HOST, Pki
from tests.peers.responder import Responder, responding
from tests.peers.servers import free_port

POLICY = Policy(revocation_timeout=10)
UID = 1000
STAPLE = Rules(stapled=True, want_staple=False, ocsp=False, crl=False, cached=True)
OCSP = replace(STAPLE, ocsp=True)
CRL = replace(STAPLE, crl=True)
BOTH = replace(OCSP, crl=True)

GOOD, REVOKED, UNKNOWN = (
    ocsp.OCSPCertStatus.GOOD,
    ocsp.OCSPCertStatus.REVOKED,
    ocsp.OCSPCertStatus.UNKNOWN,
)


@pytest.fixture(scope="module")
def ca(pki: Pki) -> Authority:
    return Authority.load(pki.intermediate)


@pytest.fixture(scope="module")
def root(pki: Pki) -> Authority:
    return Authority.load(pki.top)


@pytest.fixture
def responder() -> Iterator[Responder]:
    with responding() as made:
        yield made


class Web:
    """A certificate, with what the responder has to say of it."""

    def __init__(self, ca: Authority, root: Authority, responder: Responder) -> None:
        self.ca, self.responder = ca, responder
        self.leaf = ca.issue(
            *sources(ocsp_url=responder.url("/ocsp"), crl_url=responder.url("/crl"))
        )
        self.chain = [self.leaf, ca.certificate, root.certificate]

    def ocsp(self, status: ocsp.OCSPCertStatus) -> None:
        self.responder.put("/ocsp", self.ca.ocsp(self.leaf, status))

    def crl(self, *, listed: bool) -> None:
        self.responder.put("/crl", self.ca.crl({self.leaf: None} if listed else None))

    def peer(
        self, rules: Rules, *, stapled: bool = False, own_trust: bool = False, uid: int = UID
    ) -> Peer:
        return Peer(self.chain, rules, stapled, own_trust, uid)

    def asked(self) -> tuple[int, int]:
        return self.responder.asked["/ocsp"], self.responder.asked["/crl"]


@pytest.fixture
def web(ca: Authority, root: Authority, responder: Responder) -> Web:
    return Web(ca, root, responder)


async def refusal(checker: Checker, peer: Peer) -> HandshakeError:
    with pytest.raises(HandshakeError) as caught:
        await checker.check(peer)
    assert caught.value.errno == errno.EPROTO
    assert caught.value.text.endswith(".")
    return caught.value


async def test_nobody_is_asked_if_the_rules_do_not_say_so(web: Web) -> None:
    await Checker(POLICY).check(web.peer(STAPLE))
    assert web.asked() == (0, 0)


@pytest.mark.parametrize("rules", [OCSP, BOTH])
async def test_a_responder_is_asked_first(web: Web, rules: Rules) -> None:
    web.ocsp(GOOD)
    await Checker(POLICY).check(web.peer(rules))
    assert web.asked() == (1, 0)


async def test_a_list_is_looked_into(web: Web) -> None:
    web.crl(listed=False)
    await Checker(POLICY).check(web.peer(CRL))
    assert web.asked() == (0, 1)


@pytest.mark.parametrize("status", [REVOKED, UNKNOWN])
async def test_what_a_responder_says_is_final(web: Web, status: ocsp.OCSPCertStatus) -> None:
    web.ocsp(status)
    web.crl(listed=False)
    error = await refusal(Checker(POLICY), web.peer(BOTH))
    assert isinstance(error, Revoked)
    assert f"CN={HOST}" in error.text
    assert web.responder.url("/ocsp") in error.text
    assert web.asked() == (1, 0)


async def test_a_certificate_in_a_list_is_refused(web: Web) -> None:
    web.crl(listed=True)
    error = await refusal(Checker(POLICY), web.peer(CRL))
    assert isinstance(error, Revoked)
    assert "was revoked on" in error.text


@pytest.mark.parametrize("page", [b"garbage", bytes(100_000), 500, 302])
async def test_a_list_does_where_a_responder_does_not(web: Web, page: bytes | int) -> None:
    web.responder.put("/ocsp", page)
    error = await refusal(Checker(POLICY), web.peer(OCSP))
    assert not isinstance(error, Revoked)
    assert "could not be checked for revocation" in error.text
    web.crl(listed=False)
    await Checker(POLICY).check(web.peer(BOTH))


async def test_a_silent_responder_leaves_time_for_the_list(web: Web) -> None:
    web.responder.silent.add("/ocsp")
    web.crl(listed=False)
    await Checker(replace(POLICY, revocation_timeout=6)).check(web.peer(BOTH))
    error = await refusal(Checker(replace(POLICY, revocation_timeout=0.1)), web.peer(OCSP))
    assert "no answer in time" in error.text


async def test_nobody_who_answers_is_a_refusal_that_names_all(web: Web) -> None:
    error = await refusal(Checker(POLICY), web.peer(BOTH))
    for words in (f"CN={HOST}", "/ocsp answers", "/crl answers", "404"):
        assert words in error.text


async def test_a_certificate_has_to_name_somebody(ca: Authority, root: Authority) -> None:
    chain = [ca.issue(), ca.certificate, root.certificate]
    for rules, words in ((OCSP, "an OCSP responder to"), (BOTH, "an OCSP responder or a CRL")):
        error = await refusal(
            Checker(POLICY), Peer(chain, rules, stapled=False, own_trust=False, uid=UID)
        )
        assert words in error.text


async def test_what_was_stapled_need_not_be_asked_for(web: Web) -> None:
    await Checker(POLICY).check(web.peer(BOTH, stapled=True))
    assert web.asked() == (0, 0)


async def test_an_issuer_is_asked_for_as_well(root: Authority, responder: Responder) -> None:
    below = root.subordinate("Below", *sources(crl_url=responder.url("/root.crl")))
    leaf = below.issue(*sources(ocsp_url=responder.url("/ocsp")))
    chain = [leaf, below.certificate, root.certificate]
    peer = Peer(chain, BOTH, stapled=False, own_trust=False, uid=UID)
    responder.put("/ocsp", below.ocsp(leaf))
    responder.put("/root.crl", root.crl())
    await Checker(POLICY).check(peer)
    responder.put("/root.crl", root.crl({below.certificate: None}))
    for one in (peer, replace(peer, stapled=True)):
        error = await refusal(Checker(POLICY), one)
        assert "CN=Below was revoked" in error.text


async def test_what_is_trusted_itself_is_not_asked_for(web: Web) -> None:
    alone = replace(web.peer(BOTH), chain=web.chain[:1])
    await Checker(POLICY).check(alone)
    assert web.asked() == (0, 0)


async def test_answers_are_kept_for_others(web: Web) -> None:
    checker = Checker(POLICY)
    web.ocsp(GOOD)
    web.crl(listed=False)
    for _ in range(3):
        await checker.check(web.peer(OCSP))
        await checker.check(web.peer(CRL))
    assert web.asked() == (1, 1)
    web.ocsp(REVOKED)
    web.crl(listed=True)
    await checker.check(web.peer(BOTH))
    for rules in (OCSP, CRL):
        assert isinstance(await refusal(checker, web.peer(replace(rules, cached=False))), Revoked)
    # Whoever may use what is kept gets what was found last.
    assert isinstance(await refusal(checker, web.peer(OCSP)), Revoked)


async def test_one_list_is_read_for_all_its_certificates(web: Web, responder: Responder) -> None:
    checker = Checker(POLICY)
    other = web.ca.issue(*sources(crl_url=responder.url("/crl")))
    responder.put("/crl", web.ca.crl({other: None}))
    await checker.check(web.peer(CRL))
    assert isinstance(
        await refusal(checker, replace(web.peer(CRL), chain=[other, *web.chain[1:]])), Revoked
    )
    assert web.asked() == (0, 1)


async def test_many_at_once_ask_once(web: Web) -> None:
    checker = Checker(POLICY)
    web.ocsp(GOOD)
    web.responder.silent.add("/ocsp")
    checks = [asyncio.create_task(checker.check(web.peer(OCSP))) for _ in range(50)]
    await asyncio.to_thread(web.responder.arrived.wait)
    web.responder.release.set()
    await asyncio.gather(*checks)
    assert web.asked() == (1, 0)


async def test_nobody_waits_for_what_another_user_asks(web: Web) -> None:
    checker = Checker(POLICY)
    web.ocsp(GOOD)
    web.responder.silent.add("/ocsp")
    first = asyncio.create_task(checker.check(web.peer(OCSP)))
    await asyncio.to_thread(web.responder.arrived.wait)
    web.responder.silent.clear()
    await checker.check(web.peer(OCSP, uid=UID + 1))
    assert not first.done()
    web.responder.release.set()
    await first


async def test_the_one_who_gives_up_takes_nobody_along(web: Web) -> None:
    checker = Checker(POLICY)
    web.ocsp(GOOD)
    web.responder.silent.add("/ocsp")
    first, second = (asyncio.create_task(checker.check(web.peer(OCSP))) for _ in range(2))
    await asyncio.to_thread(web.responder.arrived.wait)
    first.cancel()
    web.responder.release.set()
    await second
    with pytest.raises(asyncio.CancelledError):
        await first


async def test_no_failure_is_kept(web: Web) -> None:
    checker = Checker(POLICY)
    await refusal(checker, web.peer(OCSP))
    web.ocsp(GOOD)
    await checker.check(web.peer(OCSP))


async def test_whom_a_program_trusts_can_not_send_the_daemon_anywhere(web: Web) -> None:
    web.ocsp(GOOD)
    error = await refusal(Checker(POLICY), web.peer(BOTH, own_trust=True))
    assert "not public" in error.text
    assert web.asked() == (0, 0)


async def test_nobody_listens(ca: Authority, root: Authority) -> None:
    leaf = ca.issue(*sources(ocsp_url=f"http://127.0.0.1:{free_port()}/"))
    chain = [leaf, ca.certificate, root.certificate]
    error = await refusal(
        Checker(POLICY), Peer(chain, OCSP, stapled=False, own_trust=False, uid=UID)
    )
    assert "could not be reached (Connection refused)" in error.text


class TestStaples:
    """What servers staple, or do not."""

    def fault(
        self, ca: Authority, leaf: x509.Certificate, response: bytes, rules: Rules = STAPLE
    ) -> tuple[str, bool]:
        return staple_fault(response, [leaf, ca.certificate], rules, now())

    def test_a_good_one(self, ca: Authority) -> None:
        for leaf in (ca.issue(), ca.issue(MUST_STAPLE)):
            assert self.fault(ca, leaf, ca.ocsp(leaf)) == ("", True)

    def test_bad_ones(self, ca: Authority) -> None:
        leaf = ca.issue()
        old = ca.ocsp(leaf, since=now() - 3 * HOUR, until=now() - HOUR)
        for response, words in (
            (ca.ocsp(leaf, REVOKED), "was revoked on"),
            (ca.ocsp(leaf, UNKNOWN), "unknown to its authority"),
            (old, "held until"),
            (ca.ocsp(ca.issue()), "another certificate"),
            (b"garbage", "can't be read"),
        ):
            why, good = self.fault(ca, leaf, response)
            assert words in why
            assert f"CN={HOST}" in why
            assert not good

    def test_none(self, ca: Authority) -> None:
        later = ocsp.OCSPResponseBuilder.build_unsuccessful(ocsp.OCSPResponseStatus.TRY_LATER)
        none = later.public_bytes(serialization.Encoding.DER)
        leaf = ca.issue()
        for response in (b"", none):
            assert self.fault(ca, leaf, response) == ("", False)
            assert self.fault(ca, leaf, response, replace(OCSP, want_staple=True)) == ("", False)
            why, _ = self.fault(ca, leaf, response, replace(STAPLE, want_staple=True))
            assert "TLS_OCSP_STAPLED_CHECKS wants one" in why
            why, _ = self.fault(ca, ca.issue(MUST_STAPLE), response)
            assert "RFC 7633" in why

    def test_what_is_trusted_itself(self, ca: Authority) -> None:
        assert staple_fault(b"", [ca.issue(MUST_STAPLE)], STAPLE, now()) == ("", False)


def test_what_is_kept_has_bounds() -> None:
    cache: _Cache[int] = _Cache(3, 10)
    until = now() + HOUR
    for number in range(4):
        cache.put(number, number, until)
    assert [cache.get(number, now()) for number in range(4)] == [None, 1, 2, 3]
    cache.get(1, now())
    cache.put(4, 4, until, size=9)
    assert [cache.get(number, now()) for number in range(1, 5)] == [1, None, None, 4]
    cache.put(5, 5, until, size=11)
    assert cache.get(5, now()) is None
    cache.put(6, 6, until, size=10)
    assert cache.get(6, until + dt.timedelta(seconds=1)) is None
    cache.put(7, 7, until, size=10)
    assert cache.get(7, now()) == 7


def test_an_answer_is_not_changed() -> None:
    answer = Answer(Status.GOOD, now(), now())
    with pytest.raises(AttributeError):
        answer.reason = "none"  # type: ignore[misc]
