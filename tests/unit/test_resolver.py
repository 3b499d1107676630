# SPDX-License-Identifier: BSD-3-Clause
"""Host names become addresses."""

from __future__ import annotations

import asyncio
import errno
import socket
import threading

import pytest

from ssad.errors import Refused
from ssad.resolver import Resolver

PATIENCE = 20.0
UID = 1000


@pytest.fixture
def resolver() -> Resolver:
    return Resolver()


async def test_the_system_resolves(resolver: Resolver) -> None:
    found = await resolver.resolve("localhost", 443, UID, PATIENCE)
    assert found
    assert all(address.ip.is_loopback and address.port == 443 for address in found)
    assert len(set(found)) == len(found)


@pytest.mark.parametrize("text", ["192.0.2.1", "2001:db8::1"])
async def test_an_address_is_taken_as_it_is(resolver: Resolver, text: str) -> None:
    (found,) = await resolver.resolve(text, 443, UID, PATIENCE)
    assert str(found.ip) == text


@pytest.mark.parametrize("text", ["", "-a.test", "a..b", "127.1", "fe80::1%lo", "x" * 64])
async def test_what_is_no_name_is_refused(resolver: Resolver, text: str) -> None:
    with pytest.raises(Refused) as refused:
        await resolver.resolve(text, 443, UID, PATIENCE)
    assert refused.value.errno == errno.EINVAL


async def test_a_name_that_does_not_resolve_is_econnaborted(resolver: Resolver) -> None:
    with pytest.raises(Refused) as refused:
        await resolver.resolve("name.invalid", 443, UID, PATIENCE)
    assert refused.value.errno == errno.ECONNABORTED
    assert "The host name name.invalid did not resolve" in refused.value.text


@pytest.mark.parametrize(
    ("name", "asked"),
    [("Bücher.Test", b"xn--bcher-kva.test"), ("server.test.", b"server.test.")],
)
async def test_the_resolver_is_asked_for_the_ascii_name(
    resolver: Resolver, monkeypatch: pytest.MonkeyPatch, name: str, asked: bytes
) -> None:
    seen = []

    def getaddrinfo(host: bytes, port: int, **_: object) -> list[tuple[object, ...]]:
        seen.append(host)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("192.0.2.1", port))]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    await resolver.resolve(name, 443, UID, PATIENCE)
    assert seen == [asked]


async def test_a_slow_resolver_is_given_up(
    resolver: Resolver, monkeypatch: pytest.MonkeyPatch
) -> None:
    given_up = threading.Event()

    def getaddrinfo(*_: object, **__: object) -> list[object]:
        given_up.wait(PATIENCE)
        return []

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    with pytest.raises(Refused) as refused:
        await resolver.resolve("server.test", 443, UID, 0.01)
    given_up.set()
    assert refused.value.errno == errno.ECONNABORTED
    assert "within 0.01 s" in refused.value.text


async def test_no_user_takes_all_of_the_resolver(
    resolver: Resolver, monkeypatch: pytest.MonkeyPatch
) -> None:
    given_up = threading.Event()

    def getaddrinfo(host: bytes, port: int, **_: object) -> list[tuple[object, ...]]:
        if host == b"slow.test":
            given_up.wait(PATIENCE)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("192.0.2.1", port))]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    slow = [resolver.resolve("slow.test", 443, UID, 0.01) for _ in range(40)]
    assert all(
        isinstance(found, Refused) for found in await asyncio.gather(*slow, return_exceptions=True)
    )
    # Their threads are still at it: this user has to wait, another one has not.
    assert await resolver.resolve("quick.test", 443, UID + 1, PATIENCE)
    with pytest.raises(Refused):
        await resolver.resolve("quick.test", 443, UID, 0.01)
    given_up.set()
    assert await resolver.resolve("quick.test", 443, UID, PATIENCE)
