# SPDX-License-Identifier: BSD-3-Clause
"""What the guest measured, as a file: one JSON object a line, written as it comes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import IO

from tests.bench.plan import Column, Row


class Record:
    """Writes cells.json, and prints what goes there."""

    def __init__(self, file: IO[str], results: Path) -> None:
        self._file = file
        self._results = results

    def about(self, about: dict[str, str]) -> None:
        """Record what was measured with."""
        print(json.dumps({"about": about}), file=self._file)

    def cell(self, column: Column, row: Row, repeat: int, report: dict[str, int]) -> None:
        """Record one run of one cell."""
        entry = {**report, "column": column.name, "row": row.name, "repeat": repeat}
        print(json.dumps(entry), file=self._file)
        rate = row.count * 10**9 / report["busy"]
        print(f"{repeat + 1}  {row.title:24}{column.title:22}{rate:16,.0f} {row.unit}", flush=True)

    def idle(self, what: str, entry: dict[str, int]) -> None:
        """Record one level of idle connections."""
        print(json.dumps({"idle": what, **entry}), file=self._file)
        print(f"{entry['held']:6,} idle connections, {what}: {entry}", flush=True)

    def profile(self, row: Row) -> Path:
        """Return where the daemon's profile belongs."""
        return profile_path(self._results, row)


def profile_path(results: Path, row: Row) -> Path:
    """Return where the daemon's profile of a row is."""
    return results / f"{row.name}.prof"


def report_of(line: str) -> dict[str, int]:
    """Read what meter_print() of meter.c wrote."""
    report: dict[str, int] = json.loads(line)
    return report
