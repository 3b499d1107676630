# SPDX-License-Identifier: BSD-3-Clause
"""The part that runs in the guest: `python -m tests.bench.guest DIRECTORY REPEATS CIPHER`.

DIRECTORY has the programs and the PKI. The cells go to cells.json in $RESULTS, one JSON object a
line; the daemon's profiles to connect-*.prof there.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import os
import platform
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from ssad.link import Link
from ssad.wire import Command
from tests.bench.plan import CHANNEL, COLUMNS, KTLS, ROWS, Certificate, Column, Row
from tests.peers import pki

IPPROTO_TLS = 205
PLAIN_PORT = 4000
TLS_PORTS: dict[Certificate, int] = {"ecdsa": 4001, "rsa": 4002}
STUNNEL_PORTS: dict[Certificate, int] = {"ecdsa": 4011, "rsa": 4012}

PROFILED_CONNECTS = 20

# What the daemon is told to use, and what is measured meanwhile: the columns that have no use for
# it run in between.
_ROUNDS = {
    "ktls": [column for column in COLUMNS if column is not CHANNEL],
    "channel": [CHANNEL],
}

_STUNNEL_SERVICE = """
[{certificate}]
client = yes
accept = 127.0.0.1:{accept}
connect = 127.0.0.1:{connect}
verifyChain = yes
CAfile = {roots}
checkHost = {host}
sni = {host}
sessionResume = no
"""


class BenchError(Exception):
    """Its text is a sentence for the person at the terminal."""


class Bench:
    """The processes that the measurements share, and the measurements."""

    def __init__(self, directory: Path, results: Path, cipher: str) -> None:
        self._directory = directory
        self._results = results
        self._cipher = cipher
        self._pki = pki.Pki(directory / "pki")
        self._pids: dict[str, int] = {}

    def run(self, repeats: int) -> None:
        """Measure everything; the columns in turn, so that none has the better moment."""
        _load_modules()
        _stop_the_clocks()
        with (
            (self._results / "cells.json").open("w", buffering=1) as cells,
            self._peer(),
            self._stunnel(),
        ):
            print(json.dumps({"about": _about()}), file=cells)
            for repeat in range(repeats):
                for transport, columns in _ROUNDS.items():
                    with self._daemon(transport):
                        for row in ROWS:
                            for column in columns:
                                print(json.dumps(self._measure(column, row, repeat)), file=cells)
            for row in ROWS:
                if row.load == "connect":
                    self._profile(row)

    def _measure(self, column: Column, row: Row, repeat: int) -> dict[str, object]:
        report = self._load(column, row)
        report |= {"column": column.name, "row": row.name, "repeat": repeat}
        rate = row.count * 10**9 / int(str(report["busy"]))
        print(f"{repeat + 1}  {row.title:24}{column.title:22}{rate:16,.0f} {row.unit}", flush=True)
        return report

    def _load(self, column: Column, row: Row) -> dict[str, object]:
        watched = ["peer"]
        port = PLAIN_PORT if column.via == "tcp" else TLS_PORTS[row.certificate]
        if column.carrier == "stunnel":
            port = STUNNEL_PORTS[row.certificate]
            watched.append("stunnel")
        elif column.carrier != "peer":
            watched.append("daemon")
        command = [
            str(self._directory / "load"),
            *("--via", column.via, "--row", row.load, "--port", str(port)),
            *("--roots", str(self._pki.root), "--host", pki.HOST),
            *("--size", str(row.size), "--count", str(row.count), "--warm", str(row.warm)),
        ]
        for name in watched:
            command += ["--watch", f"{name}={self._pids[name]}"]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
        if done.returncode != 0:
            raise BenchError(f"{column.title}, {row.title}: the load generator failed (see above).")
        report: dict[str, object] = json.loads(done.stdout)
        return report

    def _profile(self, row: Row) -> None:
        """Let the daemon run under the profiler while it makes connections, but not the first."""
        with self._daemon("ktls", profile=self._results / f"{row.name}.prof"):
            self._load(KTLS, dataclasses.replace(row, count=1))
            os.kill(self._pids["daemon"], signal.SIGUSR1)
            self._load(KTLS, dataclasses.replace(row, count=PROFILED_CONNECTS, warm=0))

    @contextlib.contextmanager
    def _peer(self) -> Iterator[None]:
        identities = {"ecdsa": self._pki.ecdsa, "rsa": self._pki.rsa}
        command = [str(self._directory / "peer"), "--cipher", self._cipher]
        command += ["--plain", str(PLAIN_PORT)]
        for certificate, port in TLS_PORTS.items():
            identity = identities[certificate]
            command += ["--tls", f"{port}:{identity.chain}:{identity.key}"]
        with self._process("peer", command) as process:
            if process.stdout is None or process.stdout.readline() != "ready\n":
                raise BenchError("The server did not start (see above).")
            _keep_in_memory(process.pid)
            yield

    @contextlib.contextmanager
    def _stunnel(self) -> Iterator[None]:
        config = Path("/tmp/stunnel.conf")
        services = [
            _STUNNEL_SERVICE.format(
                certificate=certificate,
                accept=accept,
                connect=TLS_PORTS[certificate],
                roots=self._pki.root,
                host=pki.HOST,
            )
            for certificate, accept in STUNNEL_PORTS.items()
        ]
        config.write_text("foreground = yes\ndebug = warning\npid =\n" + "".join(services))
        with self._process("stunnel", ["stunnel4", str(config)]) as process:
            _await(process, lambda: all(map(_listens, STUNNEL_PORTS.values())))
            _keep_in_memory(process.pid)
            yield

    @contextlib.contextmanager
    def _daemon(self, transport: str, profile: Path | None = None) -> Iterator[None]:
        command = [sys.executable, "-m", "ssad"]
        if profile is not None:
            command = [sys.executable, "-m", "tests.bench.profiler", str(profile)]
        command += ["start", "--foreground", "--workers", "1", "--transport", transport]
        command += ["--handshake-timeout", "3600", "--log-level", "warning"]
        command += ["--trust-store", str(self._pki.root)]
        with self._process("daemon", command) as process:
            _await(process, _worker_is_registered)
            # The main process only waits.
            self._pids["daemon"] = _worker_pid()
            _keep_in_memory(self._pids["daemon"])
            yield

    @contextlib.contextmanager
    def _process(self, name: str, command: list[str]) -> Iterator[subprocess.Popen[str]]:
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            self._pids[name] = process.pid
            try:
                yield process
            finally:
                process.terminate()


def _load_modules() -> None:
    # The generic ciphers would do as well, at many times the cost: not what anybody uses.
    _run("modprobe", "-a", "tls", "aesni_intel", "ghash_clmulni_intel")


def _stop_the_clocks() -> None:
    """Let the module wait for long: whenever the guest idles, its clock leaps to the next timer."""
    for name in ("request_timeout_ms", "connect_timeout_ms"):
        Path(f"/sys/module/ssa/parameters/{name}").write_text("86400000")


def _keep_in_memory(pid: int) -> None:
    """Read the files that a process has mapped, so that it need not wait for the host again."""
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        path = Path(line[73:])
        if path.is_file():
            path.read_bytes()


def _about() -> dict[str, str]:
    openssl = subprocess.run(["openssl", "version"], capture_output=True, text=True, check=True)
    return {
        "kernel": platform.release(),
        "its AES-GCM": _gcm_driver(Path("/proc/crypto").read_text()),
        "libssl": openssl.stdout.split()[1],
        "Python": platform.python_version(),
    }


def _gcm_driver(crypto: str) -> str:
    """The driver that kernel TLS gets: of those in /proc/crypto the one of the highest priority."""
    drivers: list[tuple[str, str]] = re.findall(
        r"^name +: gcm\(aes\)\ndriver +: (.+)\n(?:.+\n)*?priority +: (\d+)$", crypto, re.MULTILINE
    )
    return max(drivers, key=lambda found: int(found[1]))[0]


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


def _run(*command: str) -> None:
    subprocess.run(command, check=True)


if __name__ == "__main__":
    Bench(Path(sys.argv[1]), Path(os.environ["RESULTS"]), sys.argv[3]).run(int(sys.argv[2]))
