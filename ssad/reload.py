# SPDX-License-Identifier: BSD-3-Clause
"""Another policy in place of the one in force: in all workers, or in none.

Two rounds. The main process reads and checks the file and gives the policy to every worker, which
makes what it needs of it, beside what it has, and says that it is ready. Once all are, each is told
to change over. If one is not, or says nothing, all are told to drop it, and nothing has happened.

A worker that dies meanwhile is no obstacle, since whoever takes its place begins with the policy
that is in force by then. One that was ready and does not change over in time is killed, for the
same reason: none may go on with a policy that is no longer in force.

What is sent are datagrams of text, each with the number of the reload: an answer that comes when
nobody waits for it any more is recognised by it.

One more word, "leave", comes when there are other workers (ssad.restart), with the seconds that
there are for it. It has no answer: the worker ends.
"""

from __future__ import annotations

import datetime as dt
import logging
import select
import socket
import time
from collections.abc import Callable, Mapping
from typing import Generic, Protocol, TypeVar

from ssad import config
from ssad.config import Faulty, Source
from ssad.errors import Refused, printable
from ssad.policy import Policy
from ssad.reloads import Ledger, Reloads

log = logging.getLogger(__name__)

# Seconds that the workers have for each round.
_PATIENCE = 10.0
# Seconds until signals are looked at.
_SLICE = 0.05
_DATAGRAM_MAX = 65536

# By their pids, the sockets to them; nonblocking.
Workers = Mapping[int, socket.socket]


class Keeper:
    """The main process's part: keeps the policy that is in force.

    Workers that are forked find it here.
    """

    def __init__(
        self,
        source: Source | None,
        policy: Policy,
        adopt: Callable[[Policy], None],
        begun: int = 0,
    ) -> None:
        """`source` is where to read it again, None if there is nowhere; `adopt` changes what else
        the main process has for its workers; `begun`: reloads so far, of which the last is a
        restart and not over."""
        self._source = source
        self._adopt = adopt
        self.policy = policy
        config = None if source is None else str(source.path)
        self.ledger = Ledger(Reloads(config, now(), begun, max(0, begun - 1), restarting=begun > 0))

    def reload(self, workers: Workers, stopping: Callable[[], bool]) -> list[int]:
        """Put another policy in place, or keep the old one; log and record which.

        stopping: has the main process been told to end? Then nothing is changed, or waited for.

        Returns the pids of workers that are to be killed, for they did not change over.
        """
        self.ledger.begin()
        try:
            late = self._reload(workers, stopping)
        except Faulty as faulty:
            faults = tuple(map(str, faulty.faults))
            log.error("The policy stays as it was.\n%s", "\n".join(faults))
            self.ledger.end(faults)
            return []
        except Exception:
            # The main process is not to end for it, and all workers with it.
            log.exception("The policy could not be read again.")
            self.ledger.end(("ssad failed internally; its log says more.",))
            return []
        log.info("The policy was read again; it holds for all that begins from now on.")
        self.ledger.end((), now())
        return late

    def _reload(self, workers: Workers, stopping: Callable[[], bool]) -> list[int]:
        if self._source is None:
            raise _kept(["This daemon has no policy file to read."])
        policy = self._source.load()
        rounds = _Rounds(workers, stopping, self.ledger.now.started)
        rounds.send("prepare", config.dump(policy))
        answers = rounds.gather("ready")
        faults = [
            f"Worker {pid} can't work with it: {answer}"
            for pid, answer in answers.items()
            if answer
        ]
        faults += [
            f"Worker {pid} did not answer within {_PATIENCE:g} s. If it does not recover, "
            f"'kill -KILL {pid}' lets another take its place."
            for pid in rounds.silent
        ]
        if stopping():
            faults = ["ssad is stopping."]
        if faults:
            rounds.send("drop")
            raise _kept(faults)
        # From here on there is no way back: what dies begins anew with the new policy.
        self.policy = policy
        self._adopt(policy)
        rounds.send("adopt")
        rounds.gather("adopted")
        if stopping():
            return []  # they all end anyway
        for pid in rounds.silent:
            log.error("Worker %d did not change over to the new policy, and is killed.", pid)
        return rounds.silent


def _kept(reasons: list[str]) -> Faulty:
    return Faulty(config.Fault("", None, "", reason) for reason in reasons)


class _Rounds:
    """Sends to all workers, and gathers their answers."""

    def __init__(self, workers: Workers, stopping: Callable[[], bool], number: int) -> None:
        self._workers = dict(workers)
        self._stopping = stopping
        self._number = number
        self.silent: list[int] = []  # workers that live and did not answer

    def send(self, word: str, text: str = "") -> None:
        """Send to all that have not died. Whose buffer is full will not answer."""
        for pid, to in list(self._workers.items()):
            try:
                to.send(f"{word} {self._number} {text}".encode())
            except BlockingIOError:
                continue
            except OSError:
                del self._workers[pid]

    def gather(self, word: str) -> dict[int, str]:
        """Wait until each worker that lives has said this word, or something else; return what
        else, empty if it was the word."""
        self.silent = list(self._workers)
        found: dict[int, str] = {}
        deadline = time.monotonic() + _PATIENCE
        while self.silent and time.monotonic() < deadline and not self._stopping():
            waiting = {self._workers[pid].fileno(): pid for pid in self.silent}
            poll = select.poll()
            for descriptor in waiting:
                poll.register(descriptor, select.POLLIN)
            for descriptor, _ in poll.poll(_SLICE * 1000):
                pid = waiting[descriptor]
                answer = self._receive(pid, word)
                if answer is None:
                    continue
                self.silent.remove(pid)
                if pid in self._workers:
                    found[pid] = answer
        return found

    def _receive(self, pid: int, word: str) -> str | None:
        """Return what a worker says; None if it was meant for another reload."""
        try:
            said = self._workers[pid].recv(_DATAGRAM_MAX).decode(errors="replace")
        except BlockingIOError:
            return None
        except OSError:
            said = ""
        if not said:
            del self._workers[pid]  # it has died
            return ""
        first, number, text = (*said.split(" ", 2), "", "")[:3]
        if number != str(self._number):
            return None
        return "" if first == word else printable(text) or f"it said {first!r}."


Prepared = TypeVar("Prepared")


class Changes(Protocol[Prepared]):
    """What a worker can do with a policy."""

    def prepare(self, policy: Policy) -> Prepared:
        """Make what the policy needs; nothing changes yet. Raises Refused or OSError."""

    def adopt(self, prepared: Prepared) -> None:
        """Change over. Does not fail."""

    def leave(self, patience: float) -> None:
        """Make way for other workers within so many seconds. Does not fail."""


class Follower(Generic[Prepared]):
    """The worker's part."""

    def __init__(self, control: socket.socket, worker: Changes[Prepared]) -> None:
        """`control` is nonblocking."""
        self._control = control
        self._worker = worker
        self._prepared: tuple[str, Prepared] | None = None

    def read(self) -> None:
        """Do what the main process asks for, when the socket is readable."""
        while True:
            try:
                asked = self._control.recv(_DATAGRAM_MAX).decode()
            except OSError:  # there is nothing to read
                return
            if not asked:
                return  # the main process is gone, and this one is about to be
            self._handle(*asked.split(" ", 2))

    def _handle(self, word: str, number: str, text: str) -> None:
        if word == "prepare":
            self._prepared = None
            try:
                policy = config.parse(text, "the policy in force")
                self._prepared = number, self._worker.prepare(policy)
            except (Faulty, Refused, OSError) as error:
                self._answer("refused", number, str(error))
            except Exception:
                log.exception("A policy could not be prepared.")
                self._answer("refused", number, "it failed internally; the log says more.")
            else:
                self._answer("ready", number)
        elif word == "adopt" and self._prepared is not None and self._prepared[0] == number:
            self._worker.adopt(self._prepared[1])
            self._prepared = None
            self._answer("adopted", number)
        elif word == "leave":
            self._worker.leave(float(text))
        else:
            self._prepared = None

    def _answer(self, word: str, number: str, text: str = "") -> None:
        try:
            self._control.send(f"{word} {number} {text}"[:_DATAGRAM_MAX].encode())
        except OSError as error:
            log.error("The main process takes no answer: %s.", error.strerror)


def now() -> str:
    """Return the time as the ledger has it."""
    return dt.datetime.now(dt.UTC).isoformat(timespec="seconds")
