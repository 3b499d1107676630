# SPDX-License-Identifier: BSD-3-Clause
"""The main process: it starts the workers, replaces those that die, and ends them.

It waits for signals and for nothing else. So it has no part in what a program or a peer may send,
and lives on whatever that does to a worker. Workers are forked, not started anew: they share the
memory of all that was loaded before, and need no right to read it.
"""

from __future__ import annotations

import gc
import logging
import math
import os
import signal
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import BinaryIO, NoReturn

from ssad import privileges
from ssad.exits import CommandError, Exit

logger = logging.getLogger(__name__)

# From the main process to a worker that has been told to stop by SIGTERM: end at once. Not a
# second SIGTERM, for a service manager may send its own to all processes of a service.
HURRY = signal.SIGUSR2

_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_WAITED_FOR = (*_STOP_SIGNALS, signal.SIGCHLD)
_BLOCKED = (*_WAITED_FOR, HURRY)

# All in seconds. A worker takes no more than two for its connections when it is to stop.
_STOP_TIMEOUT = 10.0
_FIRST_DELAY = 0.1
_LONGEST_DELAY = 5.0
_STEADY = 10.0  # who lived for that long did not die of its start

_READY = b"\0ready"  # what a child tells its parent; anything else is why it is not

# What a worker does, until it returns or raises. It calls unblock_signals(), then its argument to
# say that it is ready.
Work = Callable[[Callable[[], None]], None]


def tell_ready(pipe: int) -> None:
    """Tell the parent, which waits in await_ready(), that all is well. Closes the pipe."""
    os.write(pipe, _READY)
    os.close(pipe)


def tell_failure(pipe: int, error: CommandError) -> None:
    """Tell the parent, which waits in await_ready(), what went wrong. Closes the pipe."""
    os.write(pipe, f"{error.code:d} {error}".encode())
    os.close(pipe)


def await_ready(pipe: BinaryIO, pid: int) -> None:
    """Wait until a child is ready. If it fails, reap it and raise its CommandError."""
    report = pipe.read()
    if report == _READY:
        return
    _, status = os.waitpid(pid, 0)
    if report:
        code, _, text = report.decode().partition(" ")
        raise CommandError(Exit(int(code)), text)
    raise CommandError(Exit.FAILED, f"ssad ended before it was ready ({_fate(status)}).")


def unblock_signals() -> None:
    """Let a worker have its signals, once it has handlers for SIGTERM and HURRY."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _BLOCKED)


@dataclass(slots=True)
class Backoff:
    """How long to wait before a worker is replaced: longer and longer, if it dies of its start."""

    _next: float = 0.0

    def after(self, lived: float) -> float:
        """Return the delay after the death of a worker that lived for so many seconds."""
        delay = 0.0 if lived >= _STEADY else self._next
        self._next = min(max(2 * delay, _FIRST_DELAY), _LONGEST_DELAY)
        return delay


@dataclass(slots=True)
class _Place:
    """Where there is to be a worker, one after the other."""

    pid: int | None = None  # none while its replacement is due
    started: float = 0.0
    due: float = 0.0
    backoff: Backoff = field(default_factory=Backoff)

    def vacate(self) -> None:
        """Its worker has ended."""
        now = time.monotonic()
        self.pid = None
        self.due = now + self.backoff.after(now - self.started)


class Supervisor:
    """A fixed number of workers, for as long as the main process lives.

    Once it is made, its signals are blocked, so that none is lost before run().
    """

    def __init__(self, count: int, work: Work) -> None:
        self._work = work
        self._places = [_Place() for _ in range(count)]
        self._main = os.getpid()
        # Blocked signals are kept for sigwait() even where they would be ignored.
        signal.pthread_sigmask(signal.SIG_BLOCK, _BLOCKED)
        # If it had been inherited as ignored, nobody would learn how a worker ended.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)

    def start(self, private: Iterable[int] = ()) -> None:
        """Start all workers and wait until they are ready.

        private: file descriptors of this process that workers are to close.

        Raises CommandError with the reason of the first that failed, or OSError if there can't be
        so many processes. Then no worker is left.
        """
        gc.collect()
        gc.freeze()  # the collector would copy every page that workers share, by writing to it
        with ExitStack() as opened:
            pipes: list[BinaryIO] = []
            try:
                for place in self._places:
                    read_end, write_end = os.pipe()
                    pipes.append(opened.enter_context(os.fdopen(read_end, "rb")))
                    try:
                        self._fork(place, [*private, *(pipe.fileno() for pipe in pipes)], write_end)
                    finally:
                        os.close(write_end)
                for place, pid, pipe in zip(self._places, self._pids(), pipes, strict=True):
                    place.pid = None  # if it fails, it has been reaped
                    await_ready(pipe, pid)
                    place.pid = pid
            except BaseException:
                self._kill()
                raise

    def run(self) -> None:
        """Replace workers that end, until SIGTERM or SIGINT; then end all.

        Workers may finish what they are at. The second signal ends them at once.
        """
        while True:
            self._fill()
            vacant = [place.due for place in self._places if place.pid is None]
            number = _next_signal(min(vacant, default=math.inf))
            if number in _STOP_SIGNALS:
                break
            for pid, status in self._reap():
                logger.warning(
                    "Worker %d ended (%s); another one takes its place.", pid, _fate(status)
                )
        self._stop()

    def _stop(self) -> None:
        self._signal(signal.SIGTERM)
        deadline = time.monotonic() + _STOP_TIMEOUT
        while self._pids():
            number = _next_signal(deadline)
            if number is None:
                late = ", ".join(map(str, self._pids()))
                logger.error("Killed what did not end within %g s: worker %s.", _STOP_TIMEOUT, late)
                self._signal(signal.SIGKILL)
                deadline = math.inf
            elif number in _STOP_SIGNALS:
                self._signal(HURRY)
            for pid, status in self._reap():
                if status != 0:
                    logger.warning("Worker %d ended badly (%s).", pid, _fate(status))

    def _fill(self) -> None:
        """Start the workers that are due."""
        now = time.monotonic()
        for place in self._places:
            if place.pid is not None or place.due > now:
                continue
            place.started = now
            try:
                self._fork(place)
            except OSError as error:
                logger.error("No worker can be started now: %s.", error.strerror)
                place.vacate()

    def _fork(self, place: _Place, private: Iterable[int] = (), report: int | None = None) -> None:
        """Start a worker. `private`: descriptors that it closes; `report`: where it reports."""
        pid = os.fork()
        if pid == 0:
            self._be_worker(private, report)
        place.pid = pid
        place.started = time.monotonic()

    def _be_worker(self, private: Iterable[int], report: int | None) -> NoReturn:
        """Carry on as a worker: never returns, for what the stack holds is the main process's."""
        code = Exit.DONE

        def ready() -> None:
            nonlocal report
            if report is not None:
                tell_ready(report)
                report = None

        try:
            privileges.die_with(self._main)
            # A terminal sends it to all processes in the foreground. The main process passes it on.
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            for number in private:
                os.close(number)
            self._work(ready)
        except CommandError as error:
            code = error.code
            if report is None:
                logger.error("%s", error)
            else:
                tell_failure(report, error)
        except BaseException:
            code = Exit.FAILED
            logger.exception("ssad failed.")
        finally:
            logging.shutdown()
            os._exit(code)

    def _reap(self) -> list[tuple[int, int]]:
        """Return the pid and status of each worker that has ended since the last call."""
        found = []
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                break
            if pid == 0:
                break
            # As the first process of a container it gets children that are not its own.
            for place in self._places:
                if place.pid == pid:
                    place.vacate()
                    found.append((pid, status))
        return found

    def _kill(self) -> None:
        """End all workers and wait for it."""
        self._signal(signal.SIGKILL)
        for place in self._places:
            if place.pid is not None:
                os.waitpid(place.pid, 0)
                place.pid = None

    def _signal(self, number: signal.Signals) -> None:
        # Who has ended keeps its number until it is reaped.
        for pid in self._pids():
            os.kill(pid, number)

    def _pids(self) -> list[int]:
        return [place.pid for place in self._places if place.pid is not None]


def _next_signal(deadline: float) -> int | None:
    """Wait for a signal; none if none came until this time of the monotonic clock."""
    if deadline == math.inf:
        return signal.sigwait(_WAITED_FOR)
    found = signal.sigtimedwait(_WAITED_FOR, max(0.0, deadline - time.monotonic()))
    return None if found is None else found.si_signo


def _fate(status: int) -> str:
    code = os.waitstatus_to_exitcode(status)
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"signal {signal.Signals(-code).name}"
    except ValueError:
        return f"signal {-code}"  # most real-time signals have no name
