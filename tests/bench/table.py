# SPDX-License-Identifier: BSD-3-Clause
"""From the cells that the guest measured to the table that people read."""

from __future__ import annotations

import csv
import json
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.bench.plan import COLUMNS, RAW, ROWS, Column, Row

_GUEST_SECOND = 10**9  # nanoseconds, each of them one instruction


@dataclass(frozen=True, slots=True)
class Figure:
    """One cell: units per guest second, and nanoseconds per unit by who used them."""

    rate: float
    spread: float  # (slowest - fastest) / median of the repeated runs
    busy: float
    shares: dict[str, float]  # process -> nanoseconds per unit; the rest is the client and kernel

    @property
    def without_peer(self) -> float:
        """What the client's side costs: nanoseconds per unit."""
        return self.busy - self.shares["peer"]


class Table:
    """The figures of one guest run."""

    def __init__(self, lines: Iterable[str]) -> None:
        """Raises ValueError if there is no figure among the lines."""
        self.about: dict[str, str] = {}
        cells: dict[tuple[str, str], list[dict[str, int]]] = defaultdict(list)
        for line in lines:
            entry = json.loads(line)
            if "about" in entry:
                self.about = entry["about"]
            else:
                cells[entry.pop("row"), entry.pop("column")].append(entry)
        if not cells:
            raise ValueError("The guest measured nothing.")
        self._figures = {key: _figure(runs) for key, runs in cells.items()}
        self.columns = [c for c in COLUMNS if any(c.name == name for _, name in self._figures)]

    def text(self) -> str:
        """Two tables, for a terminal."""
        about = "; ".join(f"{key} {value}" for key, value in self.about.items())
        return "\n".join(
            [
                about,
                "",
                "Work per instruction, the whole machine (raw kTLS = 1; more is better):",
                "",
                *self._ratios(lambda figure: figure.busy),
                "",
                "The same without the server process's share (the client's side):",
                "",
                *self._ratios(lambda figure: figure.without_peer),
                "",
            ]
        )

    def write(self, directory: Path) -> None:
        """Store everything: table.txt, table.csv, table.json."""
        (directory / "table.txt").write_text(self.text())
        records = [self._record(row, column) for row in ROWS for column in self._measured(row)]
        (directory / "table.json").write_text(
            json.dumps({"about": self.about, "cells": records}, indent=1) + "\n"
        )
        names = list(dict.fromkeys(name for record in records for name in record))
        with (directory / "table.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, names, restval="")
            writer.writeheader()
            writer.writerows(records)

    def _measured(self, row: Row) -> list[Column]:
        return [column for column in self.columns if (row.name, column.name) in self._figures]

    def _record(self, row: Row, column: Column) -> dict[str, object]:
        figure = self._figures[row.name, column.name]
        reference = self._figures[row.name, RAW.name]
        return {
            "row": row.name,
            "column": column.name,
            "unit": row.unit,
            "per_guest_second": round(figure.rate, 1),
            "ratio": round(reference.busy / figure.busy, 4),
            "ratio_without_peer": round(reference.without_peer / figure.without_peer, 4),
            "spread": round(figure.spread, 4),
            "ns_per_unit": round(figure.busy, 3),
            **{f"{name}_ns_per_unit": round(ns, 3) for name, ns in figure.shares.items()},
        }

    def _ratios(self, cost: Callable[[Figure], float]) -> list[str]:
        head = ["", "raw kTLS does", *(column.title for column in self.columns)]
        lines = [head]
        for row in ROWS:
            measured = self._measured(row)
            if RAW not in measured:
                continue
            reference = cost(self._figures[row.name, RAW.name])
            line = [row.title, _rate(_GUEST_SECOND / reference, row)]
            for column in self.columns:
                figure = self._figures.get((row.name, column.name))
                line.append(f"{reference / cost(figure):.3f}" if figure else "-")
            lines.append(line)
        return _align(lines)


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
    return f"{rate / 2**20:,.1f} MiB/s" if row.unit == "bytes" else f"{rate:,.0f} /s"


def _align(lines: list[list[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if number else cell.ljust(width)
            for number, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]
