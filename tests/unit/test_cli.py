# SPDX-License-Identifier: BSD-3-Clause
"""The commands: what they print, and how they end. The module is played over a socket pair."""

from __future__ import annotations

import json
import os
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from ssad import cli, daemon, link, module
from ssad.cli import main
from ssad.exits import Exit
from ssad.wire import Attributes, Command, SocketState, Transport
from tests.peers.pki import Pki
from tests.unit.kernel import Kernel


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Iterator[Kernel]:
    with Kernel() as kernel:
        kernel.handlers[Command.MODULE_GET] = lambda _: {"module_version": "1.2", "sockets": 3}
        monkeypatch.setattr(link, "_open", kernel.socket)
        yield kernel


@pytest.fixture
def no_module(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel.has_family = False
    monkeypatch.setattr(module, "MODULE", "no-such-module")


@pytest.fixture(autouse=True)
def ktls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The kernel's list of what can be put onto TCP; with TLS to begin with."""
    found = tmp_path / "tcp_available_ulp"
    found.write_text("espintcp mptcp tls\n")
    monkeypatch.setattr(module, "_ULPS", found)
    return found


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments)


def worker(pid: int, *, daemon: int = 77, pending: int = 0, sockets: int = 0) -> Attributes:
    return {"pid": pid, "pending": pending, "daemon": daemon, "sockets": sockets}


def sockaddr(text: str, port: int) -> bytes:
    if ":" in text:
        packed = socket.inet_pton(socket.AF_INET6, text)
        return struct.pack("=H", socket.AF_INET6) + struct.pack("!HI16sI", port, 0, packed, 0)
    packed = socket.inet_pton(socket.AF_INET, text)
    return struct.pack("=H", socket.AF_INET) + struct.pack("!H4s8x", port, packed)


@pytest.mark.usefixtures("no_module")
@pytest.mark.parametrize(
    "command", [pytest.param("start", marks=pytest.mark.root), "stop", "status", "ls", "monitor"]
)
def test_without_the_module_every_command_says_how_to_get_it(command: str) -> None:
    result = run(command)
    assert result.exit_code == Exit.NO_MODULE
    assert "modprobe ssa" in result.output
    assert "make -C kmod" in result.output


def test_status_is_fine_when_all_is_there(kernel: Kernel, pki: Pki) -> None:
    kernel.dumps[Command.WORKER_GET] = [worker(79), worker(78, pending=2, sockets=1)]
    result = run("status", "--trust-store", str(pki.root))
    assert result.exit_code == Exit.DONE
    assert result.output.splitlines() == [
        "module       version 1.2",
        (
            "daemon       pid 77, workers: 78 (pending requests: 2, sockets: 1), "
            "79 (pending requests: 0, sockets: 0)"
        ),
        "sockets      3",
        "kernel TLS   available",
        "policy       /etc/ssad/ssad.toml",
        f"trust store  {pki.root}, certificates: 1",
    ]


def test_status_names_what_is_missing_and_the_worst_decides(kernel: Kernel, ktls: Path) -> None:
    ktls.write_text("mptcp\n")
    result = run("status", "--trust-store", "/no/such/file", "--json")
    assert result.exit_code == Exit.NOT_RUNNING
    report = json.loads(result.output)
    assert report["module_version"] == "1.2"
    assert report["daemon"] is None
    assert report["workers"] == []
    assert report["ktls"] is False
    daemon, ktls_missing, trust_store = report["problems"]
    assert "ssad start" in daemon
    assert "modprobe tls" in ktls_missing
    assert "/no/such/file can't be used: No such file or directory" in trust_store

    kernel.dumps[Command.WORKER_GET] = [worker(78, sockets=5)]
    result = run("status", "--json")
    assert result.exit_code == Exit.DEGRADED
    report = json.loads(result.output)
    assert report["daemon"] == 77
    (found,) = report["workers"]
    assert found == {"pid": 78, "pending": 0, "sockets": 5, "leaving": False}


def test_status_says_which_workers_leave(kernel: Kernel) -> None:
    kernel.dumps[Command.WORKER_GET] = [{**worker(78), "leaving": 1}, worker(79)]
    said = run("status").output.splitlines()[1]
    assert "78 (leaving, pending requests: 0, sockets: 0), 79 (pending" in said
    report = json.loads(run("status", "--json").output)
    assert [found["leaving"] for found in report["workers"]] == [True, False]


def test_a_file_without_certificates_is_no_trust_store(kernel: Kernel, tmp_path: Path) -> None:
    kernel.dumps[Command.WORKER_GET] = [worker(78)]
    empty = tmp_path / "empty.pem"
    empty.touch()
    result = run("status", "--trust-store", str(empty))
    assert result.exit_code == Exit.DEGRADED
    assert "it holds no PEM certificate" in result.output


SOCKETS: list[Attributes] = [
    {
        "socket": 12,
        "state": SocketState.CONNECTED,
        "transport": Transport.KTLS,
        "local_address": sockaddr("2001:db8::1", 40000),
        "remote_address": sockaddr("2001:db8::2", 443),
        "host_name": "example.com",
        "version": 0x0304,
        "cipher": "TLS_AES_128_GCM_SHA256",
        "bytes_sent": 18,
        "bytes_received": 123456,
        "pid": 4711,
        "comm": "curl",
    },
    {
        "socket": 3,
        "state": SocketState.NEW,
        "transport": Transport.NONE,
        "local_address": sockaddr("::", 0),
        "pid": 1,
        "comm": "evil\x1b[2J",
    },
    {
        "socket": 7,
        "state": SocketState.CONNECTING,
        "local_address": sockaddr("192.0.2.1", 5),
        "remote_address": sockaddr("::ffff:192.0.2.9", 443),
    },
]

HEADING = "State Transport Local Peer Host Version Cipher Sent Received Pid Program"
CELLS = [
    HEADING,
    "new - - - - - - 0 0 1 evil?[2J",
    "connecting - 192.0.2.1:5 [::ffff:192.0.2.9]:443 - - - 0 0 - -",
    (
        "connected ktls [2001:db8::1]:40000 [2001:db8::2]:443 example.com TLS 1.3 "
        "TLS_AES_128_GCM_SHA256 18 123456 4711 curl"
    ),
]


def test_ls_shows_a_line_for_each_socket(kernel: Kernel) -> None:
    kernel.dumps[Command.SOCKET_GET] = SOCKETS
    result = run("ls")
    assert result.exit_code == Exit.DONE
    assert [" ".join(line.split()) for line in result.output.splitlines()] == CELLS
    heading, *rows = result.output.splitlines()
    assert all(row.index(":443") < heading.index("Host") for row in rows[1:])
    assert rows[2].index("123456") + len("123456") == heading.index("Received") + len("Received")


def test_ls_without_sockets_shows_the_heading(kernel: Kernel) -> None:
    assert kernel.dumps == {}
    assert " ".join(run("ls").output.split()) == HEADING


def test_ls_json_is_a_list_of_objects(kernel: Kernel) -> None:
    kernel.dumps[Command.SOCKET_GET] = SOCKETS
    new, _, connected = json.loads(run("ls", "--json").output)
    assert new == {
        "id": 3,
        "state": "new",
        "transport": "none",
        "local": "[::]:0",
        "pid": 1,
        "program": "evil\x1b[2J",
    }
    assert connected["peer"] == "[2001:db8::2]:443"
    assert connected["version"] == "TLS 1.3"
    assert connected["bytes_received"] == 123456


def test_stop_without_a_daemon_is_not_running(kernel: Kernel) -> None:
    assert kernel.dumps == {}
    result = run("stop")
    assert result.exit_code == Exit.NOT_RUNNING
    assert result.output == "ssad: ssad is not running; start it with 'ssad start'.\n"


def process(handle_sigterm: str) -> subprocess.Popen[bytes]:
    """A process that is ready once it has written a line."""
    program = (
        f"import signal; signal.signal(signal.SIGTERM, {handle_sigterm}); print(); signal.pause()"
    )
    child = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
    assert child.stdout is not None
    child.stdout.readline()
    child.stdout.close()
    return child


def test_stop_ends_the_main_process_and_waits_for_it(kernel: Kernel) -> None:
    with process("signal.SIG_DFL") as child:
        kernel.dumps[Command.WORKER_GET] = [worker(1, daemon=child.pid)]
        result = run("stop", "--json")
        assert result.exit_code == Exit.DONE
        assert json.loads(result.output) == {"pid": child.pid}
        assert child.wait() == -signal.SIGTERM


def test_stop_gives_up_on_a_daemon_that_does_not_end(
    kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli, "_STOP_TIMEOUT", 0.1)
    with process("signal.SIG_IGN") as child:
        kernel.dumps[Command.WORKER_GET] = [worker(1, daemon=child.pid)]
        result = run("stop")
        assert result.exit_code == Exit.FAILED
        assert f"'kill -KILL {child.pid}'" in result.output
        child.kill()


def starts(monkeypatch: pytest.MonkeyPatch) -> list[daemon.Options]:
    """Let no daemon start; return a list that gets what each would be started with."""
    found: list[daemon.Options] = []

    def start(options: daemon.Options) -> int:
        found.append(options)
        return 9

    monkeypatch.setattr(daemon, "start_in_background", start)
    return found


@pytest.mark.parametrize("workers", [3, None])
def test_start_has_a_worker_for_each_core_unless_told_otherwise(
    workers: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = starts(monkeypatch)
    arguments = [] if workers is None else ["--workers", str(workers)]
    result = run("start", "--json", *arguments)
    assert json.loads(result.output) == {"pid": 9}
    assert [options.workers for options in found] == [workers or len(os.sched_getaffinity(0))]


@pytest.mark.parametrize(
    "arguments",
    [["nonsense"], ["ls", "--nonsense"], ["start", "--user"], ["start", "--workers", "0"]],
)
def test_wrong_usage_has_its_own_exit_code(arguments: list[str]) -> None:
    assert run(*arguments).exit_code == Exit.USAGE


def test_help_lists_the_exit_codes() -> None:
    output = run("--help").output
    for code in Exit:
        assert f"\n    {code:d}  " in output
