# SPDX-License-Identifier: BSD-3-Clause
"""The processes that are measured: how each is started, and when it is ready."""

from __future__ import annotations

import contextlib
import errno
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from ssad.link import Link
from ssad.wire import IPPROTO_TLS, Command
from tests.bench.plan import Certificate, Transport
from tests.peers.pki import Identity, Pki

_STUNNEL = """\
foreground = yes
debug = warning
pid =
"""


class BenchError(Exception):
    """Its text is a sentence for the person at the terminal."""


class Processes:
    """Starts processes and knows their ids by their names. None waits for the host while it works:
    their files are read before."""

    def __init__(self, directory: Path, pki: Pki) -> None:
        """`directory` has the programs."""
        self.directory = directory
        self.pki = pki
        self.pids: dict[str, int] = {}

    def identities(self) -> dict[Certificate, Identity]:
        """Return the two servers that are measured."""
        return {"ecdsa": self.pki.ecdsa, "rsa": self.pki.rsa}

    @contextlib.contextmanager
    def program(self, name: str, arguments: Sequence[str], command: str = "") -> Iterator[None]:
        """Run one of our own, which says when it is ready. `name` is the process's, and the
        program's unless there is another `command`."""
        words = [*(command or str(self.directory / name)).split(), *arguments]
        with self._process(name, words) as process:
            if process.stdout is None or process.stdout.readline() != "ready\n":
                raise BenchError(f"{name} did not start (see above).")
            _keep_in_memory(process.pid)
            yield

    @contextlib.contextmanager
    def listening(self, name: str, command: list[str], ports: Sequence[int]) -> Iterator[None]:
        """Run a server that others wrote, from the moment when it listens on `ports`."""
        with self._process(name, command) as process:
            _await(process, lambda: all(map(_listens, ports)))
            _keep_in_memory(process.pid)
            yield

    @contextlib.contextmanager
    def stunnel(self, services: Mapping[int, Sequence[str]]) -> Iterator[None]:
        """Run stunnel with a service on each port, given the lines of its configuration."""
        config = Path("/tmp/stunnel.conf")
        lines = [_STUNNEL]
        for port, service in services.items():
            # The guest's clock leaps whenever it is idle.
            timeouts = [f"TIMEOUT{name} = 86400" for name in ("busy", "close", "connect", "idle")]
            lines += [f"[{port}]", f"accept = 127.0.0.1:{port}", *timeouts, *service]
        config.write_text("\n".join([*lines, ""]))
        with self.listening("stunnel", ["stunnel4", str(config)], list(services)):
            yield

    @contextlib.contextmanager
    def daemon(self, transport: Transport, profile: Path | None = None) -> Iterator[None]:
        """Run the daemon with one worker, if wanted under the profiler."""
        command = [sys.executable, "-m", "ssad"]
        if profile is not None:
            command = [sys.executable, "-m", "tests.bench.profiler", str(profile)]
        command += ["start", "--foreground", "--workers", "1", "--transport", transport]
        command += ["--handshake-timeout", "3600", "--log-level", "warning"]
        command += ["--trust-store", str(self.pki.root)]
        with self._process("daemon", command) as process:
            _await(process, _worker_is_registered)
            # The main process only waits.
            self.pids["daemon"] = _worker_pid()
            _keep_in_memory(self.pids["daemon"])
            yield

    @contextlib.contextmanager
    def _process(self, name: str, command: list[str]) -> Iterator[subprocess.Popen[str]]:
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            self.pids[name] = process.pid
            try:
                yield process
            finally:
                process.terminate()

    def watch(self, names: Sequence[str]) -> list[str]:
        """Return the arguments that have a load generator watch processes."""
        return [word for name in names for word in ("--watch", f"{name}={self.pids[name]}")]


def _keep_in_memory(pid: int) -> None:
    """Read the files that a process has mapped, so that it need not wait for the host again."""
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        path = Path(line[73:])
        if path.is_file():
            path.read_bytes()


def _listens(port: int) -> bool:
    # Asked of the kernel: a connection of our own would be one that the proxy has to refuse.
    listening = re.compile(rf"^ *\d+: \w+:{port:04X} \w+:0000 0A ", re.MULTILINE)
    return listening.search(Path("/proc/net/tcp").read_text()) is not None


def _worker_is_registered() -> bool:
    try:
        socket.socket(socket.AF_INET, socket.SOCK_STREAM, IPPROTO_TLS).close()
    except OSError as error:
        if error.errno != errno.ECANCELED:
            raise
        return False
    return True


def _worker_pid() -> int:
    with Link() as link:
        (worker,) = link.dump(Command.WORKER_GET)
    return worker["pid"]


def _await(process: subprocess.Popen[str], condition: Callable[[], bool]) -> None:
    """Wait for what a process does when it is ready. The guest's clock is no limit: it leaps."""
    while not condition():
        if process.poll() is not None:
            raise BenchError(f"{process.args!r} ended with status {process.returncode}.")
        time.sleep(0.1)
