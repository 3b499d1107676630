# SPDX-License-Identifier: BSD-3-Clause
"""The part that runs in the guest: `python -m tests.bench.guest DIRECTORY REPEATS CIPHER ROW...`.

DIRECTORY has the programs and the PKI. The cells go to cells.json in $RESULTS, one JSON object a
line; the daemon's profiles to ROW.prof there.
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.bench.clients import Clients
from tests.bench.idle import Idle
from tests.bench.plan import CLIENTS, IDLE, SERVERS
from tests.bench.processes import Processes
from tests.bench.record import Record
from tests.bench.servers import Servers, Site
from tests.peers import pki


def run(directory: Path, results: Path, repeats: int, cipher: str, names: Sequence[str]) -> None:
    """Measure the rows of these names."""
    _load_modules()
    _stop_the_clocks()
    processes = Processes(directory, pki.Pki(directory / "pki"))
    site = Site(Path(os.environ["TMPDIR"]))
    client_rows = [row for row in CLIENTS.rows if row.name in names]
    server_rows = [row for row in SERVERS.rows if row.name in names]
    with (results / "cells.json").open("w", buffering=1) as cells:
        record = Record(cells, results)
        record.about(_about())
        if client_rows:
            Clients(processes, client_rows, cipher).run(repeats, record)
        if server_rows:
            Servers(processes, server_rows, cipher, site).run(repeats, record)
        if IDLE in names:
            Idle(processes, cipher, site).run(record)


def _load_modules() -> None:
    # The generic ciphers would do as well, at many times the cost: not what anybody uses.
    _run("modprobe", "-a", "tls", "aesni_intel", "ghash_clmulni_intel")


def _stop_the_clocks() -> None:
    """Let the module wait for long: whenever the guest idles, its clock leaps to the next timer."""
    for name in ("request_timeout_ms", "connect_timeout_ms"):
        Path(f"/sys/module/ssa/parameters/{name}").write_text("86400000")


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


def _run(*command: str) -> None:
    subprocess.run(command, check=True)


if __name__ == "__main__":
    run(
        Path(sys.argv[1]),
        Path(os.environ["RESULTS"]),
        int(sys.argv[2]),
        sys.argv[3],
        sys.argv[4:],
    )
