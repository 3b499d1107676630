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
from tests.bench.guest import PROFILED_CONNECTS
from tests.bench.plan import ROWS
from tests.bench.table import Table
from tests.peers import pki
from vm import guest, kernels, module
from vm.errors import RunnerError

ROOT = Path(__file__).resolve().parent.parent.parent
BUILD = ROOT / "build"
RESULTS = BUILD / "results" / "bench"

_KERNEL = "6.12"
_DEADLINE = 15 * 60  # seconds of the host: the guest's own clock leaps over idle time


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--repeats", default=3, show_default=True, help="Runs of each cell.")
@click.option("--cipher", default="TLS_AES_128_GCM_SHA256", show_default=True)
def main(repeats: int, cipher: str) -> None:
    """Measure TLS sockets against what else there is, in instructions of a guest."""
    signal.signal(signal.SIGALRM, _too_late)
    signal.alarm(_DEADLINE)
    kernel = kernels.find(_KERNEL)
    _say(f"building the load generator and the module for {kernel.release}")
    programs = BUILD / "bench"
    programs.mkdir(parents=True, exist_ok=True)
    source = Path(__file__).parent
    subprocess.run(["make", "--silent", "-C", str(source), f"O={programs}"], check=True)
    pki.create(programs / "pki")
    built = module.build(kernel, ROOT / "kmod", BUILD / f"kmod-{kernel.release}", ["--silent"])
    machine = guest.Machine(
        kernel=kernel,
        kvm=False,
        modules=module.tree(kernel, built, BUILD / f"modules-{kernel.release}"),
        results=RESULTS,
        cpus=1,
        icount=True,
    )
    _say(f"booting, then measuring every cell {repeats} times; this takes some minutes")
    # No deadline in the guest: its clock leaps.
    command = ["python3", "-m", "tests.bench.guest", str(programs), str(repeats), cipher]
    outcome = guest.run(machine, command, _environment(), 0)
    for complaint in outcome.complaints:
        _say(complaint)
    if outcome.complaints or outcome.status != 0:
        sys.exit(1)
    table = Table((RESULTS / "cells.json").read_text().splitlines())
    table.write(RESULTS)
    profiles = _profiles()
    (RESULTS / "profile.txt").write_text(profiles)
    print(f"\n{profiles}\n{table.text()}")
    _say(f"stored in {RESULTS}: table.txt, table.csv, table.json, profile.txt")


def _profiles() -> str:
    """Where the daemon's share of a connect goes."""
    return "\n".join(
        profile.text(RESULTS / f"{row.name}.prof", row.title, PROFILED_CONNECTS)
        for row in ROWS
        if row.load == "connect"
    )


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
