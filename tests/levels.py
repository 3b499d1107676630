# SPDX-License-Identifier: BSD-3-Clause
"""The options of other levels: what the module's tables say of each, and what Linux's headers
define."""

from __future__ import annotations

import re
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parents[1]

# Where the module has its tables, and the level of each.
TABLES = {
    "socket_rows": ("kmod/mirror.c", socket.SOL_SOCKET),
    "tcp_rows": ("kmod/levels.c", socket.IPPROTO_TCP),
    "ip_rows": ("kmod/levels.c", socket.IPPROTO_IP),
    "ipv6_rows": ("kmod/levels.c", socket.IPPROTO_IPV6),
}

# Where Linux defines the options of each level, and how their names begin.
_HEADERS = {
    socket.SOL_SOCKET: {"asm-generic/socket.h": r"SO_"},
    socket.IPPROTO_TCP: {"linux/tcp.h": r"TCP_"},
    socket.IPPROTO_IP: {
        "linux/in.h": r"IP_|MCAST_",
        "linux/netfilter_ipv4.h": r"SO_ORIGINAL_DST",
    },
    socket.IPPROTO_IPV6: {
        "linux/in6.h": r"IPV6_",
        "linux/in.h": r"MCAST_",
        "linux/netfilter_ipv6/ip6_tables.h": r"IP6T_SO_ORIGINAL_DST",
    },
}

# What begins like an option and is a value of one.
_VALUES = re.compile(
    r"TCP_(REPAIR_(ON|OFF\w*)|\w+_MAXKEYLEN|MSS_\w+)"
    r"|(IP|IPV6)_PMTUDISC_\w+|IP_DEFAULT_\w+|MCAST_(IN|EX)CLUDE"
    r"|IPV6_(FL|TLV|PREFER|PRIORITY)_\w+"
)

_ROW = re.compile(r"^\t\[(\w+)\] = \{ (\w+), (\w+)(?:, (\w+))? \}, /\* (.+) \*/$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Row:
    """One option as a table of the module has it."""

    level: int
    name: str
    set: str
    get: str
    record: str  # empty at SOL_SOCKET
    why: str


def rows(table: str) -> list[Row]:
    """Read a table of the module. Raises ValueError if a line of it is no row."""
    path, level = TABLES[table]
    text = (ROOT / path).read_text(encoding="utf-8")
    start = text.index("{\n", text.index(f"{table}[]")) + 2
    lines = text[start : text.index("\n};\n", start)].splitlines()
    found = [_ROW.fullmatch(line) for line in lines]
    if None in found:
        raise ValueError(f"{path}: {lines[found.index(None)]!r} of {table} is not a row.")
    return [Row(level, *(part or "" for part in match.groups())) for match in found if match]


def defined(modules: Path, level: int) -> dict[str, int]:
    """Return the options of a level that a kernel's headers define, by name.

    `modules`: its folder in /lib/modules. Debian has the headers elsewhere than the debug kernel.
    """
    source = modules / "source"
    headers = source if source.exists() else modules / "build"
    return dict(_defined(headers / "include/uapi", level))


def _defined(headers: Path, level: int) -> Iterator[tuple[str, int]]:
    for path, begin in _HEADERS[level].items():
        text = (headers / path).read_text(encoding="utf-8")
        text = re.sub(r"^#if 0\b.*?^#endif", "", text, flags=re.MULTILINE | re.DOTALL)
        for name, number in re.findall(
            rf"^#define\s+((?:{begin})\w*)\s+(\d+)\s*(?:/\*.*)?$", text, re.MULTILINE
        ):
            if not _VALUES.fullmatch(name):
                yield name, int(number)
        # Another name of an option that has one.
        for name, other in re.findall(
            rf"^#define\s+((?:{begin})\w*)\s+((?:{begin})\w+)\s*$", text, re.MULTILINE
        ):
            match = re.search(rf"^#define\s+{other}\s+(\d+)", text, re.MULTILINE)
            if match:
                yield name, int(match[1])
