# SPDX-License-Identifier: BSD-3-Clause
"""The main process and its workers, with real processes."""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
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
def main_process(count: int, work: Callable[[Ready, Say], None]) -> Iterator[Main]:
    """Run a supervisor in a process of its own. It says its failure, as its workers do."""
    read_end, write_end = os.pipe()

    def say(text: str) -> None:
        os.write(write_end, f"{text}\n".encode())

    pid = os.fork()
    if pid == 0:
        os.close(read_end)
        _be_main(lambda: Supervisor(count, lambda ready: work(ready, say)), say)
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
        signal.pause()


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
        # One more is the pipe to this test.
        say(str(len(open_files() - before)))
        wait()

    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(read_end)
        made = Supervisor(3, lambda ready: tell(ready, lambda text: _write(write_end, text)))
        made.start([private, private_too])
        os.close(private)
        os.close(private_too)
        made.run()
        os._exit(0)
    for number in (write_end, private, private_too):
        os.close(number)
    with os.fdopen(read_end, "rb") as news:
        assert [int(news.readline()) for _ in range(3)] == [1, 1, 1]
        os.kill(pid, signal.SIGTERM)
        assert os.waitpid(pid, 0)[1] == 0


def _write(number: int, text: str) -> None:
    os.write(number, f"{text}\n".encode())
