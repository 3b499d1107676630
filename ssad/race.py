# SPDX-License-Identifier: BSD-3-Clause
"""Which address of a host to try when (RFC 8305, Happy Eyeballs), without I/O.

A connect has a few endpoints, each of one family, and a host may have more addresses than that. An
address gets an endpoint of its family; when all of them are busy, the one that has tried longest
gives its own up, which is tried again later, and then for longer.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from ssad.address import Address

# How often an address that gave way is tried. The last ones stay until TCP gives up.
_TRIES = 4


def interleave(addresses: Sequence[Address]) -> list[Address]:
    """Order addresses as RFC 8305, 4 has it: as the resolver did, and the families by turns."""
    first = [a for a in addresses if a.ip.version == addresses[0].ip.version]
    second = [a for a in addresses if a.ip.version != addresses[0].ip.version]
    ordered: list[Address] = []
    for index in range(max(len(first), len(second))):
        ordered += first[index : index + 1] + second[index : index + 1]
    return ordered


@dataclass(frozen=True, slots=True)
class Start:
    """An attempt to be started."""

    endpoint: int
    address: Address
    tries: int  # this one included


class Race:
    """The attempts of one connect."""

    def __init__(self, versions: Sequence[int], addresses: Sequence[Address]) -> None:
        """`versions`: of IP, for each endpoint; `addresses`: in order, all of a version that has
        an endpoint."""
        self._versions = versions
        self._waiting = deque((address, 0) for address in addresses)
        self._running: dict[int, Start] = {}  # by endpoint, the oldest first

    def next(self) -> Start | None:
        """Return the attempt to start now, on an endpoint whose own attempt, if it has one, is to
        be given up; None if there is nothing to start."""
        if not self._waiting:
            return None
        address, tries = self._waiting.popleft()
        endpoint = self._endpoint_for(address.ip.version)
        before = self._running.pop(endpoint, None)
        if before is not None and before.tries < _TRIES:
            self._waiting.append((before.address, before.tries))
        start = self._running[endpoint] = Start(endpoint, address, tries + 1)
        return start

    def failed(self, endpoint: int) -> None:
        """The attempt on an endpoint has failed."""
        del self._running[endpoint]

    @property
    def lost(self) -> bool:
        """Whether every attempt has failed."""
        return not self._waiting and not self._running

    def delay(self, attempt_delay: float) -> float | None:
        """Seconds to give the attempt that was started last before the next is; None if there is
        no next one. `attempt_delay`: that of RFC 8305, 5."""
        if not self._waiting:
            return None
        last = next(reversed(self._running.values()), None)
        return 0.0 if last is None else attempt_delay * float(2 ** (last.tries - 1))

    def _endpoint_for(self, version: int) -> int:
        of_version = [i for i, its in enumerate(self._versions) if its == version]
        for endpoint in of_version:
            if endpoint not in self._running:
                return endpoint
        return next(endpoint for endpoint in self._running if endpoint in of_version)
