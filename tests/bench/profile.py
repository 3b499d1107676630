# SPDX-License-Identifier: BSD-3-Clause
"""From a profile of the daemon to the page that says where its share of a handshake goes."""

from __future__ import annotations

import marshal
from pathlib import Path

_LINES = 30

# cProfile's own form: (file, line, function) -> calls, calls without recursion, own and whole time
_Stats = dict[tuple[str, int, str], tuple[int, int, float, float, object]]


# Parts of the names of functions in C, whose time the profiler leaves nearly as it is.
_OPENSSL = ("<built-in method _openssl.", "<method 'derive' of 'cryptography.")
_SYSTEM = ("'_socket.socket' objects>", "'select.epoll' objects>", "method posix.", "socket.close")


def text(path: Path, title: str, handshakes: int, took: float) -> str:
    """A summary, then two lists of functions, by whole and by own time, in nanoseconds for each
    handshake. `took` is what one takes without the profiler."""
    stats: _Stats = marshal.loads(path.read_bytes())  # noqa: S302 - our own process wrote it
    total = sum(own for _, _, own, _, _ in stats.values())
    openssl, system = (_nanoseconds_in(stats, names) / handshakes for names in (_OPENSSL, _SYSTEM))
    python = took - openssl - system
    lines = [
        f"The daemon, {title}: {took:,.0f} ns for each, of it",
        f"OpenSSL {openssl:,.0f}, system calls {system:,.0f}, Python {python:,.0f}.",
        f"With the profiler {_nanoseconds(total, handshakes)} ns for each of {handshakes}:",
    ]
    for order, place in (("with what they call", 3), ("alone", 2)):
        lines += ["", f"functions {order}:", "", "          ns       own     calls  function"]
        busiest = sorted(stats.items(), key=lambda item: _time(item[1], place), reverse=True)
        for function, (_, calls, own, whole, _) in busiest[:_LINES]:
            lines.append(
                f"{_nanoseconds(whole, handshakes):>12}{_nanoseconds(own, handshakes):>10}"
                f"{calls / handshakes:>10.1f}  {_name(*function)}"
            )
    return "\n".join([*lines, ""])


def _nanoseconds_in(stats: _Stats, names: tuple[str, ...]) -> float:
    """Return the own time of functions in C whose names have one of these parts."""
    found = (
        entry[2]
        for (file, _, function), entry in stats.items()
        if file == "~" and any(name in function for name in names)
    )
    return sum(found) * 1e9


def _time(entry: tuple[int, int, float, float, object], place: int) -> float:
    return entry[3] if place == 3 else entry[2]


def _nanoseconds(seconds: float, handshakes: int) -> str:
    return f"{seconds * 1e9 / handshakes:,.0f}"


def _name(file: str, line: int, function: str) -> str:
    if file == "~":
        return function
    path = Path(file)
    return f"{path.parent.name}/{path.name}:{line} {function}"
