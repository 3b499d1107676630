# SPDX-License-Identifier: BSD-3-Clause
"""Fetching over HTTP: from where, how much, and what is no answer."""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress

import pytest

from ssad.fetch import Fetcher, FetchError, Url, is_public
from tests.peers.responder import Responder, responding
from tests.peers.servers import free_port

UID = 1000
DEADLINE = 30.0


@pytest.fixture(scope="module")
def responder() -> Iterator[Responder]:
    with responding() as made:
        yield made


async def failure(call: Awaitable[object]) -> str:
    """Await what must fail; return why."""
    with pytest.raises(FetchError) as caught:
        await call
    return str(caught.value)


async def test_no_user_takes_all_turns(responder: Responder) -> None:
    responder.silent.add("/slow")
    slow, quick = responder.put("/slow", b"late"), responder.put("/quick", b"here")
    fetcher = Fetcher()
    many = [asyncio.create_task(fetcher.fetch(slow, 9, UID, public=False)) for _ in range(70)]
    assert await asyncio.to_thread(responder.arrived.wait, DEADLINE)
    async with asyncio.timeout(DEADLINE):
        assert await fetcher.fetch(quick, 9, UID + 1, public=False) == b"here"
    own = asyncio.create_task(fetcher.fetch(quick, 9, UID, public=False))
    await asyncio.wait([own], timeout=0.1)
    assert not own.done()
    responder.release.set()
    assert set(await asyncio.gather(*many)) == {b"late"}
    assert await own == b"here"


async def test_a_page_is_fetched(responder: Responder) -> None:
    url = responder.put("/page?x=1", b"page" * 50_000)
    assert await Fetcher().fetch(url, 200_000, UID, public=False) == b"page" * 50_000


async def test_a_body_is_posted_and_a_name_is_looked_up(responder: Responder) -> None:
    responder.put("/post", lambda body: body[::-1])
    url = f"http://localhost:{responder.port}/post"
    assert await Fetcher().fetch(url, 3, UID, body=("a/b", b"abc"), public=False) == b"cba"


async def test_more_than_was_wanted_is_not_taken(responder: Responder) -> None:
    url = responder.put("/large", bytes(1001))
    why = await failure(Fetcher().fetch(url, 1000, UID, public=False))
    assert why == "answers with more than 1000 bytes"


@pytest.mark.parametrize("status", [302, 404, 500])
async def test_any_status_but_200_is_no_answer(responder: Responder, status: int) -> None:
    url = responder.put(f"/{status}", status)
    assert f"status {status}" in await failure(Fetcher().fetch(url, 1000, UID, public=False))
    assert responder.asked["/elsewhere"] == 0


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("https://host.test/", "not an http URL"),
        ("ldap://host.test/", "not an http URL"),
        ("file:///etc/passwd", "not an http URL"),
        ("http:///path", "no URL"),
        ("http://user@host.test/", "no URL"),
        ("http://host.test:0/", "no URL"),
        ("http://host.test:99999/", "no URL"),
        ("http://[::1/", "no URL"),
        ("http://host.test/a b", "no URL"),
        ("http://host.test/\r\nX: y", "no URL"),
        ("http://h\u00f6st.test/", "no URL"),
        ("http://host.test/" + "x" * 2048, "no URL"),
        ("http://nothing.invalid/", "does not resolve"),
    ],
)
async def test_what_is_not_fetched(url: str, words: str) -> None:
    assert words in await failure(Fetcher().fetch(url, 1000, UID, public=False))


def test_a_url_is_taken_apart() -> None:
    assert Url.parse("http://host.test") == Url("host.test", 80, "/", "host.test")
    assert Url.parse("http://[::1]:8/a?b#c") == Url("::1", 8, "/a?b", "[::1]:8")


async def test_nobody_listens() -> None:
    url = f"http://127.0.0.1:{free_port()}/"
    assert "Connection refused" in await failure(Fetcher().fetch(url, 1000, UID, public=False))


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost", "[::1]", "[::ffff:127.0.0.1]", "10.0.0.1", "169.254.1.1"]
)
async def test_a_program_reaches_nothing_through_the_daemon(
    responder: Responder, host: str
) -> None:
    url = f"http://{host}:{responder.port}/secret"
    assert "not public" in await failure(Fetcher().fetch(url, 1000, UID, public=True))
    assert responder.asked["/secret"] == 0


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("93.184.216.34", True),
        ("2606:4700::1111", True),
        ("::ffff:93.184.216.34", True),
        ("192.168.1.1", False),
        ("100.64.0.1", False),
        ("0.0.0.0", False),  # noqa: S104
        ("255.255.255.255", False),
        ("224.0.0.1", False),
        ("ff0e::1", False),
        ("fe80::1", False),
        ("fd00::1", False),
        ("::", False),
        ("::ffff:192.168.1.1", False),
        ("2002:7f00:1::", False),
    ],
)
def test_which_addresses_are_public(address: str, public: bool) -> None:  # noqa: FBT001
    assert is_public(ipaddress.ip_address(address)) is public


Behaviour = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


async def ask(said: bytes) -> str:
    """Ask a server that says this and closes; return why that is no answer."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(said)
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1")
    async with server:
        port = server.sockets[0].getsockname()[1]
        return await failure(Fetcher().fetch(f"http://127.0.0.1:{port}/", 1000, UID, public=False))


@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nshort",
        b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 10_000,
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    ],
)
async def test_what_is_no_http_is_no_answer(said: bytes) -> None:
    assert await ask(said) in {
        "does not speak HTTP as it should",
        "closes the connection without an answer",
    }


async def test_an_endless_answer_ends_at_the_limit() -> None:
    said = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"3e8\r\n%b\r\n" % bytes(1000)
    assert "more than 1000 bytes" in await ask(said + b"1\r\nx\r\n")
