# SPDX-License-Identifier: BSD-3-Clause
"""Which address is tried when."""

from __future__ import annotations

import ipaddress

from hypothesis import given
from hypothesis import strategies as st

from ssad.address import Address
from ssad.race import Race, Start, interleave

DELAY = 0.25
ENDPOINTS = [6, 6, 4, 4]


def address(text: str) -> Address:
    return Address(ipaddress.ip_address(text), 443)


A6, B6, C6 = (address(f"2001:db8::{digit}") for digit in "abc")
A4, B4, C4 = (address(f"192.0.2.{digit}") for digit in "123")


def test_the_families_take_turns_and_keep_the_resolvers_order() -> None:
    assert interleave([A6, B6, A4, B4, C4]) == [A6, A4, B6, B4, C4]
    assert interleave([A4, A6]) == [A4, A6]
    assert interleave([A4]) == [A4]
    assert interleave([A6, B6]) == [A6, B6]


def test_each_address_gets_an_endpoint_of_its_family() -> None:
    race = Race(ENDPOINTS, [A6, A4, B6, B4])
    assert [race.next() for _ in range(5)] == [
        Start(0, A6, 1),
        Start(2, A4, 1),
        Start(1, B6, 1),
        Start(3, B4, 1),
        None,
    ]


def test_the_next_attempt_starts_after_the_delay() -> None:
    race = Race(ENDPOINTS, [A6, A4])
    race.next()
    assert race.delay(DELAY) == DELAY
    race.next()
    assert race.delay(DELAY) is None


def test_the_next_attempt_starts_at_once_when_nothing_is_under_way() -> None:
    race = Race(ENDPOINTS, [A6, A4])
    start = race.next()
    assert start is not None
    race.failed(start.endpoint)
    assert race.delay(DELAY) == 0


def test_an_endpoint_whose_attempt_failed_is_used_again() -> None:
    race = Race([4], [A4, B4])
    race.next()
    race.failed(0)
    assert race.next() == Start(0, B4, 1)
    assert not race.lost
    race.failed(0)
    assert race.lost


def test_the_oldest_attempt_of_the_family_gives_way_and_comes_back() -> None:
    race = Race(ENDPOINTS, [A4, B4, A6, C4])
    for _ in range(3):
        race.next()
    assert race.next() == Start(2, C4, 1)  # A4's
    assert race.next() == Start(3, A4, 2)  # B4's


def test_a_later_try_gets_more_time() -> None:
    race = Race([4], [A4, B4])
    delays = []
    for _ in range(6):
        race.next()
        delays.append(race.delay(DELAY))
    assert delays == [DELAY, DELAY, 2 * DELAY, 2 * DELAY, 4 * DELAY, 4 * DELAY]


@given(
    st.lists(st.sampled_from([4, 6]), min_size=1, max_size=4),
    st.lists(st.sampled_from([A4, B4, C4, A6, B6, C6]), min_size=1, unique=True),
)
def test_addresses_that_never_answer_are_all_tried_and_have_an_end(
    endpoints: list[int], addresses: list[Address]
) -> None:
    usable = [one for one in addresses if one.ip.version in endpoints]
    race = Race(endpoints, usable)
    tried = []
    while start := race.next():
        assert endpoints[start.endpoint] == start.address.ip.version
        tried.append(start.address)
        assert len(tried) <= 4 * len(usable)
    assert set(tried) == set(usable)
