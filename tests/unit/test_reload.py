# SPDX-License-Identifier: BSD-3-Clause
"""Another policy in all workers or in none. The workers are threads, sockets and files real."""

from __future__ import annotations

import errno
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

import pytest

from ssad import reload, reloads
from ssad.config import Source
from ssad.errors import Refused
from ssad.policy import Policy
from ssad.reload import Follower, Keeper
from ssad.reloads import Ledger, Reloads
from tests.peers.pki import Pki


@dataclass
class Worker:
    """What a worker does with policies."""

    fault: Exception | None = None  # what it finds wrong with any
    prepared: list[Policy] = field(default_factory=list)
    adopted: list[Policy] = field(default_factory=list)
    patience: float | None = None  # when it was told to leave

    def prepare(self, policy: Policy) -> Policy:
        if self.fault is not None:
            raise self.fault
        self.prepared.append(policy)
        return policy

    def adopt(self, prepared: Policy) -> None:
        self.adopted.append(prepared)

    def leave(self, patience: float) -> None:
        self.patience = patience


Make = Callable[..., "Daemon"]


class Daemon:
    """A main process with its workers."""

    def __init__(self, path: Path, stack: ExitStack, *workers: Worker) -> None:
        self.path = path
        self.stack = stack
        self.adopted: list[Policy] = []
        self.keeper = Keeper(
            Source(path, overrides={"transport": "channel"}), Policy(), self.adopted.append
        )
        stack.callback(self.keeper.ledger.close)
        self.links: dict[int, socket.socket] = {}
        self.theirs: dict[int, socket.socket] = {}
        self.threads: list[threading.Thread] = []
        for pid, worker in enumerate(workers, 1):
            self.add(pid)
            self.run(pid, worker)

    def add(self, pid: int) -> socket.socket:
        """Make the sockets of a worker; it does nothing yet."""
        pair = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.links[pid], self.theirs[pid] = map(self.stack.enter_context, pair)
        self.links[pid].settimeout(0)
        return self.theirs[pid]

    def run(self, pid: int, worker: Worker) -> None:
        """Let a worker work until the main process closes its end."""
        follower = Follower(self.theirs[pid], worker)
        self.threads.append(threading.Thread(target=follower.read))
        self.threads[-1].start()

    def reload(self, text: str, *, stopping: bool = False) -> list[int]:
        """Change the file and reload."""
        self.path.write_text(text)
        return self.keeper.reload(self.links, lambda: stopping)

    def told(self) -> Reloads:
        """Return what a command would read."""
        found = reloads.read(os.getpid())
        assert found is not None
        return found

    def close(self) -> None:
        for link in self.links.values():
            link.close()
        for thread in self.threads:
            thread.join(20)


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as opened:
        yield opened


@pytest.fixture
def make(tmp_path: Path, pki: Pki, stack: ExitStack) -> Make:
    """Make a daemon whose file begins with a trust store that can be used."""

    class Made(Daemon):
        def __init__(self, *workers: Worker) -> None:
            super().__init__(tmp_path / "ssad.toml", stack, *workers)
            stack.callback(self.close)

        def reload(self, text: str, *, stopping: bool = False) -> list[int]:
            return super().reload(f'[trust]\nstore = "{pki.root}"\n{text}', stopping=stopping)

    return Made


def test_all_workers_change_over(make: Make, pki: Pki) -> None:
    workers = [Worker(), Worker(), Worker()]
    daemon = make(*workers)
    before = daemon.told()
    assert daemon.reload("[deadlines]\nclose = 7") == []
    # What the command line has said wins over the file every time.
    policy = Policy(trust_store=pki.root, close_timeout=7.0, transport="channel")
    assert [worker.adopted for worker in workers] == [[policy]] * 3
    assert daemon.adopted == [policy]
    assert daemon.keeper.policy == policy
    told = daemon.told()
    assert (before.started, before.finished) == (0, 0)
    assert (told.started, told.finished, told.faults) == (1, 1, ())
    assert told.loaded >= before.loaded
    assert daemon.reload("") == []
    assert daemon.told().finished == 2
    assert [len(worker.adopted) for worker in workers] == [2] * 3


def test_whatever_goes_wrong_the_main_process_goes_on(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> NoReturn:
        raise RuntimeError("a mistake of ours")

    daemon = make(Worker())
    monkeypatch.setattr(Source, "load", fail)
    assert daemon.keeper.reload(daemon.links, lambda: False) == []
    assert daemon.keeper.ledger.now.finished == 1
    assert "failed internally" in daemon.keeper.ledger.now.faults[0]


def test_a_fault_in_the_file_reaches_no_worker(make: Make) -> None:
    worker = Worker()
    daemon = make(worker)
    assert daemon.reload("[deadlines]\nclose = -7") == []
    (fault,) = daemon.told().faults
    assert fault.startswith(f"{daemon.path}:4: deadlines.close: wanted a number of seconds, found")
    assert worker.prepared == []
    assert daemon.keeper.policy == Policy()
    assert daemon.adopted == []


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (Refused(errno.EPROTO, "The trust store has gone."), "The trust store has gone."),
        (OSError(errno.EMFILE, "Too many open files"), "[Errno 24] Too many open files"),
        (RuntimeError("a bug"), "it failed internally; the log says more."),
    ],
)
def test_if_one_worker_can_not_none_does(make: Make, fault: Exception, said: str) -> None:
    workers = [Worker(), Worker(fault), Worker()]
    daemon = make(*workers)
    assert daemon.reload("") == []
    assert daemon.told().faults == (f"Worker 2 can't work with it: {said}",)
    assert [worker.adopted for worker in workers] == [[], [], []]
    assert daemon.keeper.policy == Policy()
    workers[1].fault = None
    assert daemon.reload("") == []
    assert daemon.told().faults == ()
    assert [len(worker.adopted) for worker in workers] == [1, 1, 1]


def test_a_worker_is_told_to_leave(make: Make) -> None:
    worker = Worker()
    daemon = make(worker)
    daemon.links[1].send(b"leave 0 1.5")
    await_condition(lambda: worker.patience == 1.5)
    assert worker.prepared == []


def await_condition(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_worker_that_says_nothing_keeps_the_old_policy_for_all(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reload, "_PATIENCE", 3.0)
    live, frozen = Worker(), Worker()
    daemon = make(live)
    daemon.add(2)
    assert daemon.reload("") == []
    assert daemon.told().faults == (
        (
            "Worker 2 did not answer within 3 s. If it does not recover, 'kill -KILL 2' lets "
            "another take its place."
        ),
    )
    assert live.adopted == []
    # It goes on: what it was told meanwhile has no effect, nor what it says to it.
    daemon.run(2, frozen)
    monkeypatch.setattr(reload, "_PATIENCE", 20.0)
    assert daemon.reload("[deadlines]\nclose = 7") == []
    assert daemon.told().faults == ()
    for worker in (live, frozen):
        assert [policy.close_timeout for policy in worker.adopted] == [7.0]


def test_a_worker_that_is_frozen_for_long_does_not_hold_up_the_main_process(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reload, "_PATIENCE", 0.01)
    daemon = make()
    daemon.add(1)
    for _ in range(300):  # its buffer is full by then
        assert daemon.reload("") == []
        assert "did not answer" in daemon.told().faults[0]


def test_a_worker_that_is_dead_is_no_obstacle(make: Make) -> None:
    live = Worker()
    daemon = make(live)
    daemon.add(2).close()
    assert daemon.reload("[deadlines]\nclose = 7") == []
    assert daemon.told().faults == ()
    assert len(live.adopted) == 1
    # Whoever takes its place begins with it.
    assert daemon.keeper.policy.close_timeout == 7.0


class Dying:
    """A worker that answers in its own way."""

    def __init__(self, daemon: Daemon, *answers: str) -> None:
        self._end = daemon.add(2)
        self._answers = answers
        daemon.threads.append(threading.Thread(target=self._work))
        daemon.threads[-1].start()

    def _work(self) -> None:
        for answer in self._answers:
            _, number, _ = self._end.recv(65536).decode().split(" ", 2)
            self._end.send(f"{answer} {number} ".encode())
        with suppress(OSError):  # the main process may be gone before
            self._end.recv(65536)
            self._end.shutdown(socket.SHUT_RDWR)


def test_a_worker_that_dies_between_the_rounds_is_no_obstacle(make: Make) -> None:
    live = Worker()
    daemon = make(live)
    Dying(daemon, "ready")
    assert daemon.reload("") == []
    assert daemon.told().faults == ()
    assert len(live.adopted) == 1


def test_a_worker_that_is_ready_and_does_not_change_over_is_to_be_killed(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reload, "_PATIENCE", 3.0)
    live = Worker()
    daemon = make(live)
    end = daemon.add(2)
    thread = threading.Thread(target=lambda: end.send(b"ready 1 "))
    thread.start()
    assert daemon.reload("") == [2]
    thread.join()
    assert daemon.told().faults == ()
    assert len(live.adopted) == 1


def test_what_a_worker_says_wrongly_keeps_the_old_policy(make: Make) -> None:
    daemon = make(Worker())
    Dying(daemon, "\N{SNOWMAN}")
    assert daemon.reload("") == []
    assert daemon.told().faults == ("Worker 2 can't work with it: it said '\N{SNOWMAN}'.",)


def test_who_is_to_stop_waits_for_nobody(make: Make) -> None:
    worker = Worker()
    daemon = make(worker)
    daemon.add(2)
    start = time.monotonic()
    assert daemon.reload("", stopping=True) == []
    assert time.monotonic() - start < 5
    assert daemon.told().faults == ("ssad is stopping.",)
    assert worker.adopted == []


def test_without_a_file_there_is_nothing_to_reload(stack: ExitStack) -> None:
    keeper = Keeper(None, Policy(), lambda _: None)
    stack.callback(keeper.ledger.close)
    assert keeper.reload({}, lambda: False) == []
    assert keeper.ledger.now.faults == ("This daemon has no policy file to read.",)


def test_the_ledger_is_read_whole_or_not_at_all() -> None:
    ledger = Ledger(Reloads("/etc/f", "2026-01-01T00:00:00+00:00"))
    done = threading.Event()

    def write() -> None:
        while not done.is_set():
            ledger.begin()
            ledger.end(("x" * 5000,) * (ledger.now.started % 7))

    writer = threading.Thread(target=write)
    writer.start()
    try:
        last = 0
        for _ in range(200):
            found = reloads.read(os.getpid())
            if found is None:
                continue
            # While the files change places, the old one may be seen once more.
            assert found.started >= last - 1
            assert found.finished in (found.started, found.started - 1)
            if found.finished == found.started:
                assert len(found.faults) == found.started % 7
            last = found.started
        assert last
    finally:
        done.set()
        writer.join()
        ledger.close()
    assert reloads.read(os.getpid()) is None


@pytest.mark.parametrize("other", [{"moons": 2}, {"restarting": None}])
def test_what_another_version_tells_is_read_as_far_as_it_is_known(
    monkeypatch: pytest.MonkeyPatch, other: dict[str, object]
) -> None:
    """An upgrade is when two versions meet."""

    def told(_: object) -> dict[str, object]:
        return {
            name: value
            for name, value in ({"config": "f", "loaded": "t", "restarting": True} | other).items()
            if value is not None
        }

    monkeypatch.setattr(reloads, "asdict", told)
    ledger = Ledger(Reloads("f", "t"))
    try:
        found = reloads.read(os.getpid())
    finally:
        ledger.close()
    assert found == Reloads("f", "t", restarting="moons" in other)


def test_many_faults_are_cut_short() -> None:
    ledger = Ledger(Reloads(None, ""))
    ledger.end(tuple(map(str, range(1000))))
    assert len(ledger.now.faults) == 101
    assert ledger.now.faults[-1] == "and 900 more."
    ledger.close()
