# SPDX-License-Identifier: BSD-3-Clause
"""Measures clients: `load` against `peer`, by all the ways there are."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.bench.plan import (
    CLIENT_COLUMNS,
    KTLS,
    PROFILED_HANDSHAKES,
    PROFILED_LOADS,
    TRANSPORTS,
    Certificate,
    ClientColumn,
    Row,
)
from tests.bench.processes import BenchError, Processes
from tests.bench.record import Record, report_of
from tests.peers import pki

_PLAIN_PORT = 4000
_TLS_PORTS: dict[Certificate, int] = {"ecdsa": 4001, "rsa": 4002}
_STUNNEL_PORTS: dict[Certificate, int] = {"ecdsa": 4011, "rsa": 4012}


class Clients:
    """The measurements of the first part."""

    def __init__(self, processes: Processes, rows: Sequence[Row], cipher: str) -> None:
        self._processes = processes
        self._rows = rows
        self._cipher = cipher

    def run(self, repeats: int, record: Record) -> None:
        """Measure; the columns in turn, so that none has the better moment."""
        with self._peer(), self._stunnel():
            for repeat in range(repeats):
                for transport in TRANSPORTS:
                    with self._processes.daemon(transport):
                        for row in self._rows:
                            for column in CLIENT_COLUMNS:
                                # Those that have no use for the daemon run beside its first.
                                if (column.transport or TRANSPORTS[0]) == transport:
                                    record.cell(column, row, repeat, self._load(column, row))
            for row in self._rows:
                if row.load in PROFILED_LOADS:
                    self._profile(row, record.profile(row))

    def _load(self, column: ClientColumn, row: Row) -> dict[str, int]:
        watched = ["peer"]
        port = _PLAIN_PORT if column.via == "tcp" else _TLS_PORTS[row.certificate]
        if column.carrier == "stunnel":
            port = _STUNNEL_PORTS[row.certificate]
            watched.append("stunnel")
        elif column.carrier != "peer":
            watched.append("daemon")
        command = [
            str(self._processes.directory / "load"),
            *("--via", column.via, "--row", row.load, "--port", str(port)),
            *("--roots", str(self._processes.pki.root), "--host", pki.HOST),
            *("--size", str(row.size), "--count", str(row.count), "--warm", str(row.warm)),
            *self._processes.watch(watched),
        ]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
        if done.returncode != 0:
            raise BenchError(f"{column.title}, {row.title}: the load generator failed (see above).")
        return report_of(done.stdout)

    def _profile(self, row: Row, path: Path) -> None:
        """Let the daemon run under the profiler while it makes connections, but not the first."""
        with self._processes.daemon("ktls", profile=path):
            self._load(KTLS, dataclasses.replace(row, count=1))
            os.kill(self._processes.pids["daemon"], signal.SIGUSR1)
            self._load(KTLS, dataclasses.replace(row, count=PROFILED_HANDSHAKES, warm=0))

    @contextlib.contextmanager
    def _peer(self) -> Iterator[None]:
        arguments = ["--cipher", self._cipher, "--plain", str(_PLAIN_PORT)]
        for certificate, identity in self._processes.identities().items():
            port = _TLS_PORTS[certificate]
            arguments += ["--tls", f"{port}:{identity.chain}:{identity.key}"]
        with self._processes.program("peer", arguments):
            yield

    @contextlib.contextmanager
    def _stunnel(self) -> Iterator[None]:
        services = {
            accept: [
                "client = yes",
                f"connect = 127.0.0.1:{_TLS_PORTS[certificate]}",
                "verifyChain = yes",
                f"CAfile = {self._processes.pki.root}",
                f"checkHost = {pki.HOST}",
                f"sni = {pki.HOST}",
                "sessionResume = no",
            ]
            for certificate, accept in _STUNNEL_PORTS.items()
        }
        with self._processes.stunnel(services):
            yield
