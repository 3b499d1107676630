# SPDX-License-Identifier: BSD-3-Clause
"""Tells which part of the module a run has executed, from what gcov has counted in the guest.

The kernel counts in the form of the compiler's own library; gcovr reads it beside the notes that
the compiler left where the module was built.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from vm.errors import RunnerError


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
    summary = counts / "summary.json"
    command = [
        *(str(Path(sys.executable).with_name("gcovr")), str(counts), "--root", str(built)),
        *("--object-directory", str(counts), "--filter", f"{built}/.*[.]c"),
        # The kernel's own headers, which are named as where the kernel was built.
        *("--gcov-ignore-errors", "all"),
        *("--json-summary", str(summary), "--html-details", str(counts / "index.html")),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RunnerError(f"gcovr could not read {counts}:\n{done.stderr}")
    told = json.loads(summary.read_text())
    rows = [_row(file["filename"], file) for file in told["files"]]
    return "\n".join([f"{'':<16}{'lines':>18}{'branches':>18}", *rows, _row("in all", told)])


def _row(name: str, told: dict[str, Any]) -> str:
    cells = (
        f"{told[f'{what}_covered']}/{told[f'{what}_total']} {told[f'{what}_percent'] or 0:3.0f} %"
        for what in ("line", "branch")
    )
    return f"{name:<16}" + "".join(f"{cell:>18}" for cell in cells)
