# SPDX-License-Identifier: BSD-3-Clause
"""The main process and its workers, with real processes."""

from __future__ import annotations

import os
import select
import signal
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NoReturn

import pytest

from ssad import supervisor
from ssad.exits import CommandError, Exit
from ssad.supervisor import HURRY, Backoff, Supervisor, unblock_signals

pytestmark = pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")

_PATIENCE = 20.0

Ready = Callable[[], None]
Say = Callable[[str], None]


@dataclass
class Main:
    """A main process, and what its workers say."""

    pid: int
    news: BinaryIO
    status: int | None = None

    def line(self) -> str:
        """Return the next line that a worker has written."""
        assert select.select([self.news], [], [], _PATIENCE)[0], "no worker says anything"
        return self.news.readline().decode().strip()

    def worker(self) -> int:
        """Return the pid that the next worker has written."""
        return int(self.line())

    def send(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def end(self) -> int:
        """Wait for its end; return its exit code."""
        if self.status is None:
            self.status = os.waitpid(self.pid, 0)[1]
        return os.waitstatus_to_exitcode(self.status)

    def ends_well(self) -> None:
        """Stop it, and check that no worker is left: then nobody could write any more."""
        self.send(signal.SIGTERM)
        assert self.end() == Exit.DONE
        assert self.news.read() == b""


@contextmanager
def _running(make: Callable[[Say], Supervisor]) -> Iterator[Main]:
    """Run a supervisor in a process of its own. It says its failure, as its workers do."""
    read_end, write_end = os.pipe()

    def say(text: str) -> None:
        _write(write_end, text)

    pid = os.fork()
    if pid == 0:
        os.close(read_end)
        _be_main(lambda: make(say), say)
    os.close(write_end)
    # Not buffered: select() has to tell about every line.
    with os.fdopen(read_end, "rb", buffering=0) as news:
        main = Main(pid, news)
        try:
            yield main
        finally:
            if main.status is None:
                main.send(signal.SIGKILL)
                main.end()


def main_process(count: int, work: Callable[[Ready, Say], None]) -> AbstractContextManager[Main]:
    """Run a supervisor of so many workers."""
    return _running(lambda say: Supervisor(count, lambda ready, _: work(ready, say)))


def _be_main(make: Callable[[], Supervisor], say: Say) -> NoReturn:
    code = Exit.DONE
    try:
        made = make()
        made.start()
        made.run()
    except CommandError as error:
        say(str(error))
        code = error.code
    except BaseException as error:  # noqa: BLE001 - it must not go on as pytest
        say(repr(error))
        code = Exit.USAGE
    finally:
        os._exit(code)


def on_signals(handlers: dict[signal.Signals, Callable[[], None]]) -> None:
    for number, handler in handlers.items():
        signal.signal(number, lambda *_, handler=handler: handler())
    unblock_signals()


def wait() -> NoReturn:
    while True:
        time.sleep(0.05)  # pause(2) would sleep on if a signal came just before it


def leave() -> NoReturn:
    os._exit(0)


def obedient(ready: Ready, say: Say) -> None:
    """A worker that ends when it is told to."""
    on_signals({signal.SIGTERM: leave, HURRY: leave})
    ready()
    say(str(os.getpid()))
    wait()


def stubborn(ready: Ready, say: Say) -> None:
    """A worker that does not end on SIGTERM."""
    on_signals({signal.SIGTERM: lambda: say("told"), HURRY: leave})
    ready()
    say(str(os.getpid()))
    wait()


def ended(pidfds: list[int]) -> bool:
    return all(select.select([pidfd], [], [], _PATIENCE)[0] for pidfd in pidfds)


@contextmanager
def pidfds_of(pids: set[int]) -> Iterator[list[int]]:
    with ExitStack() as opened:
        found = [os.pidfd_open(pid) for pid in pids]
        for pidfd in found:
            opened.callback(os.close, pidfd)
        yield found


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGRTMIN + 1])
def test_a_worker_that_ends_is_replaced(number: int) -> None:
    with main_process(2, obedient) as main:
        first, second = main.worker(), main.worker()
        os.kill(first, number)
        third = main.worker()
        assert third not in (first, second)
        os.kill(third, signal.SIGKILL)
        assert main.worker() not in (first, second, third)
        main.ends_well()


def test_workers_that_die_at_once_are_replaced_again_and_again() -> None:
    lives = iter(range(100))

    def short_lived(ready: Ready, say: Say) -> None:
        unblock_signals()
        ready()
        say(str(os.getpid()))
        raise RuntimeError(f"life {next(lives)} was short")

    with main_process(1, short_lived) as main:
        assert len({main.worker() for _ in range(4)}) == 4
        main.send(signal.SIGTERM)
        assert main.end() == Exit.DONE


def test_each_early_death_doubles_the_delay_and_a_long_life_ends_it() -> None:
    backoff = Backoff()
    delays = [backoff.after(lived=0.5) for _ in range(9)]
    assert delays == [0, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5, 5]
    assert [backoff.after(lived=10), backoff.after(lived=9.9)] == [0, 0.1]


def test_when_no_process_can_be_started_it_tries_again(monkeypatch: pytest.MonkeyPatch) -> None:
    fork = os.fork
    refusals = 0

    def refuse_then_fork() -> int:
        nonlocal refusals
        refusals += 1
        if refusals in (3, 4, 5):  # after this test's own, and the first worker's
            raise BlockingIOError(11, "Resource temporarily unavailable")
        return fork()

    monkeypatch.setattr(os, "fork", refuse_then_fork)
    with main_process(1, obedient) as main:
        os.kill(main.worker(), signal.SIGKILL)
        main.worker()
        main.ends_well()


def test_so_many_processes_as_cannot_be_are_not_started(monkeypatch: pytest.MonkeyPatch) -> None:
    fork = os.fork
    refusals = 0

    def fork_twice() -> int:
        nonlocal refusals
        refusals += 1
        if refusals > 2:
            raise BlockingIOError(11, "Resource temporarily unavailable")
        return fork()

    monkeypatch.setattr(os, "fork", fork_twice)
    with main_process(2, obedient) as main:
        said = [main.line()]
        said += main.news.read().decode().splitlines()
        assert "BlockingIOError" in said[-1]
        assert main.end() == Exit.USAGE


def test_stopping_waits_for_what_workers_have_to_finish() -> None:
    def busy(ready: Ready, say: Say) -> None:
        def finish() -> None:
            time.sleep(0.3)
            say("finished")
            leave()

        on_signals({signal.SIGTERM: finish})
        ready()
        say(str(os.getpid()))
        wait()

    with main_process(2, busy) as main:
        assert main.worker() != main.worker()
        main.send(signal.SIGINT)
        assert main.end() == Exit.DONE
        assert main.news.read() == b"finished\nfinished\n"


def test_the_second_signal_hurries_workers() -> None:
    with main_process(1, stubborn) as main:
        main.worker()
        main.send(signal.SIGTERM)
        assert main.line() == "told"
        main.send(signal.SIGTERM)
        assert main.end() == Exit.DONE


def test_who_does_not_end_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "_STOP_TIMEOUT", 0.2)
    with main_process(2, stubborn) as main, pidfds_of({main.worker(), main.worker()}) as workers:
        main.send(signal.SIGTERM)
        assert main.end() == Exit.DONE
        assert ended(workers)


def test_a_frozen_worker_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "_STOP_TIMEOUT", 0.2)
    with main_process(1, obedient) as main:
        os.kill(main.worker(), signal.SIGSTOP)
        main.ends_well()


def test_workers_do_not_heed_the_interrupt_of_a_terminal() -> None:
    with main_process(1, stubborn) as main:
        worker = main.worker()
        os.kill(worker, signal.SIGINT)
        os.kill(worker, signal.SIGTERM)
        assert main.line() == "told"


def test_workers_die_with_the_main_process() -> None:
    with main_process(2, stubborn) as main, pidfds_of({main.worker(), main.worker()}) as workers:
        main.send(signal.SIGKILL)
        assert main.end() == -signal.SIGKILL
        assert ended(workers)


def token() -> Callable[[], bool]:
    """Return a function that is true for one of the processes that call it."""
    read_end, write_end = os.pipe()
    os.set_blocking(read_end, False)
    os.write(write_end, b"x")
    os.close(write_end)

    def take() -> bool:
        with suppress(BlockingIOError):
            return os.read(read_end, 1) != b""
        return False

    return take


def test_if_one_does_not_start_none_is_left_and_its_reason_is_told() -> None:
    chosen = token()

    def one_fails(ready: Ready, say: Say) -> None:
        if chosen():
            raise CommandError(Exit.NO_MODULE, "There is no module.")
        stubborn(ready, lambda _: None)
        say("never")

    with main_process(3, one_fails) as main:
        assert main.line() == "There is no module."
        assert main.end() == Exit.NO_MODULE
        assert main.news.read() == b""


def test_if_one_dies_before_it_is_ready_its_fate_is_told() -> None:
    chosen = token()

    def one_dies(ready: Ready, _: Say) -> None:
        if chosen():
            os.kill(os.getpid(), signal.SIGKILL)
        stubborn(ready, lambda _: None)

    with main_process(3, one_dies) as main:
        assert main.line() == "ssad ended before it was ready (signal SIGKILL)."
        assert main.end() == Exit.FAILED
        assert main.news.read() == b""


def open_files() -> set[str]:
    found = set()
    for number in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):
            found.add(f"{number.name} {number.readlink()}")
    return {name for name in found if "/proc/" not in name}


def test_a_worker_has_no_descriptor_of_the_main_process_or_of_another_worker() -> None:
    before = open_files()
    private, private_too = os.pipe()

    def tell(ready: Ready, say: Say) -> None:
        on_signals({signal.SIGTERM: leave})
        ready()
        # Two more are the pipe to this test, and the socket to the main process.
        say(str(len(open_files() - before)))
        wait()

    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(read_end)
        made = Supervisor(3, lambda ready, _: tell(ready, lambda text: _write(write_end, text)))
        made.start([private, private_too])
        os.close(private)
        os.close(private_too)
        made.run()
        os._exit(0)
    for number in (write_end, private, private_too):
        os.close(number)
    with os.fdopen(read_end, "rb") as news:
        assert [int(news.readline()) for _ in range(3)] == [2, 2, 2]
        os.kill(pid, signal.SIGTERM)
        assert os.waitpid(pid, 0)[1] == 0


def run_with(work: supervisor.Work, on_hangup: supervisor.OnHangup) -> int:
    """Run a supervisor of two workers in a process of its own; return its pid."""
    pid = os.fork()
    if pid == 0:
        _be_main(lambda: Supervisor(2, work, on_hangup), lambda text: _write(2, text))
    return pid


def test_sighup_reaches_every_worker_through_the_main_process_and_late_ones_are_killed() -> None:
    read_end, write_end = os.pipe()

    def answer(ready: Ready, control: socket.socket) -> None:
        on_signals({signal.SIGTERM: leave, HURRY: leave})
        ready()
        _write(write_end, "ready")
        while True:
            select.select([control], [], [])
            control.send(control.recv(100) + b" " + str(os.getpid()).encode())

    def ask(workers: Mapping[int, socket.socket], _: Callable[[], bool]) -> list[int]:
        for link in workers.values():
            link.send(b"pid")
        pids = [*workers]
        for pid, link in workers.items():
            select.select([link], [], [])
            assert link.recv(100) == f"pid {pid}".encode()
        _write(write_end, " ".join(map(str, pids)))
        return pids[:1]

    main = run_with(answer, ask)
    with os.fdopen(read_end, "rb", buffering=0) as news:

        def said() -> str:
            return news.readline().decode().strip()

        assert [said(), said()] == ["ready"] * 2
        seen: list[str] = []
        for _ in range(3):
            os.kill(main, signal.SIGHUP)
            pids = said().split()
            assert len(set(pids)) == 2
            seen += pids
            assert said() == "ready"  # another one in the place of the one that was killed
        assert len(set(seen)) == 4
        os.kill(main, signal.SIGTERM)
        assert os.waitstatus_to_exitcode(os.waitpid(main, 0)[1]) == Exit.DONE
    os.close(write_end)


def test_sighup_to_a_worker_does_nothing_and_one_to_the_main_process_ends_nobody() -> None:
    with main_process(2, obedient) as main:
        pids = {main.worker(), main.worker()}
        for pid in pids:
            os.kill(pid, signal.SIGHUP)
        main.send(signal.SIGHUP)
        with pidfds_of(pids) as workers:
            assert not select.select(workers, [], [], 0.2)[0]
        main.ends_well()


def test_a_stop_that_comes_during_a_change_is_noticed() -> None:
    read_end, write_end = os.pipe()

    def idle(ready: Ready, _: socket.socket) -> None:
        on_signals({signal.SIGTERM: leave, HURRY: leave})
        ready()
        _write(write_end, "ready")
        wait()

    def change(_: Mapping[int, socket.socket], stopping: Callable[[], bool]) -> list[int]:
        _write(write_end, f"changing {stopping()}")
        while not stopping():
            time.sleep(0.01)
        _write(write_end, "stopping")
        return []

    main = run_with(idle, change)
    with os.fdopen(read_end, "rb", buffering=0) as news:
        assert [news.readline() for _ in range(2)] == [b"ready\n"] * 2
        os.kill(main, signal.SIGHUP)
        assert news.readline() == b"changing False\n"
        os.kill(main, signal.SIGTERM)
        assert news.readline() == b"stopping\n"
        assert os.waitstatus_to_exitcode(os.waitpid(main, 0)[1]) == Exit.DONE
    os.close(write_end)


class Succession:
    """Restarts whose new programs are other supervisors in the same process."""

    def __init__(self, say: Say, *, trial_status: int = 0, new: Sequence[supervisor.Work]) -> None:
        """`new`: what the workers do after each restart; the last, after all others as well."""
        self.trial: int | None = None
        self._say = say
        self._status = trial_status
        self._new = list(new)

    def begin(self) -> None:
        self._say("trial")
        self.trial = os.fork()
        if self.trial == 0:
            os._exit(self._status)

    def end(self, status: int, old: supervisor.Old) -> None:
        self.trial = None
        self._say(f"status {os.waitstatus_to_exitcode(status)}")
        if status:
            return
        new = self._new.pop(0) if len(self._new) > 1 else self._new[0]
        made = Supervisor(2, new, restart=self, old=old)
        try:
            made.start()
        except CommandError as error:
            self._say(str(error))
            made.keep_old(0.2)
        else:
            made.retire_old(0.2)
        made.run()
        os._exit(0)


def restartable(
    old: Callable[[Say], supervisor.Work], *new: Callable[[Say], supervisor.Work], status: int = 0
) -> AbstractContextManager[Main]:
    """Run a supervisor of two workers that can be restarted."""

    def make(say: Say) -> Supervisor:
        succession = Succession(say, trial_status=status, new=[one(say) for one in new])
        return Supervisor(2, old(say), restart=succession)

    return _running(make)


def heeding(name: str, *, heeds: bool = True) -> Callable[[Say], supervisor.Work]:
    """Return what makes workers that end when they are told to leave."""

    def make(say: Say) -> supervisor.Work:
        def work(ready: Ready, control: socket.socket) -> None:
            on_signals({signal.SIGTERM: leave, HURRY: leave})
            ready()
            say(f"{name} {os.getpid()}")
            select.select([control], [], [])
            said = control.recv(100).decode()
            say(f"{name} hears {said}")
            if not heeds:
                wait()

        return work

    return make


def unable(_: Say) -> supervisor.Work:
    def work(_ready: Ready, _control: socket.socket) -> None:
        raise CommandError(Exit.FAILED, "New ones can't be.")

    return work


def pids_of(main: Main, name: str) -> set[int]:
    """Return the pids of two workers, from the next two lines."""
    found = [main.line().split() for _ in range(2)]
    assert [line[0] for line in found] == [name] * 2
    return {int(line[1]) for line in found}


def test_a_restart_starts_new_workers_and_then_has_the_old_ones_leave() -> None:
    with restartable(heeding("old"), heeding("new")) as main:
        old = pids_of(main, "old")
        with pidfds_of(old) as ends:
            main.send(supervisor.RESTART)
            assert [main.line(), main.line()] == ["trial", "status 0"]
            lines = [main.line().split() for _ in range(4)]
            assert [line[0] for line in lines].count("new") == 2
            assert sum(line[1:] == ["hears", "leave", "0", "0.2"] for line in lines) == 2
            assert ended(ends)
        # Those that left are not replaced, and another restart is possible.
        main.send(supervisor.RESTART)
        assert [main.line(), main.line()] == ["trial", "status 0"]
        for _ in range(4):
            main.line()
        main.ends_well()


def test_an_old_worker_that_does_not_leave_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "_STOP_TIMEOUT", 2.0)
    with restartable(heeding("old", heeds=False), heeding("new")) as main:
        with pidfds_of(pids_of(main, "old")) as ends:
            main.send(supervisor.RESTART)
            for _ in range(6):
                main.line()
            assert ended(ends)
        main.ends_well()


def test_stopping_ends_old_workers_as_well() -> None:
    with (
        restartable(heeding("old", heeds=False), heeding("new")) as main,
        pidfds_of(pids_of(main, "old")) as ends,
    ):
        main.send(supervisor.RESTART)
        for _ in range(6):
            main.line()
        main.ends_well()
        assert ended(ends)


def test_a_trial_that_fails_changes_nothing() -> None:
    with restartable(heeding("old"), heeding("new"), status=1) as main:
        old = pids_of(main, "old")
        main.send(supervisor.RESTART)
        assert [main.line(), main.line()] == ["trial", "status 1"]
        os.kill(old.pop(), signal.SIGKILL)
        assert main.line().startswith("old ")
        main.ends_well()


def test_without_new_workers_the_old_ones_go_on() -> None:
    with restartable(heeding("old"), unable) as main:
        with pidfds_of(pids_of(main, "old")) as ends:
            main.send(supervisor.RESTART)
            assert [main.line(), main.line()] == ["trial", "status 0"]
            assert main.line() == "New ones can't be."
            assert not select.select(ends, [], [], 0.3)[0]
        main.ends_well()


def test_those_that_leave_already_do_not_go_on_and_those_that_are_missing_are_replaced() -> None:
    first = heeding("first", heeds=False)
    with restartable(first, heeding("second"), unable, heeding("third")) as main:
        leaving = pids_of(main, "first")
        main.send(supervisor.RESTART)
        lines = [main.line().split() for _ in range(6)]
        second = [int(line[1]) for line in lines if line[0] == "second"]
        assert len(second) == 2
        main.send(supervisor.RESTART)
        assert [main.line() for _ in range(3)] == ["trial", "status 0", "New ones can't be."]
        with pidfds_of(leaving) as ends:
            for pid in leaving:
                os.kill(pid, signal.SIGKILL)
            assert ended(ends)
        # If those had been replaced, it would be told before this.
        main.send(supervisor.RESTART)
        lines = [main.line().split() for _ in range(6)]
        assert [line[0] for line in lines[2:]].count("third") == 2
        assert [line[1:3] for line in lines].count(["hears", "leave"]) == 2
        main.ends_well()


def test_a_signal_to_restart_does_nothing_to_a_worker() -> None:
    with main_process(1, obedient) as main:
        worker = main.worker()
        os.kill(worker, supervisor.RESTART)
        with pidfds_of({worker}) as ends:
            assert not select.select(ends, [], [], 0.2)[0]
        main.ends_well()


def _write(number: int, text: str) -> None:
    os.write(number, f"{text}\n".encode())
