# SPDX-License-Identifier: BSD-3-Clause
"""`python -m tests.bench.profiler FILE ARGUMENTS...` runs ssad; its worker, from SIGUSR1 on, under
cProfile. There must be only one.

The clock is the process's CPU time, so that waiting for messages is not counted.
"""

from __future__ import annotations

import cProfile
import marshal
import signal
import sys
import time
from functools import wraps
from pathlib import Path

from ssad import daemon
from ssad.cli import main


def run(path: Path, arguments: list[str]) -> None:
    # Opened now: the daemon is somebody else, who may not write there.
    with path.open("wb") as file:
        work = daemon.work

        @wraps(work)
        def profiled(*args: object, **kwargs: object) -> None:
            profile = cProfile.Profile(time.process_time_ns, 1e-9)
            signal.signal(signal.SIGUSR1, lambda _signal, _frame: profile.enable())
            try:
                work(*args, **kwargs)  # type: ignore[arg-type]  # they are passed through
            finally:
                profile.create_stats()
                marshal.dump(profile.stats, file)
                file.flush()  # the worker's end closes no files of Python's

        daemon.work = profiled
        main(arguments, prog_name="ssad")


if __name__ == "__main__":
    run(Path(sys.argv[1]), sys.argv[2:])
