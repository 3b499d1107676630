# SPDX-License-Identifier: BSD-3-Clause
"""From the cells that the guest measured to the tables that people read."""

from __future__ import annotations

import csv
import json
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.bench import idle_table
from tests.bench.columns import align
from tests.bench.plan import PARTS, Column, Part, Row

_GUEST_SECOND = 10**9  # nanoseconds, each of them one instruction


@dataclass(frozen=True, slots=True)
class Figure:
    """One cell: units per guest second, and nanoseconds per unit by who used them."""

    rate: float
    spread: float  # (slowest - fastest) / median of the repeated runs
    busy: float
    shares: dict[str, float]  # process -> nanoseconds per unit; the rest is the kernel's

    def without(self, process: str) -> float:
        """What there is beside a process: nanoseconds per unit."""
        return self.busy - self.shares[process]


_Figures = Mapping[tuple[str, str], Figure]  # by the names of row and column


class Tables:
    """The figures of one guest run."""

    def __init__(self, lines: Iterable[str]) -> None:
        """Raises ValueError if there is no figure among the lines."""
        self.about: dict[str, str] = {}
        cells: dict[tuple[str, str], list[dict[str, int]]] = defaultdict(list)
        idle: dict[str, list[dict[str, int]]] = defaultdict(list)
        for line in lines:
            entry = json.loads(line)
            if "about" in entry:
                self.about = entry["about"]
            elif "idle" in entry:
                idle[entry.pop("idle")].append(entry)
            else:
                cells[entry.pop("row"), entry.pop("column")].append(entry)
        if not cells and not idle:
            raise ValueError("The guest measured nothing.")
        self._figures = {key: _figure(runs) for key, runs in cells.items()}
        parts = (PartTable(part, self._figures) for part in PARTS)
        self.parts = [part for part in parts if part.rows]
        self.idle = idle_table.levels(idle) if idle else []

    def share(self, row: Row, column: Column, process: str) -> float:
        """Return what a process takes of one cell: nanoseconds per unit."""
        return self._figures[row.name, column.name].shares[process]

    def text(self) -> str:
        """All tables, for a terminal."""
        about = "; ".join(f"{key} {value}" for key, value in self.about.items())
        texts = [part.text() for part in self.parts]
        if self.idle:
            texts.append(idle_table.text(self.idle))
        return "\n".join([about, "", *texts])

    def write(self, directory: Path) -> None:
        """Store everything: table.txt, table.csv, table.json."""
        (directory / "table.txt").write_text(self.text())
        records = [record for part in self.parts for record in part.records()]
        stored = {"about": self.about, "cells": records, "idle": self.idle}
        (directory / "table.json").write_text(json.dumps(stored, indent=1) + "\n")
        _write_csv(directory / "table.csv", records)
        _write_csv(directory / "idle.csv", self.idle)


class PartTable:
    """The figures of one part."""

    def __init__(self, part: Part, figures: _Figures) -> None:
        """`figures` may have those of other parts and need not have all of this one."""
        self._part = part
        self._figures = figures
        self.rows = [row for row in part.rows if self._measured(row)]
        self._columns = [
            c for c in part.columns if any((r.name, c.name) in figures for r in self.rows)
        ]

    def text(self) -> str:
        """What a 10^9th costs, and ratios to the reference, with and without what is the same."""
        part = self._part
        reference = f"{part.reference.title} = 1; more is better"
        return "\n".join(
            [
                f"{part.title}: work per 10^9 instructions, the whole machine:",
                "",
                *self._rates(),
                "",
                f"The same as a ratio ({reference}):",
                "",
                *self._ratios(lambda figure: figure.busy),
                "",
                f"The same without the process {part.same}, so {part.rest} ({reference}):",
                "",
                *self._ratios(lambda figure: figure.without(part.same)),
                "",
                "",
            ]
        )

    def records(self) -> list[dict[str, object]]:
        """Everything, a cell each."""
        return [self._record(row, column) for row in self.rows for column in self._measured(row)]

    def _measured(self, row: Row) -> list[Column]:
        return [c for c in self._part.columns if (row.name, c.name) in self._figures]

    def _record(self, row: Row, column: Column) -> dict[str, object]:
        figure = self._figures[row.name, column.name]
        reference = self._figures[row.name, self._part.reference.name]
        same = self._part.same
        return {
            "part": self._part.name,
            "row": row.name,
            "column": column.name,
            "unit": row.unit,
            "per_guest_second": round(figure.rate, 1),
            "ratio": round(reference.busy / figure.busy, 4),
            f"ratio_without_{same}": round(reference.without(same) / figure.without(same), 4),
            "spread": round(figure.spread, 4),
            "ns_per_unit": round(figure.busy, 3),
            **{f"{name}_ns_per_unit": round(ns, 3) for name, ns in figure.shares.items()},
        }

    def _rates(self) -> list[str]:
        return self._lines(lambda row, figure: _rate(figure.rate, row))

    def _ratios(self, cost: Callable[[Figure], float]) -> list[str]:
        def ratio(row: Row, figure: Figure) -> str:
            return f"{cost(self._figures[row.name, self._part.reference.name]) / cost(figure):.3f}"

        return self._lines(ratio)

    def _lines(self, cell: Callable[[Row, Figure], str]) -> list[str]:
        lines = [["", *(column.title for column in self._columns)]]
        for row in self.rows:
            line = [row.title]
            for column in self._columns:
                figure = self._figures.get((row.name, column.name))
                line.append(cell(row, figure) if figure else "-")
            lines.append(line)
        return align(lines)


def _figure(runs: Sequence[dict[str, int]]) -> Figure:
    costs = [run["busy"] / run["count"] for run in runs]
    busy = statistics.median(costs)
    processes = runs[0].keys() - {"busy", "passed", "count", "repeat"}
    return Figure(
        rate=_GUEST_SECOND / busy,
        spread=(max(costs) - min(costs)) / busy,
        busy=busy,
        shares={
            name: statistics.median(run[name] / run["count"] for run in runs)
            for name in sorted(processes)
        },
    )


def _rate(rate: float, row: Row) -> str:
    return f"{rate / 2**20:,.1f} MiB" if row.unit == "bytes" else f"{rate:,.0f}"


def _write_csv(path: Path, records: Sequence[Mapping[str, object]]) -> None:
    names = list(dict.fromkeys(name for record in records for name in record))
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, names, restval="")
        writer.writeheader()
        writer.writerows(records)
