# SPDX-License-Identifier: BSD-3-Clause
"""From a profile of the daemon to the page that says where its share of a connect goes."""

from __future__ import annotations

import marshal
from pathlib import Path

_LINES = 30

# cProfile's own form: (file, line, function) -> calls, calls without recursion, own and whole time
_Stats = dict[tuple[str, int, str], tuple[int, int, float, float, object]]


def text(path: Path, title: str, connects: int) -> str:
    """Two lists of functions, by whole and by own time, in nanoseconds for each connect."""
    stats: _Stats = marshal.loads(path.read_bytes())  # noqa: S302 - our own process wrote it
    total = sum(own for _, _, own, _, _ in stats.values())
    lines = [f"The daemon, {title}: {_nanoseconds(total, connects)} ns for each of {connects}"]
    for order, place in (("with what they call", 3), ("alone", 2)):
        lines += ["", f"functions {order}:", "", "          ns       own     calls  function"]
        busiest = sorted(stats.items(), key=lambda item: _time(item[1], place), reverse=True)
        for function, (_, calls, own, whole, _) in busiest[:_LINES]:
            lines.append(
                f"{_nanoseconds(whole, connects):>12}{_nanoseconds(own, connects):>10}"
                f"{calls / connects:>10.1f}  {_name(*function)}"
            )
    return "\n".join([*lines, ""])


def _time(entry: tuple[int, int, float, float, object], place: int) -> float:
    return entry[3] if place == 3 else entry[2]


def _nanoseconds(seconds: float, connects: int) -> str:
    return f"{seconds * 1e9 / connects:,.0f}"


def _name(file: str, line: int, function: str) -> str:
    if file == "~":
        return function
    path = Path(file)
    return f"{path.parent.name}/{path.name}:{line} {function}"
