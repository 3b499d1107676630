# SPDX-License-Identifier: BSD-3-Clause
"""The daemon under test, started as its users start it."""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ssad.link import Link
from ssad.policy import Policy
from ssad.wire import IPPROTO_TLS, Attributes, Command

# Seconds that a closed channel may take to deliver what was written before, if nothing is said.
CLOSE_TIMEOUT = Policy().close_timeout

Transport = Literal["ktls", "channel"]

PARAMETERS = Path("/sys/module/ssa/parameters")

# Only the debug kernel has it, and is so many times slower.
KMEMLEAK = Path("/sys/kernel/debug/kmemleak")
SLOWNESS = 6 if KMEMLEAK.exists() else 1

# A guest without KVM is 15 to 20 times slower than its host, and Python's imports are many files.
DEADLINE = 120.0


def await_condition(what: str, holds: Callable[[], bool], deadline: float = DEADLINE) -> None:
    """Wait until a condition holds that nothing announces. Fails the test, naming it, if it never
    does."""
    end = time.monotonic() + deadline
    while not holds():
        assert time.monotonic() < end, f"waited {deadline:g} seconds in vain for: {what}"
        time.sleep(0.01)


@contextmanager
def written(path: Path, value: int) -> Iterator[None]:
    """Have a number in a file of the kernel's."""
    before = path.read_text()
    path.write_text(str(value))
    try:
        yield
    finally:
        path.write_text(before)


def socket_count() -> int:
    """Ask the module how many TLS sockets there are."""
    with Asking() as link:
        return link.request(Command.MODULE_GET)["sockets"]


def workers() -> list[Attributes]:
    """Ask the module for the workers that are registered."""
    with Asking() as link:
        return link.dump(Command.WORKER_GET)


def sockets() -> list[Attributes]:
    """Ask the module for the TLS sockets."""
    with Asking() as link:
        return link.dump(Command.SOCKET_GET)


class Asking:
    """A link that is closed at the end of a with statement."""

    def __enter__(self) -> Link:
        self._link = Link()
        return self._link

    def __exit__(self, *_: object) -> None:
        self._link.close()


@dataclass(slots=True)
class _Running:
    process: subprocess.Popen[bytes]
    options: tuple[str, ...]
    idle_descriptors: int


class Daemon:
    """At most one daemon at a time, which `ensure` starts when it is needed.

    A main process and its workers, one unless a test wants more.
    """

    def __init__(self, trust_store: Path, log: Path) -> None:
        self.trust_store = trust_store
        self.log = log
        self._running: _Running | None = None

    @property
    def pid(self) -> int:
        """The main process's id."""
        assert self._running is not None, "no daemon runs"
        return self._running.process.pid

    @property
    def worker_pids(self) -> list[int]:
        """Its workers' ids, as the module knows them."""
        return [worker["pid"] for worker in workers() if worker["daemon"] == self.pid]

    @property
    def worker_pid(self) -> int:
        """The only worker's id."""
        (pid,) = self.worker_pids
        return pid

    def ensure(
        self, transport: Transport | None = None, *options: str, worker_count: int = 1
    ) -> None:
        """See that a daemon runs with these options; no transport: the one that runs will do."""
        options = ("--workers", str(worker_count), *options)
        running = self._running
        if running is not None and running.process.poll() is None:
            self.thaw()  # a test that failed may have left it frozen
            transports: list[Transport] = ["ktls", "channel"] if transport is None else [transport]
            if running.options in [_options(one, options) for one in transports]:
                # A test may have killed one.
                await_condition(
                    "all workers are registered", lambda: len(self.worker_pids) == worker_count
                )
                return
        self.stop()
        self._start(_options(transport or "ktls", options), worker_count)

    def command(self, *options: str) -> list[str]:
        """Return the command line that starts the daemon in the foreground."""
        start = [sys.executable, "-m", "ssad", "start", "--foreground"]
        return [*start, "--trust-store", str(self.trust_store), *options]

    def stop(self) -> None:
        """End the daemon with SIGTERM, if one runs, and check that it ends well."""
        running, self._running = self._running, None
        if running is None or running.process.poll() is not None:
            return
        for worker in workers():
            _send(worker["pid"], signal.SIGCONT)
        running.process.terminate()
        status = running.process.wait(DEADLINE)
        assert status == 0, f"the daemon ended with status {status}; it said:\n{self.said()}"

    def kill(self) -> None:
        """End the main process with SIGKILL, and wait until its workers are gone as well."""
        with self.ending():
            pass

    def kill_worker(self, pid: int | None = None) -> None:
        """End a worker with SIGKILL and wait until it is gone; the only one unless named."""
        pid = self.worker_pid if pid is None else pid
        with _awaiting_ends([pid]):
            os.kill(pid, signal.SIGKILL)

    @contextmanager
    def ending(self) -> Iterator[subprocess.Popen[bytes]]:
        """Give the main process to a test that ends it."""
        assert self._running is not None, "no daemon runs"
        pids = self.worker_pids
        running, self._running = self._running, None
        with _awaiting_ends(pids):
            try:
                yield running.process
            finally:
                running.process.kill()
                running.process.wait()
        # One that had not been registered yet when the others were looked up.
        await_condition("no worker is left", lambda: not workers())

    def freeze(self) -> None:
        """Stop the workers with SIGSTOP: from then on they answer nothing."""
        pids = self.worker_pids
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        await_condition("workers are stopped", lambda: {_state_of(pid) for pid in pids} == {"T"})

    def thaw(self) -> None:
        """Let the workers go on."""
        for pid in self.worker_pids:
            _send(pid, signal.SIGCONT)

    def said(self) -> str:
        """Return what it has logged."""
        return self.log.read_text(errors="replace")

    def descriptors(self) -> list[str]:
        """Return what its workers' file descriptors are."""
        found = []
        for pid in self.worker_pids:
            with suppress(FileNotFoundError, ProcessLookupError):  # it was killed
                for link in Path(f"/proc/{pid}/fd").iterdir():
                    with suppress(FileNotFoundError):
                        found.append(str(link.readlink()))
        return found

    def await_idle(self) -> None:
        """Wait until its workers hold no more files than when they had just been started."""
        running = self._running
        if running is None or running.process.poll() is not None:
            return
        await_condition(
            f"the workers close all but {running.idle_descriptors} descriptors",
            lambda: len(self.descriptors()) <= running.idle_descriptors,
            deadline=CLOSE_TIMEOUT + 20,
        )

    def _start(self, options: tuple[str, ...], worker_count: int) -> None:
        with self.log.open("ab") as log:
            process = subprocess.Popen(
                self.command(*options), stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        end = os.pidfd_open(process.pid)
        try:
            while len(workers()) < worker_count:
                # Waits for its end, or for a moment: the module does not announce its workers.
                assert not select.select([end], [], [], 0.02)[0], (
                    f"the daemon ended with status {process.wait()}; it said:\n{self.said()}"
                )
        finally:
            os.close(end)
        # Once it has answered, a worker's event loop has all that it needs for itself. Sockets that
        # are there at the same time go to different workers.
        with ExitStack() as opened:
            for _ in range(worker_count):
                opened.enter_context(socket.socket(socket.AF_INET, socket.SOCK_STREAM, IPPROTO_TLS))
        self._running = _Running(process, options, 0)
        self._running.idle_descriptors = len(self.descriptors())


def _options(transport: Transport, options: tuple[str, ...]) -> tuple[str, ...]:
    # Kernel TLS is what it does by itself where that works.
    chosen = ("--transport", "channel") if transport == "channel" else ()
    # 200 handshakes at once can take a slow guest longer than the usual 30 s; the module waits 300.
    patience = 150 if SLOWNESS == 1 else 290
    return ("--handshake-timeout", str(patience), *chosen, *options)


@contextmanager
def _awaiting_ends(pids: list[int]) -> Iterator[None]:
    """Wait in the end until these processes have ended, and all their files are closed."""
    with ExitStack() as opened:
        ends = [os.pidfd_open(pid) for pid in pids]
        for end in ends:
            opened.callback(os.close, end)
        yield
        for pid, end in zip(pids, ends, strict=True):
            assert select.select([end], [], [], DEADLINE)[0], f"process {pid} did not end"


def _send(pid: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def _state_of(pid: int) -> str:
    # proc(5): the state follows the program's name, which is in parentheses.
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
