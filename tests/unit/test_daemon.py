# SPDX-License-Identifier: BSD-3-Clause
"""The daemon as a process of its own. The module is played over a socket pair."""

from __future__ import annotations

import errno
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NoReturn

import pytest

from ssad import daemon, link, module, privileges, reloads, restart, supervisor
from ssad.config import Source
from ssad.daemon import Options
from ssad.exits import CommandError, Exit
from ssad.link import Link
from ssad.policy import Policy
from ssad.restart import TRY, Legacy
from ssad.wire import Attributes, Command
from tests.peers.pki import Pki
from tests.unit.child import in_child
from tests.unit.kernel import Kernel, Refusal

pytestmark = pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Iterator[Kernel]:
    with Kernel() as kernel:
        monkeypatch.setattr(link, "_open", kernel.socket)
        monkeypatch.setattr(module, "MODULE", "no-such-module")
        monkeypatch.setattr(module, "KTLS_MODULE", "no-such-module")
        yield kernel


@pytest.fixture
def options(pki: Pki) -> Iterator[Options]:
    # The daemon reads it as another user, to whom pytest's own directory is closed.
    with tempfile.TemporaryDirectory() as directory:
        Path(directory).chmod(0o755)
        yield Options(Policy(trust_store=Path(shutil.copy(pki.root, directory))))


@dataclass
class Found:
    """What a daemon with two workers is like."""

    main: int
    daemons: list[int]
    capabilities: list[int]
    files: set[str]
    code: int


@pytest.mark.root
def test_it_returns_once_registered_runs_without_rights_and_stops(
    kernel: Kernel, options: Options
) -> None:
    def start_look_and_stop() -> Found:
        main = daemon.start_in_background(replace(options, workers=2))
        pids = [worker["pid"] for worker in registered()]
        daemons = [worker["daemon"] for worker in registered()]
        rights = [capabilities(pid) for pid in (main, *pids)]
        inputs = [Path(f"/proc/{pid}/fd/{number}") for pid in (main, *pids) for number in (0, 1)]
        files = {str(path.readlink()) for path in inputs}
        return Found(main, daemons, rights, files, stop(main))

    found = in_child(start_look_and_stop)
    assert found.daemons == [found.main] * 2
    # The main process keeps it for workers that it may have to start.
    assert found.capabilities == [1 << privileges.CAP_NET_ADMIN, 0, 0]
    assert found.files == {os.devnull}
    assert found.code == Exit.DONE
    assert kernel.next_of(Command.REGISTER) == {"daemon": found.main}


def changed(main: int, number: signal.Signals) -> reloads.Reloads:
    """Send a signal that asks for a change; return what is told when it is over."""
    before = reloads.read(main)
    assert before is not None
    os.kill(main, number)
    while (told := reloads.read(main)) is None or told.finished == before.finished:
        time.sleep(0.01)
    return told


def registered() -> list[Attributes]:
    """What the module says."""
    with Link() as asking:
        return asking.dump(Command.WORKER_GET)


def capabilities(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    permitted, effective = (
        int(line.split()[1], 16) for line in lines if line.startswith(("CapPrm", "CapEff"))
    )
    assert permitted == effective
    return effective


def stop(main: int) -> int:
    os.kill(main, signal.SIGTERM)
    return os.waitstatus_to_exitcode(os.waitpid(main, 0)[1])


def test_a_worker_that_is_killed_is_replaced_by_one_that_registers(
    kernel: Kernel, options: Options
) -> None:
    def kill_one() -> tuple[int, int]:
        main = daemon.start_in_background(options)
        (worker,) = registered()
        os.kill(worker["pid"], signal.SIGKILL)
        while [found["pid"] for found in registered()] in ([], [worker["pid"]]):
            time.sleep(0.01)
        return main, stop(main)

    main, code = in_child(kill_one)
    assert [kernel.next_of(Command.REGISTER) for _ in range(2)] == [{"daemon": main}] * 2
    assert code == Exit.DONE


def test_workers_without_capabilities_die_with_the_main_process(
    kernel: Kernel, options: Options
) -> None:
    def kill_main() -> bool:
        main = daemon.start_in_background(replace(options, workers=2))
        pidfds = [os.pidfd_open(worker["pid"]) for worker in registered()]
        os.kill(main, signal.SIGKILL)
        os.waitpid(main, 0)
        return all(select.select([pidfd], [], [], 20)[0] for pidfd in pidfds)

    assert in_child(kill_main)
    assert kernel.next_of(Command.REGISTER)


@pytest.mark.usefixtures("kernel")
def test_a_signal_to_all_processes_stops_it_as_one_to_the_main_process(options: Options) -> None:
    def stop_all() -> int:
        main = daemon.start_in_background(replace(options, workers=2))
        for worker in registered():
            os.kill(worker["pid"], signal.SIGTERM)
        return stop(main)

    assert in_child(stop_all) == Exit.DONE


def refused(options: Options) -> CommandError:
    with pytest.raises(CommandError) as caught:
        in_child(lambda: daemon.start_in_background(options))
    return caught.value


def test_a_second_one_is_refused_and_told_of_the_first(kernel: Kernel, options: Options) -> None:
    def busy(_: Attributes) -> Attributes:
        raise Refusal(errno.EBUSY, "A worker is registered already.")

    kernel.handlers[Command.REGISTER] = busy
    kernel.dumps[Command.WORKER_GET] = [{"pid": pid, "daemon": 4711} for pid in (4712, 4713)]
    error = refused(replace(options, workers=2))
    assert error.code == Exit.RUNNING_ALREADY
    assert str(error) == "ssad is already running (pid 4711); stop it with 'ssad stop'."


def test_another_refusal_is_passed_on(kernel: Kernel, options: Options) -> None:
    def refuse(_: Attributes) -> Attributes:
        raise Refusal(errno.ENOMEM, "There is no memory for a worker.")

    kernel.handlers[Command.REGISTER] = refuse
    error = refused(options)
    assert error.code == Exit.FAILED
    assert "There is no memory for a worker." in str(error)


@pytest.mark.root
@pytest.mark.usefixtures("kernel")
def test_sighup_changes_the_policy_of_workers_that_live_and_of_those_to_come(
    options: Options,
) -> None:
    directory = options.policy.trust_store.parent
    file = directory / "ssad.toml"
    store = f'[trust]\nstore = "{options.policy.trust_store}"\n'

    def reload(main: int, text: str) -> tuple[str, ...]:
        file.write_text(text)
        return changed(main, signal.SIGHUP).faults

    def change_and_kill() -> tuple[list[tuple[str, ...]], int]:
        file.write_text(store)
        file.chmod(0o644)
        main = daemon.start_in_background(
            replace(options, workers=2, source=Source(file, required=True))
        )
        first, second = (worker["pid"] for worker in registered())
        told = [reload(main, store + "depth = 3\n"), reload(main, "depth = 3\n")]
        os.kill(first, signal.SIGKILL)
        while len({found["pid"] for found in registered()} - {first}) < 2:
            time.sleep(0.01)
        told.append(reload(main, store))
        assert second in [worker["pid"] for worker in registered()]
        return told, stop(main)

    told, code = in_child(change_and_kill)
    assert told[0] == told[2] == ()
    assert told[1][0].startswith(f"{file}:1: depth: wanted a table, found a key outside of any.")
    assert code == Exit.DONE


@pytest.mark.root
@pytest.mark.usefixtures("kernel")
def test_a_restart_puts_workers_of_a_new_program_in_place_of_the_old_ones(
    options: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = options.policy.trust_store.parent
    file = directory / "ssad.toml"
    store = f'[trust]\nstore = "{options.policy.trust_store}"\n'

    def execute(what: str, legacy: int, answer: int) -> NoReturn:
        # Another program would not know the kernel that is played here.
        if what == TRY:
            restart.execute(what, legacy, answer)
        daemon.take_over(Legacy.read(legacy))
        os._exit(Exit.DONE)

    def ask(main: int) -> tuple[str, ...]:
        told = changed(main, supervisor.RESTART)
        assert not told.restarting
        return told.faults

    def restart_twice() -> tuple[list[tuple[str, ...]], int]:
        file.write_text(store)
        file.chmod(0o644)
        main = daemon.start_in_background(
            replace(options, workers=2, source=Source(file, required=True))
        )
        first = {worker["pid"] for worker in registered()}
        file.write_text("depth = 3\n")
        told = [ask(main)]
        assert {worker["pid"] for worker in registered()} == first
        file.write_text(store)
        for _ in range(2):
            old = {worker["pid"] for worker in registered()}
            told.append(ask(main))
            while old & {worker["pid"] for worker in registered()}:
                time.sleep(0.01)
            assert {worker["daemon"] for worker in registered()} == {main}
            assert len(registered()) == 2
        return told, stop(main)

    monkeypatch.setattr(daemon, "execute", execute)
    told, code = in_child(restart_twice)
    assert told[0][0] == "The policy can't be used."
    assert told[1:] == [(), ()]
    assert code == Exit.DONE


@pytest.mark.usefixtures("kernel")
def test_a_policy_that_its_user_can_not_read_stops_the_start(options: Options) -> None:
    file = options.policy.trust_store.parent / "ssad.toml"
    error = refused(replace(options, source=Source(file, required=True)))
    assert error.code == Exit.FAILED
    assert str(error) == (
        "The policy can't be used.\n"
        f"{file}: The policy file can't be read: No such file or directory."
    )


@pytest.mark.usefixtures("kernel")
def test_without_a_trust_store_it_does_not_start(options: Options) -> None:
    policy = replace(options.policy, trust_store=Path("/no/such/file.pem"))
    error = refused(replace(options, policy=policy))
    assert error.code == Exit.FAILED
    assert "/no/such/file.pem" in str(error)


@pytest.mark.usefixtures("kernel")
def test_an_unknown_user_is_refused(options: Options) -> None:
    error = refused(replace(options, user="no-such-user"))
    assert error.code == Exit.NOT_PERMITTED
    assert "no-such-user" in str(error)


def test_without_the_module_it_says_how_to_get_it(kernel: Kernel, options: Options) -> None:
    kernel.has_family = False
    error = refused(options)
    assert error.code == Exit.NO_MODULE
    assert "modprobe ssa" in str(error)


def test_a_daemon_that_dies_before_it_is_ready_is_noticed(
    options: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(link, "_open", die)
    error = refused(options)
    assert error.code == Exit.FAILED
    assert "signal SIGKILL" in str(error)


def test_a_worker_has_nothing_left_to_import(pki: Pki) -> None:
    subprocess.run(
        [sys.executable, "-m", "tests.unit.no_imports", str(pki.directory)],
        cwd=Path(__file__).parents[2],
        check=True,
    )
