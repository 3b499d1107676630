# SPDX-License-Identifier: BSD-3-Clause
"""Measures servers: `visitor` against each of them."""

from __future__ import annotations

import contextlib
import dataclasses
import random
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.bench.plan import (
    PROFILED_HANDSHAKES,
    PROFILED_LOADS,
    SERVER_COLUMNS,
    SERVER_KTLS,
    SERVERS,
    TLS_HTTPD,
    TRANSPORTS,
    Certificate,
    Row,
    ServerColumn,
)
from tests.bench.processes import BenchError, Processes
from tests.bench.record import Record, report_of
from tests.peers import pki

_Ports = dict[Certificate, int]

PLAIN_PORT = 4100  # of httpd: for stunnel, and for comparison
TLS_SOCKET_PORTS: _Ports = {"ecdsa": 4101, "rsa": 4102}
_PORTS: dict[str, _Ports] = {
    "ktls": TLS_SOCKET_PORTS,
    "channel": TLS_SOCKET_PORTS,
    "stunnel": {"ecdsa": 4111, "rsa": 4112},
    "nginx": {"ecdsa": 4121, "rsa": 4122},
    "asyncio": {"ecdsa": 4131, "rsa": 4132},
}

# The guest's clock leaps whenever it is idle, so nothing may have a short limit. The rest is what
# one finds in advice on fast servers; nginx's defaults would cost it more.
_NGINX = """\
daemon off;
master_process off;
pid {directory}/nginx.pid;
error_log stderr;
events {{ worker_connections 1000; }}
http {{
    access_log off;
    server_tokens off;
    keepalive_requests 1000000;
    keepalive_timeout 1d;
    client_header_timeout 1d;
    send_timeout 1d;
    lingering_close off;
    open_file_cache max=10 inactive=1d;
    open_file_cache_valid 1d;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    root {root};
    ssl_protocols TLSv1.3;
    ssl_session_timeout 1d;
    {servers}
}}
"""
_NGINX_SERVER = """\
    server {{
        listen 127.0.0.1:{port} ssl;
        ssl_certificate {identity.chain};
        ssl_certificate_key {identity.key};
    }}
"""


class Site:
    """The files that all servers serve, one for each size. They are in memory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory / "site"
        self.directory.mkdir(parents=True, exist_ok=True)
        for size in {row.size for row in SERVERS.rows}:
            # The same each time. No two pieces are alike, so that a wrong one is noticed.
            self.file(size).write_bytes(random.Random(size).randbytes(size))  # noqa: S311

    def file(self, size: int) -> Path:
        """Return the file of a size."""
        return self.directory / str(size)

    def files(self) -> list[str]:
        """Return all files, sorted."""
        return sorted(map(str, self.directory.iterdir()))


class Servers:
    """The measurements of the second part."""

    def __init__(self, processes: Processes, rows: Sequence[Row], cipher: str, site: Site) -> None:
        self._processes = processes
        self._rows = rows
        self._cipher = cipher
        self._site = site

    def run(self, repeats: int, record: Record) -> None:
        """Measure; the columns in turn, so that none has the better moment."""
        with plain_httpd(self._processes, self._site), self._others():
            for repeat in range(repeats):
                for transport in TRANSPORTS:
                    with (
                        self._processes.daemon(transport),
                        tls_httpd(self._processes, self._site),
                    ):
                        for row in self._rows:
                            for column in SERVER_COLUMNS:
                                # Those that have no use for the daemon run beside its first.
                                if (column.transport or TRANSPORTS[0]) == transport:
                                    record.cell(column, row, repeat, self._load(column, row))
        for row in self._rows:
            if row.load in PROFILED_LOADS:
                self._profile(row, record.profile(row))

    def _load(self, column: ServerColumn, row: Row, *more: str) -> dict[str, int]:
        command = [
            *visitor(self._processes, self._site.file(row.size), self._cipher),
            *("--row", row.load, "--port", str(_PORTS[column.name][row.certificate])),
            *("--count", str(row.count), "--warm", str(row.warm), *more),
            *self._processes.watch(column.processes),
        ]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
        if done.returncode != 0:
            raise BenchError(f"{column.title}, {row.title}: the client failed (see above).")
        return report_of(done.stdout)

    def _profile(self, row: Row, path: Path) -> None:
        """Let the daemon run under the profiler while it accepts, but not the first."""
        row = dataclasses.replace(row, count=PROFILED_HANDSHAKES)
        with (
            self._processes.daemon("ktls", profile=path),
            tls_httpd(self._processes, self._site),
        ):
            self._load(SERVER_KTLS, row, "--signal", str(self._processes.pids["daemon"]))

    @contextlib.contextmanager
    def _others(self) -> Iterator[None]:
        with self._stunnel(), self._nginx(), self._asyncio():
            yield

    @contextlib.contextmanager
    def _stunnel(self) -> Iterator[None]:
        services = {
            port: [
                f"connect = 127.0.0.1:{PLAIN_PORT}",
                f"cert = {self._processes.identities()[certificate].chain}",
                f"key = {self._processes.identities()[certificate].key}",
            ]
            for certificate, port in _PORTS["stunnel"].items()
        }
        with self._processes.stunnel(services):
            yield

    @contextlib.contextmanager
    def _nginx(self) -> Iterator[None]:
        directory = Path("/tmp")
        ports = _PORTS["nginx"]
        servers = [
            _NGINX_SERVER.format(port=port, identity=self._processes.identities()[certificate])
            for certificate, port in ports.items()
        ]
        config = directory / "nginx.conf"
        config.write_text(
            _NGINX.format(
                directory=directory, root=self._site.directory, servers="\n".join(servers)
            )
        )
        command = ["nginx", "-c", str(config)]
        with self._processes.listening("nginx", command, list(ports.values())):
            yield

    @contextlib.contextmanager
    def _asyncio(self) -> Iterator[None]:
        arguments = []
        for certificate, port in _PORTS["asyncio"].items():
            identity = self._processes.identities()[certificate]
            arguments += ["--tls", f"{port}:{identity.chain}:{identity.key}"]
        arguments += self._site.files()
        command = f"{sys.executable} -m tests.bench.asyncio_server"
        with self._processes.program("asyncio", arguments, command):
            yield


@contextlib.contextmanager
def plain_httpd(processes: Processes, site: Site) -> Iterator[None]:
    """Run httpd on plain TCP."""
    with processes.program("httpd", ["--plain", str(PLAIN_PORT), *site.files()]):
        yield


@contextlib.contextmanager
def tls_httpd(processes: Processes, site: Site) -> Iterator[None]:
    """Run httpd on TLS sockets; the daemon must be there."""
    arguments = []
    for certificate, identity in processes.identities().items():
        port = TLS_SOCKET_PORTS[certificate]
        arguments += ["--tls", f"{port}:{identity.chain}:{identity.key}"]
    command = str(processes.directory / "httpd")
    with processes.program(TLS_HTTPD, [*arguments, *site.files()], command):
        yield


def visitor(processes: Processes, file: Path, cipher: str) -> list[str]:
    """Return the client's command line as far as it is always the same."""
    return [
        str(processes.directory / "visitor"),
        *("--roots", str(processes.pki.root), "--host", pki.HOST, "--cipher", cipher),
        *("--file", str(file)),
    ]
