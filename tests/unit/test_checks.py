# SPDX-License-Identifier: BSD-3-Clause
"""Options about revocation: what a program gets for what it sets, under every policy."""

from __future__ import annotations

import errno
import struct
from dataclasses import replace

import pytest

from ssad.checks import OPTIONS, Checks, Rules
from ssad.errors import Refused
from ssad.policy import Policy
from ssad.settings import Settings
from ssad.wire import TlsOption

ALL = TlsOption.TLS_REVOCATION_CHECKS
STAPLED = TlsOption.TLS_OCSP_STAPLED_CHECKS
OCSP = TlsOption.TLS_OCSP_CHECKS
CRL = TlsOption.TLS_CRL_CHECKS
CACHED = TlsOption.TLS_CACHED_REV_CHECKS
STAPLING = TlsOption.TLS_SERVER_OCSP_STAPLING

KINDS = [STAPLED, OCSP, CRL]
LAX = Policy(ocsp_stapled=False)
STRICT = Policy(ocsp=True, crl=True, revocation_cache=False, server_stapling=False)


def u32(number: int) -> bytes:
    return struct.pack("=I", number)


def on(checks: Checks, policy: Policy) -> set[TlsOption]:
    """Return which options a program would find to be 1."""
    switches = checks.switches(policy)
    assert switches >> 21 == 0
    return {option for option in OPTIONS if switches >> option - 102 & 1}


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        (Policy(), {ALL, STAPLED, CACHED, STAPLING}),
        (LAX, {CACHED, STAPLING}),
        (STRICT, {ALL, STAPLED, OCSP, CRL}),
    ],
)
def test_what_nobody_has_set_is_the_policys(policy: Policy, expected: set[TlsOption]) -> None:
    assert on(Checks(), policy) == expected


@pytest.mark.parametrize("option", KINDS)
def test_each_check_can_be_turned_on_and_off_again(option: TlsOption) -> None:
    checks = Checks().set(option, u32(1), LAX)
    assert on(checks, LAX) == {ALL, option, CACHED, STAPLING}
    assert on(checks.set(option, u32(0), LAX), LAX) == {CACHED, STAPLING}


def test_one_option_turns_all_checks_on_and_off() -> None:
    checks = Checks().set(ALL, u32(1), LAX)
    assert on(checks, LAX) == {ALL, *KINDS, CACHED, STAPLING}
    assert on(checks.set(OCSP, u32(0), LAX), LAX) == {ALL, STAPLED, CRL, CACHED, STAPLING}
    assert on(checks.set(ALL, u32(0), LAX), LAX) == {CACHED, STAPLING}


@pytest.mark.parametrize("option", [CACHED, STAPLING])
def test_what_the_policy_permits_can_be_given_up(option: TlsOption) -> None:
    checks = Checks().set(option, u32(0), LAX)
    assert on(checks, LAX) == {CACHED, STAPLING} - {option}
    assert on(checks.set(option, u32(1), LAX), LAX) == {CACHED, STAPLING}


@pytest.mark.parametrize(
    ("option", "value", "policy", "words"),
    [
        (ALL, 0, Policy(), "ocsp_stapled"),
        (ALL, 0, STRICT, "ocsp_stapled, ocsp, crl"),
        (STAPLED, 0, Policy(), "ocsp_stapled"),
        (OCSP, 0, STRICT, "ocsp"),
        (CRL, 0, STRICT, "crl"),
        (CACHED, 1, STRICT, "revocation_cache"),
        (STAPLING, 1, STRICT, "server_stapling"),
    ],
)
def test_the_policy_can_not_be_weakened(
    option: TlsOption, value: int, policy: Policy, words: str
) -> None:
    settings = Settings()
    before = on(settings.checks, policy)
    with pytest.raises(Refused) as caught:
        settings.set(option, u32(value), policy)
    assert caught.value.errno == errno.EPROTO
    assert option.name in caught.value.text
    assert words in caught.value.text
    assert on(settings.checks, policy) == before


@pytest.mark.parametrize("option", sorted(OPTIONS))
@pytest.mark.parametrize("value", [u32(2), u32(2**32 - 1), b"", b"\1", u32(1) + b"\0"])
def test_there_is_no_other_value(option: TlsOption, value: bytes) -> None:
    with pytest.raises(Refused) as caught:
        Settings().set(option, value, Policy())
    assert caught.value.errno == errno.EINVAL


@pytest.mark.parametrize("option", sorted(OPTIONS))
def test_what_is_set_under_one_policy_does_not_weaken_another(option: TlsOption) -> None:
    """A worker of another daemon is told the same again; but even without that."""
    for value in (0, 1):
        checks = Checks().set(option, u32(value), LAX)
        rules = checks.rules(STRICT)
        assert rules.stapled
        assert rules.ocsp
        assert rules.crl
        assert not rules.cached
        assert not checks.staples(STRICT)


def test_a_staple_is_wanted_only_if_the_program_says_so() -> None:
    rules = Rules(stapled=True, want_staple=False, ocsp=False, crl=False, cached=True)
    assert Checks().rules(Policy()) == rules
    assert not rules.online
    asked = Checks().set(STAPLED, u32(1), Policy()).rules(Policy())
    assert asked == replace(rules, want_staple=True)
    assert Checks().set(CRL, u32(1), Policy()).rules(Policy()).online
