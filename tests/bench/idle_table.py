# SPDX-License-Identifier: BSD-3-Clause
"""From what idle connections used to the table that people read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tests.bench.columns import align
from tests.bench.plan import TLS_HTTPD

_Entry = Mapping[str, int]

_KERNEL = ("SUnreclaim_bytes", "VmallocUsed_bytes", "Percpu_bytes")


def levels(entries: Mapping[str, Sequence[_Entry]]) -> list[dict[str, float]]:
    """Return what belongs to each level, bytes and instructions.

    `entries` are what idle.py measured, of plain TCP and TLS sockets; the first of each is without
    any connection.
    """
    plain, ktls = entries["plain"], entries["ktls"]
    return [
        _memory("", ktls[0], of_ktls)
        | _memory("plain_", plain[0], of_plain)
        | {
            "connections": of_ktls["held"],
            "worker_rss": of_ktls["daemon_Rss_bytes"],
            "worker_pss": of_ktls["daemon_Pss_bytes"],
            "program_rss": of_ktls[f"{TLS_HTTPD}_Rss_bytes"],
            "accept": of_ktls["busy"] / of_ktls["count"],
            "accept_worker": of_ktls["daemon"] / of_ktls["count"],
            "accept_client": of_ktls["client"] / of_ktls["count"],
            "plain_accept": of_plain["busy"] / of_plain["count"],
        }
        for of_plain, of_ktls in zip(plain, ktls, strict=True)
    ]


def _memory(prefix: str, zero: _Entry, entry: _Entry) -> dict[str, float]:
    held = entry["held"]
    if not held:
        return {}
    return {
        f"kernel_per_{prefix}connection": (_kernel(entry) - _kernel(zero)) / held,
        f"all_per_{prefix}connection": (_used(entry) - _used(zero)) / held,
    }


def _kernel(entry: _Entry) -> int:
    return sum(entry[name] for name in _KERNEL)


def _used(entry: _Entry) -> int:
    # What processes have is in it, the client's too, which is the same at each level.
    return -entry["MemAvailable_bytes"]


def text(found: Sequence[Mapping[str, float]]) -> str:
    """Two tables, for a terminal."""
    kernel, everything = ("kernel: TLS", "plain"), ("all: TLS", "plain")
    memory = [["connections", *kernel, *everything, "worker RSS", "PSS", "program RSS"]]
    cost = [
        ["connections", "TLS socket, ktls", "of it the worker", "of it the client", "plain TCP"]
    ]
    for level in found:
        name = f"{level['connections']:,.0f}"
        per = [f"{what}_per_{of}connection" for what in ("kernel", "all") for of in ("", "plain_")]
        processes = ("worker_rss", "worker_pss", "program_rss")
        memory.append(
            [
                name,
                *(f"{level[key]:,.0f}" if key in level else "-" for key in per),
                *(f"{level[key] / 2**20:,.2f} MiB" for key in processes),
            ]
        )
        accepts = ("accept", "accept_worker", "accept_client", "plain_accept")
        cost.append([name, *(f"{level[key]:,.0f}" for key in accepts)])
    return "\n".join(
        [
            "Idle connections on TLS sockets (ktls) and plain TCP: bytes for each, both its ends",
            "(kernel: SUnreclaim, VmallocUsed and Percpu; all: MemAvailable), and processes:",
            "",
            *align(memory),
            "",
            "What one full handshake more costs beside so many (ECDSA P-256, instructions):",
            "",
            *align(cost),
            "",
        ]
    )
