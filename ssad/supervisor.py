# SPDX-License-Identifier: BSD-3-Clause
"""The main process: it starts the workers, replaces those that die, and ends them.

It waits for signals and for nothing else, but for its workers while they change to another policy.
So it has no part in what a program or a peer may send, and lives on whatever that does to a worker.
Workers are forked, not started anew: they share the memory of all that was loaded before, and need
no right to read it.

After a restart (ssad.restart) there are workers of the program that was there before, until each
has finished what it had begun. They are not replaced.
"""

from __future__ import annotations

import gc
import logging
import math
import os
import signal
import socket
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from typing import BinaryIO, NoReturn, Protocol

from ssad import privileges
from ssad.exits import CommandError, Exit

logger = logging.getLogger(__name__)

# From the main process to a worker that has been told to stop by SIGTERM: end at once. Not a
# second SIGTERM, for a service manager may send its own to all processes of a service.
HURRY = signal.SIGUSR2

# To the main process: put the program that is installed now in the place of this one.
RESTART = signal.SIGUSR1

_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
# Each of these changes the daemon; one waits until the other is over.
_CHANGES = (signal.SIGHUP, RESTART)
_WAITED_FOR = (*_STOP_SIGNALS, signal.SIGCHLD, *_CHANGES)
_BLOCKED = (*_WAITED_FOR, HURRY)

# All in seconds. A worker takes no more than two for its connections when it is to stop.
_STOP_TIMEOUT = 10.0
_FIRST_DELAY = 0.1
_LONGEST_DELAY = 5.0
_STEADY = 10.0  # who lived for that long did not die of its start

_READY = b"\0ready"  # what a child tells its parent; anything else is why it is not

# What a worker does, until it returns or raises. It calls unblock_signals(), then its first
# argument to say that it is ready. The second is a socket to the main process; nonblocking.
Work = Callable[[Callable[[], None], socket.socket], None]

# What SIGHUP asks for. It is given a socket to each worker, by its pid, and what tells whether the
# main process is to end meanwhile; it returns the pids of workers that are to be killed.
OnHangup = Callable[[Mapping[int, socket.socket], Callable[[], bool]], Iterable[int]]


@dataclass(frozen=True, slots=True)
class Old:
    """Workers of the program before, by their pids, with the sockets to them."""

    workers: Mapping[int, socket.socket] = field(default_factory=dict)
    leaving: Mapping[int, socket.socket] = field(default_factory=dict)  # have been told already


class Restart(Protocol):
    """What RESTART asks for. It starts a process that tries the new program."""

    @property
    def trial(self) -> int | None:
        """The pid of that process, while there is one."""

    def begin(self) -> None:
        """Start the process. If it can't be started, that was all."""

    def end(self, status: int, old: Old) -> None:
        """It has ended: if all is well the new program takes this one's place, with the workers,
        and this does not return."""


class _Never:
    """Restarts nothing."""

    trial = None

    def begin(self) -> None:
        logger.warning("This daemon can't be restarted.")

    def end(self, *_: object) -> None:
        raise AssertionError("there is no trial")


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
    raise CommandError(Exit.FAILED, f"ssad ended before it was ready ({fate(status)}).")


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
    """Where there is to be a worker, one after the other; or where one is that leaves."""

    pid: int | None = None  # none while its replacement is due
    control: socket.socket | None = None  # to the worker
    started: float = 0.0
    due: float = 0.0  # its replacement; of one that leaves, its end
    backoff: Backoff = field(default_factory=Backoff)

    def vacate(self) -> None:
        """Its worker has ended."""
        now = time.monotonic()
        self.pid = None
        self.close()
        self.due = now + self.backoff.after(now - self.started)

    def close(self) -> None:
        """Close the socket to its worker."""
        if self.control is not None:
            self.control.close()
            self.control = None


class Supervisor:
    """A fixed number of workers, for as long as the main process lives.

    Once it is made, its signals are blocked, so that none is lost before run().
    """

    def __init__(
        self,
        count: int,
        work: Work,
        on_hangup: OnHangup = lambda _workers, _stopping: (),
        restart: Restart | None = None,
        old: Old | None = None,
    ) -> None:
        self._work = work
        self._on_hangup = on_hangup
        self._restart = _Never() if restart is None else restart
        self._places = [_Place() for _ in range(count)]
        old = Old() if old is None else old
        self._old = _places(old.workers)
        self._leaving = _places(old.leaving)
        self._main = os.getpid()
        # Blocked signals are kept for sigwait() even where they would be ignored.
        signal.pthread_sigmask(signal.SIG_BLOCK, _BLOCKED)
        # If it had been inherited as ignored, nobody would learn how a worker ended.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)

    def start(self, private: Iterable[int] = ()) -> None:
        """Start all workers and wait until they are ready.

        private: file descriptors of this process that workers are to close.

        Raises CommandError with the reason of the first that failed, or OSError if there can't be
        so many processes. Then no worker is left, but the old ones.
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
                for place, pipe in zip(self._places, pipes, strict=True):
                    pid, place.pid = place.pid, None  # if it fails, it has been reaped
                    await_ready(pipe, pid or 0)
                    place.pid = pid
            except BaseException:
                self._kill()
                raise

    def retire_old(self, patience: float) -> None:
        """Have the old workers leave, now that there are others. They have `patience` seconds for
        what they have begun, and are killed when they do not heed that."""
        for place in self._old:
            if place.control is not None:
                # Who has died needs no word, and who does not read is killed in the end.
                with suppress(OSError):
                    place.control.send(f"leave 0 {patience!r}".encode())
        self._let_leave(self._old, patience)

    def keep_old(self, patience: float) -> None:
        """Go on with the old workers, for others could not be started. Those that were leaving
        already have `patience` seconds more."""
        missing = len(self._places) - len(self._old)
        for place in self._old:
            place.due = 0.0
        self._places = [*self._old, *(_Place() for _ in range(missing))]
        self._let_leave([], patience)

    def _let_leave(self, more: list[_Place], patience: float) -> None:
        self._leaving += more
        self._old = []
        for place in self._leaving:
            place.due = time.monotonic() + patience + _STOP_TIMEOUT

    def run(self) -> None:
        """Replace workers that end, until SIGTERM or SIGINT; then end all. SIGHUP and RESTART are
        passed on to who wants them.

        Workers may finish what they are at. The second signal ends them at once.
        """
        while True:
            self._fill()
            self._kill_late()
            due = [place.due for place in self._places if place.pid is None]
            due += [place.due for place in self._leaving]
            # While a program is tried, what changes the daemon stays pending, and reaches this
            # program or the next.
            ignored = _CHANGES if self._restart.trial is not None else ()
            number = _next_signal(min(due, default=math.inf), ignored)
            if number in _STOP_SIGNALS:
                break
            if number == signal.SIGHUP:
                self._hang_up()
            if number == RESTART:
                self._restart.begin()
            trial = None
            for pid, status in self._reap():
                if pid == self._restart.trial:
                    trial = status
                else:
                    logger.warning(
                        "Worker %d ended (%s); another one takes its place.", pid, fate(status)
                    )
            if trial is not None:
                self._restart.end(trial, Old(self._links(self._places), self._links(self._leaving)))
        self._stop()

    def _hang_up(self) -> None:
        for pid in self._on_hangup(self._links(self._places), _is_to_stop):
            # It has not been reaped, so the number is still its own.
            os.kill(pid, signal.SIGKILL)

    @staticmethod
    def _links(places: Iterable[_Place]) -> dict[int, socket.socket]:
        return {
            place.pid: place.control
            for place in places
            if place.pid is not None and place.control is not None
        }

    def _kill_late(self) -> None:
        """End those that should have left by now."""
        for place in self._leaving:
            if place.pid is not None and place.due <= time.monotonic():
                logger.error("Worker %d did not leave in time, and is killed.", place.pid)
                os.kill(place.pid, signal.SIGKILL)
                place.due = math.inf

    def _stop(self) -> None:
        if self._restart.trial is not None:
            os.kill(self._restart.trial, signal.SIGKILL)
        self._places += self._leaving  # none of them is replaced now
        self._leaving = []
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
                if status != 0 and pid != self._restart.trial:
                    logger.warning("Worker %d ended badly (%s).", pid, fate(status))

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
        control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        place.control = control
        with theirs:
            control.settimeout(0)
            theirs.settimeout(0)
            pid = os.fork()
            if pid == 0:
                self._be_worker(theirs, private, report)
        place.pid = pid
        place.started = time.monotonic()

    def _be_worker(
        self, control: socket.socket, private: Iterable[int], report: int | None
    ) -> NoReturn:
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
            # Likewise: a service manager may send them to all processes of a service.
            for number in _CHANGES:
                signal.signal(number, signal.SIG_IGN)
            for descriptor in private:
                os.close(descriptor)
            for place in (*self._places, *self._old, *self._leaving):
                place.close()
            self._work(ready, control)
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
        """Return the pid and status of each worker that has ended since the last call, and of a
        trial; not of workers that left."""
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
            for place in [place for place in self._leaving if place.pid == pid]:
                place.close()
                self._leaving.remove(place)
                logger.info("Worker %d has left (%s).", pid, fate(status))
            if pid == self._restart.trial:
                found.append((pid, status))
        return found

    def _kill(self) -> None:
        """End all workers and wait for it."""
        self._signal(signal.SIGKILL)
        for place in self._places:
            if place.pid is not None:
                os.waitpid(place.pid, 0)
                place.pid = None
                place.close()

    def _signal(self, number: signal.Signals) -> None:
        # Who has ended keeps its number until it is reaped.
        for pid in self._pids():
            os.kill(pid, number)

    def _pids(self) -> list[int]:
        return [place.pid for place in self._places if place.pid is not None]


def _places(workers: Mapping[int, socket.socket]) -> list[_Place]:
    """Return the places of workers that are there, and that nobody waits for."""
    return [_Place(pid, control, due=math.inf) for pid, control in workers.items()]


def _is_to_stop() -> bool:
    return bool(signal.sigpending().intersection(_STOP_SIGNALS))


def _next_signal(deadline: float, ignored: tuple[signal.Signals, ...] = ()) -> int | None:
    """Wait for a signal; none if none came until this time of the monotonic clock. Those that are
    ignored stay pending."""
    numbers = [number for number in _WAITED_FOR if number not in ignored]
    if deadline == math.inf:
        return signal.sigwait(numbers)
    found = signal.sigtimedwait(numbers, max(0.0, deadline - time.monotonic()))
    return None if found is None else found.si_signo


def fate(status: int) -> str:
    """Say how a process ended, by its status of waitpid(2)."""
    code = os.waitstatus_to_exitcode(status)
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"signal {signal.Signals(-code).name}"
    except ValueError:
        return f"signal {-code}"  # most real-time signals have no name
