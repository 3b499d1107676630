# SPDX-License-Identifier: BSD-3-Clause
"""Measures what open connections cost that nobody uses: on TLS sockets, and over plain TCP."""

from __future__ import annotations

import contextlib
import re
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path

from tests.bench.plan import IDLE_ACCEPTS, IDLE_LEVELS, TLS_HTTPD
from tests.bench.processes import BenchError, Processes
from tests.bench.record import Record, report_of
from tests.bench.servers import (
    PLAIN_PORT,
    TLS_SOCKET_PORTS,
    Site,
    plain_httpd,
    tls_httpd,
    visitor,
)

_FILE_SIZE = 64
_WARM = 20
_MEASUREMENTS = 3


@dataclass(frozen=True, slots=True)
class _Kind:
    name: str
    arguments: tuple[str, ...]  # of the client
    processes: tuple[str, ...]


_PLAIN = _Kind("plain", ("--plain", "--port", str(PLAIN_PORT)), ("httpd",))
_KTLS = _Kind("ktls", ("--port", str(TLS_SOCKET_PORTS["ecdsa"])), (TLS_HTTPD, "daemon"))


class Idle:
    """The measurements of the last table."""

    def __init__(self, processes: Processes, cipher: str, site: Site) -> None:
        self._processes = processes
        self._cipher = cipher
        self._site = site

    def run(self, record: Record) -> None:
        """Measure, once."""
        with plain_httpd(self._processes, self._site):
            self._measure(_PLAIN, record)
        with self._processes.daemon("ktls"), tls_httpd(self._processes, self._site):
            self._measure(_KTLS, record)

    def _measure(self, kind: _Kind, record: Record) -> None:
        with self._client(kind) as client:
            for held in (0, *IDLE_LEVELS):
                client.hold(held)
                memory = _memory(client.pid, self._processes, kind.processes)
                record.idle(kind.name, {"held": held, **client.measure(), **memory})

    @contextlib.contextmanager
    def _client(self, kind: _Kind) -> Iterator[_Client]:
        command = [
            *visitor(self._processes, self._site.file(_FILE_SIZE), self._cipher),
            *("--row", "idle", "--count", str(IDLE_ACCEPTS), "--warm", str(_WARM)),
            *kind.arguments,
            *self._processes.watch(kind.processes),
        ]
        pipe = subprocess.PIPE
        with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, bufsize=1) as process:
            yield _Client(process)


class _Client:
    """`visitor --row idle`."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.pid = process.pid

    def hold(self, count: int) -> None:
        """Have so many connections open."""
        if self._ask(f"hold {count}") != "held\n":
            raise BenchError(f"The client could not open {count} connections (see above).")

    def measure(self) -> dict[str, int]:
        """Have it make IDLE_ACCEPTS connections more and close them, a few times; return the
        median, for a kernel thread may wake up meanwhile."""
        lines = [self._ask("measure") for _ in range(_MEASUREMENTS)]
        if not all(lines):
            raise BenchError("The client of idle connections failed (see above).")
        return sorted(map(report_of, lines), key=itemgetter("busy"))[_MEASUREMENTS // 2]

    def _ask(self, what: str) -> str:
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        stdin.write(f"{what}\n")
        return stdout.readline()


def _memory(client: int, processes: Processes, names: Sequence[str]) -> dict[str, int]:
    """Return what is used, in bytes: by the kernel for itself, by all, and by single processes."""
    whole = _sizes(Path("/proc/meminfo"))
    kernel = ("SUnreclaim", "VmallocUsed", "Percpu")
    sizes = {f"{name}_bytes": whole[name] for name in (*kernel, "MemAvailable")}
    for name, pid in (*((name, processes.pids[name]) for name in names), ("client", client)):
        rollup = _sizes(Path(f"/proc/{pid}/smaps_rollup"))
        sizes |= {f"{name}_{field}_bytes": rollup[field] for field in ("Rss", "Pss")}
    return sizes


def _sizes(path: Path) -> dict[str, int]:
    found = re.findall(r"^(\w+): +(\d+) kB$", path.read_text(), re.MULTILINE)
    return {name: int(kilobytes) * 1024 for name, kilobytes in found}
