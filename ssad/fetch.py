# SPDX-License-Identifier: BSD-3-Clause
"""Fetching what a certificate names: one HTTP request, one bounded answer.

It is the daemon that connects, from its own network namespace, to where a certificate says. So
nothing of the answer but its status reaches a program, there is no other scheme than http, no
credentials, no redirect, and, if it was a program that said whom to trust, no address that only
this machine or its own network can reach.
"""

from __future__ import annotations

import asyncio
import ipaddress
import os
from dataclasses import dataclass
from urllib.parse import urlsplit

import h11

from ssad import __version__
from ssad.identity import Address
from ssad.resolver import Resolver
from ssad.turns import Turns

_URL_MAX = 2048
_HEADERS_MAX = 16384
_CHUNK = 65536
# Under way at once in one worker, and for one user; further ones wait for their turn.
_CONCURRENT = 64
_CONCURRENT_PER_USER = 16


class FetchError(Exception):
    """There is no answer. The text says why, and goes on from "it"."""


@dataclass(frozen=True, slots=True)
class Url:
    """An http URL in parts."""

    host: str
    port: int
    target: str
    authority: str  # for the header Host

    @classmethod
    def parse(cls, text: str) -> Url:
        """Take a URL apart. Raises FetchError if it is none that is fetched here."""
        if len(text) > _URL_MAX or not (text.isascii() and text.isprintable()) or " " in text:
            raise FetchError("is no URL that could be fetched")
        try:
            parts = urlsplit(text)
            host, port = parts.hostname, parts.port
        except ValueError as error:
            raise FetchError("is no URL that could be fetched") from error
        if parts.scheme != "http":
            raise FetchError("is not an http URL, which is the only kind that is fetched")
        if not host or parts.username is not None or port == 0:
            raise FetchError("is no URL that could be fetched")
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        return cls(host, port or 80, target, parts.netloc)


class Fetcher:
    """Fetches, many at once. To be used in one event loop."""

    def __init__(self) -> None:
        self._turns = Turns(_CONCURRENT, _CONCURRENT_PER_USER)
        self._resolver = Resolver()

    async def fetch(
        self, url: str, limit: int, uid: int, *, body: tuple[str, bytes] | None = None, public: bool
    ) -> bytes:
        """GET a URL, or POST a body, given with its media type. Takes as long as it takes.

        `limit`: bytes that the answer may have. `uid`: the user for whom it is; nobody can take all
        turns. `public`: only from an address that is reached in the same way from everywhere.
        Raises FetchError.
        """
        parsed = Url.parse(url)
        async with self._turns.one(uid):
            reader, writer = await self._connect(parsed, uid, public=public)
            try:
                return await _exchange(reader, writer, parsed, body, limit)
            except h11.RemoteProtocolError as error:
                raise FetchError("does not speak HTTP as it should") from error
            except OSError as error:
                raise FetchError(f"broke the connection ({_why(error)})") from error
            finally:
                writer.transport.abort()

    async def _connect(
        self, url: Url, uid: int, *, public: bool
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        failure = "has a host without an address"
        for address in await self._addresses(url, uid):
            # The address itself is used, so that the name can't turn out to be another's.
            if public and not is_public(address):
                failure = (
                    "has an address that is not public, which is asked only for certificates that "
                    "the policy's own trust store vouches for"
                )
                continue
            try:
                return await asyncio.open_connection(str(address), url.port, limit=_CHUNK)
            except OSError as error:
                failure = f"could not be reached ({_why(error)})"
        raise FetchError(failure)

    async def _addresses(self, url: Url, uid: int) -> list[Address]:
        try:
            return [ipaddress.ip_address(url.host)]
        except ValueError:
            pass
        try:
            found = await self._resolver.look_up(url.host, url.port, uid)
        except (OSError, UnicodeError) as error:
            raise FetchError("has a host name that does not resolve") from error
        return [address.ip for address in found]


def is_public(address: Address) -> bool:
    """Tell whether an address is reached in the same way from everywhere, as no loopback,
    link-local, private or multicast address is."""
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour
        if inner is not None:
            return is_public(inner)
    return address.is_global and not address.is_multicast


async def _exchange(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    url: Url,
    body: tuple[str, bytes] | None,
    limit: int,
) -> bytes:
    connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=_HEADERS_MAX)
    writer.write(_request(connection, url, body))
    answer = bytearray()
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            connection.receive_data(await reader.read(_CHUNK))
        elif isinstance(event, h11.Response) and event.status_code != 200:
            raise FetchError(f"answers with the HTTP status {event.status_code}")
        elif isinstance(event, h11.Data):
            answer += event.data
            if len(answer) > limit:
                raise FetchError(f"answers with more than {limit} bytes")
        elif isinstance(event, h11.EndOfMessage):
            return bytes(answer)
        elif isinstance(event, h11.ConnectionClosed):
            raise FetchError("closes the connection without an answer")


def _request(connection: h11.Connection, url: Url, body: tuple[str, bytes] | None) -> bytes:
    headers = [
        ("Host", url.authority),
        ("User-Agent", f"ssad/{__version__}"),
        ("Connection", "close"),
        # A proxy's copy would do, but whoever asks has one already, or wants none.
        ("Cache-Control", "no-cache"),
    ]
    if body is not None:
        headers += [("Content-Type", body[0]), ("Content-Length", str(len(body[1])))]
    try:
        data = connection.send(
            h11.Request(method="POST" if body else "GET", target=url.target, headers=headers)
        )
    except h11.LocalProtocolError as error:
        raise FetchError("is no URL that could be fetched") from error
    pieces = [data, connection.send(h11.Data(data=body[1])) if body else b""]
    pieces.append(connection.send(h11.EndOfMessage()))
    return b"".join(piece or b"" for piece in pieces)


def _why(error: OSError) -> str:
    return os.strerror(error.errno) if error.errno else "no reason given"
