# SPDX-License-Identifier: BSD-3-Clause
"""Addresses of host names, from the resolver of the system (nsswitch.conf(5))."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import socket
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from ssad.address import Address
from ssad.errors import Refused
from ssad.settings import parse_host_name
from ssad.turns import Turns

_Found = tuple[Any, ...]  # as socket.getaddrinfo() gives it

# getaddrinfo(3) blocks, so each lookup under way has a thread; further ones wait for one.
_THREADS = 32
_THREADS_PER_USER = 8


class Resolver:
    """Resolves many names at once."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="resolver")
        self._turns = Turns(_THREADS, _THREADS_PER_USER)
        self._ending: set[asyncio.Task[None]] = set()

    async def resolve(
        self,
        name: str,
        port: int,
        uid: int,
        timeout: float,  # noqa: ASYNC109
    ) -> list[Address]:
        """Return the addresses of a host, the most preferred first (RFC 6724).

        name: a host name or an IP address. A final dot keeps the resolver from trying its search
        domains.
        uid: of the user that asks; none can take all of the resolver.
        timeout: in seconds.

        Raises Refused: EINVAL if it is no name, ECONNABORTED if it did not resolve in time.
        """
        host = parse_host_name(name)
        try:
            return [Address(ipaddress.ip_address(host), port)]
        except ValueError:
            pass
        query = f"{host}." if name.endswith(".") else host
        try:
            async with asyncio.timeout(timeout):
                return await self.look_up(query, port, uid)
        except TimeoutError as error:
            raise Refused(
                errno.ECONNABORTED, f"The resolver gave no address of {host} within {timeout:g} s."
            ) from error
        except (OSError, UnicodeError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise Refused(
                errno.ECONNABORTED, f"The host name {host} did not resolve: {reason}."
            ) from error

    async def look_up(self, host: str, port: int, uid: int) -> list[Address]:
        """Return the addresses of a host, in A-labels, however long that takes. Arguments as for
        `resolve`. Raises OSError or UnicodeError if there are none.

        A user's turn ends with the thread that looks up, even if nobody waits any more.
        """
        # In bytes: Python would make another name of it (IDNA 2003).
        name = host.encode("ascii")
        lookup = partial(socket.getaddrinfo, name, port, type=socket.SOCK_STREAM)
        turn = contextlib.AsyncExitStack()
        await turn.enter_async_context(self._turns.one(uid))
        found = asyncio.get_running_loop().run_in_executor(self._threads, lookup)

        async def end() -> None:
            async with turn:
                await asyncio.wait([found])
                found.exception()  # seen, should nobody wait any more

        ending = asyncio.create_task(end())
        self._ending.add(ending)
        ending.add_done_callback(self._ending.discard)
        entries = await asyncio.shield(found)
        return list(dict.fromkeys(Address.of_socket(entry[4]) for entry in entries))
