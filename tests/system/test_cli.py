# SPDX-License-Identifier: BSD-3-Clause
"""The command line, as its users see it."""

from __future__ import annotations

import json
import os
import re
import select
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import pytest

from ssad import daemon as _daemon  # noqa: F401 -- imported while it can be read
from ssad import watch as _watch  # noqa: F401
from ssad.cli import main
from ssad.exits import Exit
from ssad.privileges import CAP_NET_ADMIN
from tests.peers import hostile
from tests.peers.hostile import serving
from tests.peers.pki import HOST
from tests.system.daemon import workers
from tests.system.program import (
    NOBODY,
    connect,
    echo,
    get_id,
    in_child,
    tls_socket,
)

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator

    from tests.peers.pki import Pki
    from tests.peers.servers import Server
    from tests.system.daemon import Daemon

SSAD = [sys.executable, "-m", "ssad"]
ROOT = Path(__file__).parents[2]


def ssad(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command."""
    return subprocess.run(
        [*SSAD, *arguments], check=False, capture_output=True, text=True, cwd=ROOT
    )


def ssad_of_nobody(output: Path, *arguments: str) -> tuple[int, str]:
    """Run a command as an ordinary user; return its exit code and what it said.

    It is forked, not started: not every user need be able to read this Python and its modules.
    """

    def run() -> None:
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)
        # Those that were there are pytest's.
        sys.stdout = sys.stderr = os.fdopen(1, "w", buffering=1, closefd=False)
        main(list(arguments), prog_name="ssad")

    with output.open("wb") as stream:
        status = in_child(run, user=NOBODY)
    return status, output.read_text()


def ssad_json(*arguments: str) -> Any:
    """Run a command that prints JSON."""
    run = ssad(*arguments, "--json")
    return json.loads(run.stdout)


class TestStatus:
    """ssad status: works whatever is missing, and says what."""

    def test_all_is_well(self, daemon: Daemon, pki: Pki) -> None:
        run = ssad("status", "--trust-store", str(pki.root))
        assert run.returncode == Exit.DONE, run.stdout
        assert f"pid {daemon.pid}" in run.stdout
        found = ssad_json("status", "--trust-store", str(pki.root))
        assert found["daemon"] == daemon.pid
        (worker,) = found["workers"]
        assert worker == {
            "pid": daemon.worker_pid,
            "pending": 0,
            "sockets": 0,
            "leaving": False,
        }
        assert found["sockets"] == 0
        assert found["ktls"] is True
        assert found["problems"] == []

    @pytest.mark.usefixtures("no_daemon")
    def test_without_a_daemon(self, pki: Pki) -> None:
        run = ssad("status", "--trust-store", str(pki.root))
        assert run.returncode == Exit.NOT_RUNNING
        assert "ssad start" in run.stdout

    @pytest.mark.usefixtures("daemon")
    def test_without_a_trust_store(self, tmp_path: Path) -> None:
        run = ssad("status", "--trust-store", str(tmp_path / "none"))
        assert run.returncode == Exit.DEGRADED
        assert str(tmp_path / "none") in run.stdout

    @pytest.fixture
    def no_module(self, any_daemon: Daemon) -> Iterator[None]:
        """Have no module, and none that could be loaded."""
        any_daemon.stop()
        subprocess.run(["rmmod", "ssa"], check=True)
        # An install command would not do: modprobe passes over those of modules with a softdep.
        file = subprocess.run(["modinfo", "-n", "ssa"], check=True, capture_output=True).stdout
        subprocess.run(["mount", "--bind", "/dev/null", file.strip()], check=True)
        yield
        subprocess.run(["umount", file.strip()], check=True)
        subprocess.run(["modprobe", "ssa"], check=True)

    @pytest.mark.usefixtures("no_module")
    def test_without_a_module(self, pki: Pki) -> None:
        run = ssad("status", "--trust-store", str(pki.root))
        assert run.returncode == Exit.NO_MODULE
        assert "modprobe ssa" in run.stdout
        for command in (["ls"], ["monitor"], ["stop"], ["start", "--foreground"]):
            run = ssad(*command)
            assert run.returncode == Exit.NO_MODULE
            assert "modprobe ssa" in run.stderr


class TestLs:
    """ssad ls: every TLS socket."""

    def test_a_connection_is_shown(self, any_daemon: Daemon, echo_server: Server) -> None:
        any_daemon.ensure("ktls")
        with connect(echo_server) as sock:
            echo(sock, b"twelve bytes")
            local = f"127.0.0.1:{sock.getsockname()[1]}"
            peer = f"127.0.0.1:{echo_server.port}"
            lines = ssad("ls").stdout.splitlines()
            assert len(lines) == 2
            assert lines[0].split()[:2] == ["State", "Transport"]
            words = lines[1].split()
            for word in ("connected", "ktls", local, peer, HOST, str(os.getpid()), "12"):
                assert word in words, f"{word} should be in: {lines[1]}"
            (found,) = ssad_json("ls")
            assert found["id"] == get_id(sock)
            assert found["state"] == "connected"
            assert (found["local"], found["peer"]) == (local, peer)
            assert found["host"] == HOST
            assert found["pid"] == os.getpid()
            assert found["transport"] == "ktls"
            assert found["version"] == "TLS 1.3"
            assert found["cipher"].startswith("TLS_")
            assert (found["bytes_sent"], found["bytes_received"]) == (12, 12)

    @pytest.mark.usefixtures("daemon")
    def test_nothing_is_shown_without_sockets(self) -> None:
        assert len(ssad("ls").stdout.splitlines()) == 1
        assert ssad_json("ls") == []

    def test_it_needs_no_daemon(self, any_daemon: Daemon, echo_server: Server) -> None:
        any_daemon.ensure("ktls")
        with connect(echo_server):
            any_daemon.stop()
            (found,) = ssad_json("ls")
            assert found["state"] == "connected"


class Monitor:
    """ssad monitor, in a pipe."""

    def __init__(self, *options: str) -> None:
        self._process = subprocess.Popen(
            [*SSAD, "monitor", *options],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        assert self._process.stdout is not None
        self._output = self._process.stdout
        self._read = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.send_signal(signal.SIGINT)
        self._output.close()
        self._process.wait(60)

    def await_start(self) -> None:
        """Wait until it shows what happens: it makes no sign, so something has to happen."""
        while not select.select([self._output], [], [], 0.1)[0]:
            tls_socket(host=None).close()
        # Until the end of the last of them.
        with tls_socket(host=None) as last:
            number = get_id(last)
        its = re.compile(rf'socket {number}\b|"id": {number}\b')  # a line of text, or JSON
        while "closed" not in (line := self.line()) or not its.search(line):
            pass

    def line(self) -> str:
        """Wait for a line."""
        while b"\n" not in self._read:
            assert select.select([self._output], [], [], 60)[0], "no line came"
            piece = os.read(self._output.fileno(), 1 << 16)
            assert piece, "the monitor ended"
            self._read += piece
        line, _, self._read = self._read.partition(b"\n")
        return line.decode()


class TestMonitor:
    """ssad monitor: what happens, as it happens."""

    def test_one_line_an_event(self, any_daemon: Daemon, echo_server: Server) -> None:
        any_daemon.ensure("ktls")
        with Monitor() as monitor:
            monitor.await_start()
            with connect(echo_server) as sock:
                echo(sock, b"twelve bytes")
            lines = [monitor.line() for _ in range(3)]
        peer = f"127.0.0.1:{echo_server.port} ({HOST})"
        assert "opened" in lines[0]
        assert "connected" in lines[1]
        assert peer in lines[1]
        assert "ktls" in lines[1]
        assert "closed" in lines[2]
        assert "12 bytes sent, 12 received" in lines[2]

    @pytest.mark.usefixtures("daemon")
    def test_a_refusal_comes_with_its_reason(self) -> None:
        with Monitor("--json") as monitor:
            monitor.await_start()
            with serving(hostile.answer(hostile.GARBAGE)) as peer, tls_socket() as sock:
                self.connect(sock, peer)
            events = [json.loads(monitor.line()) for _ in range(3)]
        assert [event["event"] for event in events] == ["opened", "refused", "closed"]
        assert "other than TLS" in events[1]["text"]
        assert events[1]["peer"] == f"127.0.0.1:{peer.port}"

    @staticmethod
    def connect(sock: socket.socket, peer: hostile.Peer) -> None:
        """Have a connect refused."""
        with pytest.raises(OSError, match="Errno"):
            sock.connect((peer.address, peer.port))

    @pytest.mark.usefixtures("daemon")
    def test_it_is_for_root(self, tmp_path: Path) -> None:
        status, said = ssad_of_nobody(tmp_path / "output", "monitor")
        assert status == Exit.NOT_PERMITTED, said
        assert "root" in said


class TestStartAndStop:
    """ssad start and ssad stop."""

    def test_it_does_not_start_twice(self, daemon: Daemon) -> None:
        worker = daemon.worker_pid
        run = subprocess.run(daemon.command(), check=False, capture_output=True, text=True)
        assert run.returncode == Exit.RUNNING_ALREADY
        assert f"pid {daemon.pid}" in run.stderr
        assert [found["pid"] for found in workers()] == [worker]

    @pytest.mark.usefixtures("no_daemon")
    def test_it_starts_in_the_background_and_stops(self, pki: Pki) -> None:
        run = ssad("start", "--trust-store", str(pki.root), "--json")
        assert run.returncode == Exit.DONE, run.stderr
        pid = json.loads(run.stdout)["pid"]
        assert [worker["daemon"] for worker in workers()] == [pid] * len(os.sched_getaffinity(0))
        with tls_socket():
            pass
        assert ssad("stop").returncode == Exit.DONE
        assert workers() == []
        with suppress(FileNotFoundError, ProcessLookupError):  # it is reaped already
            assert state_of(pid) == "Z"

    @pytest.mark.usefixtures("no_daemon")
    def test_there_is_nothing_to_stop(self) -> None:
        run = ssad("stop")
        assert run.returncode == Exit.NOT_RUNNING
        assert "ssad start" in run.stderr

    @pytest.mark.usefixtures("no_daemon")
    def test_it_does_not_start_without_rights(self, tmp_path: Path, pki: Pki) -> None:
        arguments = ("start", "--foreground", "--trust-store", str(pki.root))
        status, said = ssad_of_nobody(tmp_path / "output", *arguments)
        assert status == Exit.NOT_PERMITTED, said

    @pytest.mark.usefixtures("no_daemon")
    def test_it_does_not_start_without_a_trust_store(self, tmp_path: Path) -> None:
        run = ssad("start", "--foreground", "--trust-store", str(tmp_path / "none"))
        assert run.returncode == Exit.FAILED
        assert str(tmp_path / "none") in run.stderr

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
    def test_a_signal_ends_it_well(self, any_daemon: Daemon, number: signal.Signals) -> None:
        any_daemon.ensure("ktls")
        with any_daemon.ending() as process:
            process.send_signal(number)
            assert process.wait(60) == 0
        assert workers() == []

    def test_it_runs_without_rights(self, daemon: Daemon) -> None:
        # The main process has to give its workers what they need to register.
        for pid, rights in ((daemon.worker_pid, 0), (daemon.pid, 1 << CAP_NET_ADMIN)):
            status = dict(
                line.split(":\t", 1)
                for line in Path(f"/proc/{pid}/status").read_text().splitlines()
            )
            assert "0" not in status["Uid"].split()
            assert int(status["CapEff"], 16) == rights
            assert int(status["CapPrm"], 16) == rights
            assert status["NoNewPrivs"] == "1"
            assert status["Groups"].strip() in ("", str(NOBODY))

    def test_stopping_lets_a_channel_finish(self, any_daemon: Daemon, echo_server: Server) -> None:
        any_daemon.ensure("channel")
        with connect(echo_server) as sock:
            echo(sock, b"before")
        any_daemon.stop()
        assert workers() == []


def state_of(pid: int) -> str:
    """Return the state letter of a process (proc(5))."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def test_every_command_has_help() -> None:
    for command in ("start", "stop", "status", "ls", "monitor"):
        run = ssad(command, "--help")
        assert run.returncode == Exit.DONE
        assert "Usage:" in run.stdout


def test_wrong_usage_is_told() -> None:
    assert ssad("frobnicate").returncode == Exit.USAGE
    assert ssad("start", "--transport", "pigeon").returncode == Exit.USAGE
