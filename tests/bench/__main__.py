# SPDX-License-Identifier: BSD-3-Clause
"""`python -m tests.bench`: measure, print the table and store it in build/results/bench."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from types import FrameType

import click

from tests.bench import profile
from tests.bench.plan import CLIENTS, KTLS, PROFILED_HANDSHAKES, ROW_NAMES, SERVER_KTLS, SERVERS
from tests.bench.record import profile_path
from tests.bench.table import Tables
from tests.peers import pki
from vm import guest, kernels, module
from vm.errors import RunnerError

ROOT = Path(__file__).resolve().parent.parent.parent
BUILD = ROOT / "build"
RESULTS = BUILD / "results" / "bench"

_KERNEL = "6.12"
_DEADLINE = 30 * 60  # seconds of the host: the guest's own clock leaps over idle time
_MEMORY = "4G"  # thousands of idle connections, and files that processes have mapped


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--repeats", default=3, show_default=True, help="Runs of each cell.")
@click.option("--cipher", default="TLS_AES_128_GCM_SHA256", show_default=True)
@click.option(
    "--row",
    "rows",
    multiple=True,
    type=click.Choice(ROW_NAMES),
    help="Measure this row; may be given more than once.  [default: all]",
)
def main(repeats: int, cipher: str, rows: tuple[str, ...]) -> None:
    """Measure TLS sockets against what else there is, in instructions of a guest."""
    signal.signal(signal.SIGALRM, _too_late)
    signal.alarm(_DEADLINE)
    kernel = kernels.find(_KERNEL)
    _say(f"building the load generators and the module for {kernel.release}")
    programs = BUILD / "bench"
    programs.mkdir(parents=True, exist_ok=True)
    source = Path(__file__).parent
    subprocess.run(["make", "--silent", "-C", str(source), f"O={programs}"], check=True)
    pki.create(programs / "pki")
    built = module.build(kernel, ROOT / "kmod", BUILD / f"kmod-{kernel.release}", ["--silent"])
    machine = guest.Machine(
        kernel=kernel,
        kvm=False,
        modules=module.tree(kernel, [built], BUILD / f"modules-{kernel.release}"),
        results=RESULTS,
        cpus=1,
        memory=_MEMORY,
        icount=True,
    )
    _say(f"booting, then measuring every cell {repeats} times; this takes some minutes")
    # No deadline in the guest: its clock leaps.
    command = ["python3", "-m", "tests.bench.guest", str(programs), str(repeats), cipher]
    command += rows or ROW_NAMES
    outcome = guest.run(machine, command, _environment(), 0)
    for complaint in outcome.complaints:
        _say(complaint)
    if outcome.complaints or outcome.status != 0:
        sys.exit(1)
    tables = Tables((RESULTS / "cells.json").read_text().splitlines())
    tables.write(RESULTS)
    profiles = _profiles(tables)
    (RESULTS / "profile.txt").write_text(profiles)
    print(f"\n{profiles}\n{tables.text()}")
    _say(f"stored in {RESULTS}: table.txt, table.csv, table.json, idle.csv, profile.txt")


def _profiles(tables: Tables) -> str:
    """Where the daemon's share of a handshake goes, of the rows that were measured."""
    texts = []
    for part, column in ((CLIENTS, KTLS), (SERVERS, SERVER_KTLS)):
        for row in part.rows:
            path = profile_path(RESULTS, row)
            if path.exists():
                took = tables.share(row, column, "daemon")
                texts.append(profile.text(path, row.title, PROFILED_HANDSHAKES, took))
    return "\n".join(texts)


def _environment() -> dict[str, str]:
    # The virtual environment first, then the system's programs as root finds them.
    path = f"{Path(sys.executable).parent}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin"
    return {"PATH": path, "HOME": os.devnull, "LANG": "C.UTF-8", "PYTHONDONTWRITEBYTECODE": "1"}


def _too_late(_signal: int, _frame: FrameType | None) -> None:
    raise RunnerError(f"The benchmark took longer than {_DEADLINE // 60} minutes.")


def _say(text: str) -> None:
    print(f"bench: {text}", flush=True)


if __name__ == "__main__":
    try:
        main()
    except (RunnerError, subprocess.CalledProcessError) as error:
        _say(str(error))
        sys.exit(1)
