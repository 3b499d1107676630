# SPDX-License-Identifier: BSD-3-Clause
"""System calls in which the n-th thing that can fail does: an allocation, or a copy from or to the
program's memory (Documentation/fault-injection in Linux's source). Either that alone, or each
allocation after it as well, so that no second try helps."""

from __future__ import annotations

import ctypes
import errno
import itertools
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Collection
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING

from tests.system.program import name_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pytest

DEBUG = Path("/sys/kernel/debug")

# Allocations that may sleep fail as well, single pages too; and no stack is put into the kernel's
# log for each of them, where it would be taken for a report. Those of a thread that is to have more
# than one fault fail always (should_fail_ex() in Linux's source).
_SETTINGS = {
    "failslab/verbose": "0",
    "failslab/task-filter": "Y",
    "failslab/probability": "100",
    "failslab/times": "-1",
    "failslab/ignore-gfp-wait": "N",
    "fail_page_alloc/verbose": "0",
    "fail_page_alloc/ignore-gfp-wait": "N",
    "fail_page_alloc/min-order": "0",
    "fail_usercopy/verbose": "0",
}

# More than any call has: one that never gets through without a fault is an error.
_MOST = 2000

NO_MEMORY = frozenset({errno.ENOMEM, errno.ENOBUFS})
# What a call fails with that touches the program's memory.
USUAL = NO_MEMORY | {errno.EFAULT}
# A file, or a socket of the kernel's own: the core says ENFILE if it gets no inode.
FILE = USUAL | {errno.ENFILE}
# TCP takes a port that it has no memory for to be in use.
PORT = frozenset({errno.EADDRINUSE})


class Sys(IntEnum):
    """System calls by their numbers on x86-64."""

    READ = 0
    WRITE = 1
    CLOSE = 3
    POLL = 7
    IOCTL = 16
    READV = 19
    WRITEV = 20
    SELECT = 23
    DUP = 32
    SENDFILE = 40
    SOCKET = 41
    CONNECT = 42
    ACCEPT = 43
    SENDTO = 44
    RECVFROM = 45
    SENDMSG = 46
    RECVMSG = 47
    SHUTDOWN = 48
    BIND = 49
    LISTEN = 50
    GETSOCKNAME = 51
    GETPEERNAME = 52
    SETSOCKOPT = 54
    GETSOCKOPT = 55
    FCNTL = 72
    EPOLL_CTL = 233
    SPLICE = 275
    ACCEPT4 = 288
    RECVMMSG = 299
    SENDMMSG = 307


# What a call is given: a number, memory, or a null pointer.
Argument = int | bytes | ctypes.Array[ctypes.c_char] | None


@dataclass(frozen=True, slots=True)
class Result:
    """What became of a call: what it returned, its errno or 0, and whether it had the fault."""

    value: int
    error: int
    injected: bool


class Call:
    """Makes one system call with its n-th fault, and perhaps all that could follow."""

    def __init__(self, library: ctypes.CDLL, nth: int, *, lasting: bool = False) -> None:
        self._library = library
        self.nth = nth
        self.lasting = lasting
        self.result: Result | None = None

    def __call__(self, number: Sys, *arguments: Argument) -> Result:
        """Make the call."""
        assert self.result is None, "one call is made at a time"
        kept = [_memory(one) for one in arguments]
        values = (ctypes.c_long * 6)(*[_number(one) for one in kept])
        error, injected = ctypes.c_int(), ctypes.c_bool()
        with ExitStack() as opened:
            value = self._library.fault_call(
                _open_own("fail-nth", opened),
                _open_own("make-it-fail", opened) if self.lasting else -1,
                self.nth,
                ctypes.c_long(number),
                values,
                ctypes.byref(error),
                ctypes.byref(injected),
            )
        self.result = Result(value, error.value, injected.value)
        return self.result


def _open_own(name: str, opened: ExitStack) -> int:
    # The thread's that opens it, of which the setting is too.
    descriptor = os.open(f"/proc/thread-self/{name}", os.O_RDWR)
    opened.callback(os.close, descriptor)
    return descriptor


def _memory(argument: Argument) -> int | ctypes.Array[ctypes.c_char]:
    if isinstance(argument, bytes):
        return ctypes.create_string_buffer(argument, max(len(argument), 1))
    return 0 if argument is None else argument


def _number(argument: int | ctypes.Array[ctypes.c_char]) -> int:
    return argument if isinstance(argument, int) else ctypes.addressof(argument)


class Faults:
    """Injects faults, and counts what came of them."""

    def __init__(self, library: Path) -> None:
        self._library = ctypes.CDLL(str(library))
        self._library.fault_call.restype = ctypes.c_long
        # How often each call, by the name that a test gives it, came to which end.
        self.table: dict[str, Counter[str]] = defaultdict(Counter)

    def each(
        self,
        what: str,
        act: Callable[[Call], object],
        allowed: Collection[int] = USUAL,
        *,
        success: Collection[int] = (0,),
        lasting: bool = True,
    ) -> None:
        """Repeat `act`, which makes one call, with a fault at each step that can fail, until the
        call gets through without one; and then, if they are to be `lasting`, again with all that
        could follow it. Not where TCP sends: it waits for memory, or gives the connection up
        without a word to the peer.

        With a fault the call may succeed or fail with an errno of `allowed`; without one it has to
        end as `success` says. `act` looks at what the call leaves behind.
        """
        for on in (False, True)[: 1 + lasting]:
            for nth in itertools.count(1):
                call = Call(self._library, nth, lasting=on)
                act(call)
                result = call.result
                assert result is not None, f"{what}: no call was made"
                ends = (*success, *(allowed if result.injected else ()))
                assert result.error in ends, (
                    f"{what}: {name_of(result.error)} with fault {nth}{' and on' * on} "
                    f"({'injected' if result.injected else 'not reached'})"
                )
                if not result.injected:
                    break
                self.table[what][name_of(result.error)] += 1
                assert nth < _MOST, f"{what} never gets through"

    def report(self) -> list[str]:
        """Return the table: each call, its faults, and what they made it return."""
        lines = []
        for what, ends in self.table.items():
            told = ", ".join(f"{end} {count}" for end, count in sorted(ends.items()))
            lines.append(f"{what:<44} {ends.total():>5}   {told}")
        lines.append(f"{'all calls':<44} {sum(ends.total() for ends in self.table.values()):>5}")
        return lines


def titled(call: str, request: pytest.FixtureRequest) -> str:
    """Name a call for the table: with the parameters of its test."""
    return f"{call} {request.node.callspec.id}".strip()


@contextmanager
def settings() -> Iterator[None]:
    """Have what may fail fail, for as long as the tests run."""
    before = {name: (DEBUG / name).read_text() for name in _SETTINGS}
    try:
        for name, value in _SETTINGS.items():
            (DEBUG / name).write_text(value)
        yield
    finally:
        # Backwards: without the filter, and before they are improbable, they would be everybody's.
        for name, value in reversed(before.items()):
            (DEBUG / name).write_text(value)
