# SPDX-License-Identifier: BSD-3-Clause
"""Turns at something that not all can do at once, shared out among users."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter, deque
from collections.abc import AsyncIterator


class Turns:
    """At most `total` turns at once, and at most `each` of them one user's.

    Whoever has to wait is served in the order of arrival among its user's, and users are served by
    rotation: one who asks for many waits behind its own, not before others.
    """

    def __init__(self, total: int, each: int) -> None:
        self._total = total
        self._each = each
        self._taken: Counter[int] = Counter()  # by user
        # None that could be granted waits here: see _grant(). The next user comes first.
        self._waiting: dict[int, deque[asyncio.Future[None]]] = {}

    def set_limits(self, total: int, each: int) -> None:
        """Change the limits. Whoever has a turn keeps it, be they more than allowed now."""
        self._total = total
        self._each = each
        self._grant()

    @contextlib.asynccontextmanager
    async def one(self, user: int) -> AsyncIterator[None]:
        """Wait for a turn and have it until the end of the with statement."""
        if self._is_free(user):
            self._taken[user] += 1
        else:
            await self._wait(user)
        try:
            yield
        finally:
            self._give_back(user)

    async def _wait(self, user: int) -> None:
        granted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(user, deque()).append(granted)
        try:
            await granted
        except asyncio.CancelledError:
            if granted.cancelled():
                self._forget(user, granted)
            else:
                self._give_back(user)  # the turn came first
            raise

    def _forget(self, user: int, granted: asyncio.Future[None]) -> None:
        # _grant() may have passed over it already.
        queue = self._waiting.get(user)
        if queue is not None and granted in queue:
            queue.remove(granted)
            if not queue:
                del self._waiting[user]

    def _give_back(self, user: int) -> None:
        self._taken[user] -= 1
        if not self._taken[user]:
            del self._taken[user]
        self._grant()

    def _is_free(self, user: int) -> bool:
        return self._taken.total() < self._total and self._taken[user] < self._each

    def _grant(self) -> None:
        """Give out all turns that can be had."""
        while (user := next(filter(self._is_free, self._waiting), None)) is not None:
            queue = self._waiting.pop(user)
            granted = queue.popleft()
            if queue:
                self._waiting[user] = queue  # behind the others
            if not granted.done():  # else its task was cancelled
                granted.set_result(None)
                self._taken[user] += 1
