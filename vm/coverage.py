# SPDX-License-Identifier: BSD-3-Clause
"""Tells which part of the module a run has executed, from what gcov has counted in the guest.

The kernel counts in the form of the compiler's own library; gcovr reads it beside the notes that
the compiler left where the module was built.
"""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vm.errors import RunnerError

if TYPE_CHECKING:
    from collections.abc import Sequence


# What gcovr makes of a run's counts, in its folder `coverage`.
_COUNTS = "counts.json"


def table(built: Path, results: Path) -> str:
    """Lines and branches that were executed, by file and in all; "" if nothing was counted.

    `built` is where the module was built. What gcovr says goes into `results`/coverage as well.
    Raises RunnerError if gcovr can't read what the guest has left.
    """
    counts = results / "coverage"
    if not any(counts.glob("*.gcda")):
        return ""
    for found in counts.glob("*.gcda"):
        shutil.copyfile(built / found.with_suffix(".gcno").name, found.with_suffix(".gcno"))
    _gcovr(
        *(str(counts), "--root", str(built), "--object-directory", str(counts)),
        *("--filter", f"{built}/.*[.]c"),
        # The kernel's own headers, which are named as where the kernel was built.
        *("--gcov-ignore-errors", "all"),
        *("--json", str(counts / _COUNTS), "--html-details", str(counts / "index.html")),
    )
    return merged([results])


def merged(runs: Sequence[Path]) -> str:
    """The same of several runs together, by their results; "" if nothing was counted in any.

    Raises RunnerError if gcovr can't put them together: they are of different sources.
    """
    counts = [found for run in runs if (found := run / "coverage" / _COUNTS).exists()]
    if not counts:
        return ""
    tracefiles = [word for found in counts for word in ("--add-tracefile", str(found))]
    told = json.loads(_gcovr(*tracefiles, "--json-summary", "-"))
    rows = [_row(file["filename"], file) for file in told["files"]]
    return "\n".join([f"{'':<16}{'lines':>18}{'branches':>18}", *rows, _row("in all", told)])


def _gcovr(*arguments: str) -> str:
    command = [str(Path(sys.executable).with_name("gcovr")), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RunnerError(f"{shlex.join(command)} failed:\n{done.stderr}")
    return done.stdout


def _row(name: str, told: dict[str, Any]) -> str:
    cells = (
        f"{told[f'{what}_covered']}/{told[f'{what}_total']} {told[f'{what}_percent'] or 0:3.0f} %"
        for what in ("line", "branch")
    )
    return f"{name:<16}" + "".join(f"{cell:>18}" for cell in cells)
