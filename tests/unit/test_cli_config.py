# SPDX-License-Identifier: BSD-3-Clause
"""The commands that have to do with the policy file: config, reload, and what start makes of it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from click.testing import Result

from ssad import cli, config, link, reloads
from ssad.exits import Exit
from ssad.policy import Policy
from ssad.wire import Command
from tests.peers.pki import Pki
from tests.unit.kernel import Kernel
from tests.unit.test_cli import run, starts, worker


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Iterator[Kernel]:
    with Kernel() as kernel:
        monkeypatch.setattr(link, "_open", kernel.socket)
        yield kernel


@pytest.fixture
def file(tmp_path: Path, pki: Pki, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A policy file in the place where they are looked for."""
    path = tmp_path / "ssad.toml"
    path.write_text(f'[trust]\nstore = "{pki.root}"\n')
    monkeypatch.setattr(config, "DEFAULT_FILE", path)
    return path


def test_check_says_that_nothing_is_wrong(file: Path) -> None:
    result = run("config", "check")
    assert (result.exit_code, result.output) == (Exit.DONE, f"{file}: nothing is wrong with it.\n")
    result = run("config", "check", "--json")
    assert json.loads(result.output) == {"file": str(file), "found": True, "faults": []}


def test_check_says_that_there_is_no_file(file: Path) -> None:
    file.unlink()
    told = json.loads(run("config", "check", "--json").output)
    # Whether there are certificates in the default place is this machine's affair.
    assert told["found"] is False
    result = run("config", "check", "--config", str(file))
    assert result.exit_code == Exit.FAILED
    assert result.output == (
        "ssad: The policy can't be used.\n"
        f"{file}: The policy file can't be read: No such file or directory.\n"
    )


def test_check_lists_all_faults(file: Path) -> None:
    file.write_text("[tls]\nx = 1\n[trust]\ndepth = true\n")
    faults = [
        {
            "file": str(file),
            "line": 2,
            "key": "tls.x",
            "text": (
                "unknown key. Allowed in [tls]: "
                "version_min, version_max, ciphers_tls12, ciphers_tls13."
            ),
        },
        {
            "file": str(file),
            "line": 4,
            "key": "trust.depth",
            "text": "wanted an integer, found the boolean true; allowed: 0 to 100.",
        },
    ]
    result = run("config", "check", "--json")
    assert result.exit_code == Exit.FAILED
    assert json.loads(result.output) == {"file": str(file), "found": True, "faults": faults}
    result = run("config", "check")
    assert result.exit_code == Exit.FAILED
    assert result.output.splitlines() == [
        "ssad: The policy can't be used.",
        *(f"{file}:{fault['line']}: {fault['key']}: {fault['text']}" for fault in faults),
    ]


def test_what_show_prints_is_a_policy_file(file: Path, pki: Pki) -> None:
    shown = run("config", "show").output
    assert f'store = "{pki.root}"' in shown
    assert '# Default: "/etc/ssl/certs/ca-certificates.crt"' in shown
    file.write_text(shown)
    assert run("config", "show").output == shown
    assert run("config", "check").exit_code == Exit.DONE
    told = json.loads(run("config", "show", "--json").output)
    assert told["trust"] == {"store": str(pki.root), "programs_may_choose": True, "depth": 10}
    assert told["tls"]["version_min"] == "1.2"
    file.write_text("[tls")
    assert run("config", "show").exit_code == Exit.FAILED


def test_start_takes_the_file_and_options_win(
    file: Path, pki: Pki, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = starts(monkeypatch)
    with file.open("a") as more:
        more.write('[transport]\nmode = "ktls"\n[deadlines]\nhandshake = 5\nclose = 6\n')
    assert run("start").exit_code == Exit.DONE
    arguments = ["--transport", "channel", "--handshake-timeout", "7", "--trust-store", "x.pem"]
    assert run("start", *arguments).exit_code == Exit.DONE
    assert [options.policy for options in found] == [
        Policy(trust_store=pki.root, transport="ktls", handshake_timeout=5, close_timeout=6),
        Policy(
            trust_store=Path("x.pem").absolute(),
            transport="channel",
            handshake_timeout=7,
            close_timeout=6,
        ),
    ]
    for options in found:
        assert options.source is not None
        assert options.source.load(usable=False) == options.policy
    file.write_text("[tls]\nx = 1\n")
    result = run("start")
    assert result.exit_code == Exit.FAILED
    assert f"{file}:2: tls.x: unknown key." in result.output
    assert len(found) == 2


MAIN = """
import os, signal, sys, time
from ssad.reloads import Ledger, Reloads

ledger = Ledger(Reloads("/etc/ssad/ssad.toml", "2026-01-01T00:00:00+00:00"))
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGHUP, signal.SIGUSR1])
faults = tuple(sys.argv[2:])
if sys.argv[1] == "restarts":
    ledger.begin(restarting=True)
print(flush=True)
while sys.argv[1] not in ("frozen", "restarts"):
    number = signal.sigwait([signal.SIGHUP, signal.SIGUSR1])
    if sys.argv[1] == "dies":
        sys.exit()
    ledger.begin(restarting=number == signal.SIGUSR1)
    time.sleep(0.1)
    ledger.end(faults)
signal.pause()
"""


@contextmanager
def main_process(kernel: Kernel, how: str, *faults: str) -> Iterator[subprocess.Popen[bytes]]:
    """Have a main process that takes SIGHUP."""
    command = [sys.executable, "-c", MAIN, how, *faults]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        kernel.dumps[Command.WORKER_GET] = [worker(1, daemon=child.pid)]
        try:
            yield child
        finally:
            child.kill()


def test_reload_without_a_daemon_is_not_running(kernel: Kernel) -> None:
    assert kernel.dumps == {}
    result = run("reload")
    assert result.exit_code == Exit.NOT_RUNNING
    assert result.output == "ssad: ssad is not running; start it with 'ssad start'.\n"


def test_reload_says_what_came_of_it(kernel: Kernel) -> None:
    with main_process(kernel, "works") as main:
        result = run("reload")
        assert (result.exit_code, result.output) == (Exit.DONE, "")
        told = json.loads(run("reload", "--json").output)
        assert told == {"pid": main.pid, "faults": []}
    with main_process(kernel, "works", "f:1: one", "f:2: two") as main:
        result = run("reload")
        assert result.exit_code == Exit.FAILED
        assert result.output == "ssad: The policy stays as it was.\nf:1: one\nf:2: two\n"
        result = run("reload", "--json")
        assert result.exit_code == Exit.FAILED
        assert json.loads(result.output) == {"pid": main.pid, "faults": ["f:1: one", "f:2: two"]}


def test_restart_says_what_came_of_it(kernel: Kernel) -> None:
    assert run("restart").exit_code == Exit.NOT_RUNNING
    with main_process(kernel, "works") as main:
        result = run("restart")
        assert (result.exit_code, result.output) == (Exit.DONE, "")
        assert json.loads(run("restart", "--json").output) == {"pid": main.pid, "faults": []}
    with main_process(kernel, "works", "f:1: one") as main:
        result = run("restart")
        assert result.exit_code == Exit.FAILED
        assert result.output == "ssad: The old workers go on.\nf:1: one\n"
        assert run("restart", "--json").exit_code == Exit.FAILED


def test_a_restart_during_another_one_is_refused(kernel: Kernel) -> None:
    with main_process(kernel, "restarts") as main:
        result = run("restart")
        assert result.exit_code == Exit.RUNNING_ALREADY
        assert result.output == f"ssad: A restart of ssad (pid {main.pid}) is under way already.\n"


def test_each_of_several_reloads_at_once_is_told(kernel: Kernel) -> None:
    with main_process(kernel, "works") as main:
        found: list[list[str]] = []

        def ask() -> None:
            with os.fdopen(os.pidfd_open(main.pid)) as process:
                found.append(cli._reload(main.pid, process.fileno()))

        threads = [threading.Thread(target=ask) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        told = reloads.read(main.pid)
        assert told is not None
        assert 1 <= told.finished <= 4
    assert found == [[]] * 4


def test_a_reload_that_was_under_way_is_not_taken_for_ones_own(kernel: Kernel) -> None:
    with main_process(kernel, "works") as main:
        main.send_signal(signal.SIGHUP)
        while (told := reloads.read(main.pid)) is None or told.started == 0:
            pass
        assert run("reload").exit_code == Exit.DONE
        told = reloads.read(main.pid)
        assert told is not None
        assert told.finished == 2


def test_a_main_process_that_ends_or_says_nothing_is_told(
    kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    with main_process(kernel, "dies"):
        assert run("reload").exit_code == Exit.NOT_RUNNING
    monkeypatch.setattr(cli, "_RELOAD_TIMEOUT", 0.2)
    with main_process(kernel, "frozen"):
        result = run("reload")
        assert result.exit_code == Exit.FAILED
        assert "did not say within 0.2 s" in result.output


def test_who_may_not_look_into_the_main_process_may_not_reload(
    kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: int) -> None:
        raise PermissionError

    monkeypatch.setattr(reloads, "read", refuse)
    with main_process(kernel, "works"):
        result: Result = run("reload")
        assert result.exit_code == Exit.NOT_PERMITTED
        assert "reload it as root" in result.output


def test_status_tells_of_the_policy_that_the_daemon_has_read(
    kernel: Kernel, file: Path, pki: Pki
) -> None:
    kernel.handlers[Command.MODULE_GET] = lambda _: {"module_version": "1.2", "sockets": 3}
    with main_process(kernel, "works"):
        told = json.loads(run("status", "--json").output)
        assert told["config"] == "/etc/ssad/ssad.toml"
        assert told["loaded"] == "2026-01-01T00:00:00+00:00"
    kernel.dumps[Command.WORKER_GET] = []
    told = json.loads(run("status", "--json").output)
    assert (told["config"], told["loaded"]) == (str(file), None)
    assert (told["trust_store"], told["certificates"]) == (str(pki.root), 1)
    file.write_text("[tls]\nx = 1\n")
    result = run("status")
    assert f"{file}:2: tls.x: unknown key." in result.output
