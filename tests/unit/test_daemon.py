# SPDX-License-Identifier: BSD-3-Clause
"""The daemon as a process of its own. The module is played over a socket pair."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from ssad import daemon, link, module
from ssad.daemon import Options
from ssad.exits import CommandError, Exit
from ssad.policy import Policy
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


@pytest.mark.root
def test_it_returns_once_registered_runs_without_rights_and_stops(
    kernel: Kernel, options: Options
) -> None:
    def start_look_and_stop() -> tuple[str, list[str], int]:
        pid = daemon.start_in_background(options)
        status = Path(f"/proc/{pid}/status").read_text()
        files = [str(Path(f"/proc/{pid}/fd/{number}").readlink()) for number in (0, 1)]
        os.kill(pid, signal.SIGTERM)
        return status, files, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    status, files, code = in_child(start_look_and_stop)
    assert kernel.next_of(Command.REGISTER) == {}
    assert f"CapEff:\t{0:016x}" in status
    assert f"CapPrm:\t{0:016x}" in status
    assert files == [os.devnull] * 2
    assert code == Exit.DONE


def refused(options: Options) -> CommandError:
    with pytest.raises(CommandError) as caught:
        in_child(lambda: daemon.start_in_background(options))
    return caught.value


def test_a_second_one_is_refused_and_told_of_the_first(kernel: Kernel, options: Options) -> None:
    def busy(_: Attributes) -> Attributes:
        raise Refusal(errno.EBUSY, "A worker is registered already.")

    kernel.handlers[Command.REGISTER] = busy
    kernel.dumps[Command.WORKER_GET] = [{"pid": 4711, "pending": 0}]
    error = refused(options)
    assert error.code == Exit.RUNNING_ALREADY
    assert str(error) == "ssad is already running (pid 4711); stop it with 'ssad stop'."


def test_another_refusal_is_passed_on(kernel: Kernel, options: Options) -> None:
    def refuse(_: Attributes) -> Attributes:
        raise Refusal(errno.ENOMEM, "There is no memory for a worker.")

    kernel.handlers[Command.REGISTER] = refuse
    error = refused(options)
    assert error.code == Exit.FAILED
    assert "There is no memory for a worker." in str(error)


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
