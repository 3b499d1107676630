# SPDX-License-Identifier: BSD-3-Clause
"""`python -m tests.bench.profiler FILE ARGUMENTS...` runs ssad; from SIGUSR1 on under cProfile.

The clock is the process's CPU time, so that waiting for messages is not counted.
"""

from __future__ import annotations

import cProfile
import marshal
import signal
import sys
import time
from pathlib import Path

from ssad.cli import main


def run(path: Path, arguments: list[str]) -> None:
    profile = cProfile.Profile(time.process_time_ns, 1e-9)
    signal.signal(signal.SIGUSR1, lambda _signal, _frame: profile.enable())
    # Opened now: the daemon is somebody else, who may not write there, when it ends.
    with path.open("wb") as file:
        try:
            main(arguments, prog_name="ssad")
        finally:
            profile.create_stats()
            marshal.dump(profile.stats, file)


if __name__ == "__main__":
    run(Path(sys.argv[1]), sys.argv[2:])
