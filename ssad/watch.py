# SPDX-License-Identifier: BSD-3-Clause
"""Showing TLS sockets and what happens to them."""

from __future__ import annotations

import datetime as dt
import json
import os
import select
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from enum import IntEnum
from itertools import islice
from typing import TYPE_CHECKING

from ssad.address import parse_sockaddr
from ssad.errors import printable
from ssad.link import Link, MessagesLost
from ssad.policy import VERSION_NAMES
from ssad.wire import Attributes, Command, EventKind

if TYPE_CHECKING:
    from rich.table import Table

_COLUMNS = (
    "State",
    "Transport",
    "Local",
    "Peer",
    "Host",
    "Version",
    "Cipher",
    "Sent",
    "Received",
    "Pid",
    "Program",
)
_NUMBERS = frozenset({"Sent", "Received", "Pid"})  # aligned to the right
_NONE = "-"

# Names of attributes where they are not those of the contract.
_RECORD_NAMES = {
    "socket": "id",
    "local_address": "local",
    "remote_address": "peer",
    "host_name": "host",
    "comm": "program",
}


def as_record(attributes: Attributes) -> dict[str, object]:
    """Return a socket or an event as JSON shows it."""
    record: dict[str, object] = {}
    for name, value in attributes.items():
        shown = value
        if name == "version":
            shown = _version(attributes)
        elif isinstance(value, IntEnum):
            shown = value.name.lower()
        elif isinstance(value, bytes):
            shown = str(parse_sockaddr(value) or "")
        record[_RECORD_NAMES.get(name, name)] = shown
    return record


def table(sockets: Iterable[Attributes]) -> str:
    """Return the sockets as lines of columns under a heading."""
    rows = [_COLUMNS, *(_row(attributes) for attributes in sockets)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if name in _NUMBERS else cell.ljust(width)
            for name, cell, width in zip(_COLUMNS, row, widths, strict=True)
        ).rstrip()
        for row in rows
    )


def _row(attributes: Attributes) -> tuple[str, ...]:
    return (
        _state(attributes),
        _transport(attributes),
        _address(attributes, "local_address"),
        _address(attributes, "remote_address"),
        printable(attributes.get("host_name", "")) or _NONE,
        _version(attributes),
        attributes.get("cipher") or _NONE,
        str(attributes.get("bytes_sent", 0)),
        str(attributes.get("bytes_received", 0)),
        str(attributes.get("pid", _NONE)),
        printable(attributes.get("comm", "")) or _NONE,
    )


def _state(attributes: Attributes) -> str:
    name = attributes["state"].name.lower()
    if "backlog" in attributes:  # as ss shows it: how many wait for accept(), and how many may
        return f"{name} {attributes.get('queued', 0)}/{attributes['backlog']}"
    return name


def show_json(link: Link) -> None:
    """Print one JSON object a line for every event."""
    for event in _events(link):
        record = {"time": _now().isoformat()}
        print(json.dumps(record | as_record(event)), flush=True)


def show_lines(link: Link) -> None:
    """Print one line for every event."""
    for event in _events(link):
        print(f"{_now():%H:%M:%S}  {line(event)}", flush=True)


def line(event: Attributes) -> str:
    """Tell an event in one line."""
    words = [
        event["event"].name.lower().ljust(max(len(kind.name) for kind in EventKind)),
        f"{printable(event.get('comm', '')) or _NONE}[{event.get('pid', 0)}]",
        f"socket {event.get('socket', 0)}",
    ]
    peer = _address(event, "remote_address")
    if peer != _NONE:
        host = printable(event.get("host_name", ""))
        words.append(f"{peer} ({host})" if host else peer)
    return "  ".join([*words, *_details(event)])


def show_table(link: Link) -> None:
    """Keep a table of the last events on the terminal."""
    from rich.console import Console
    from rich.live import Live

    console = Console()
    rows: deque[tuple[str, ...]] = deque(maxlen=500)
    # Events come in bursts: drawn when the last one of a burst has been read, not by a thread.
    with Live(console=console, auto_refresh=False, screen=True) as live:
        live.update(live_table(rows, console.height), refresh=True)
        for event in _events(link):
            rows.appendleft((f"{_now():%H:%M:%S}", *cells(event)))
            if not link.has_messages:
                live.update(live_table(rows, console.height), refresh=True)


_STYLES = {"connected": "green", "accepted": "green", "refused": "red", "closed": "dim"}


def live_table(rows: Iterable[tuple[str, ...]], height: int) -> Table:
    """Return events, the newest first, as a table for a terminal of so many lines."""
    from rich.table import Table
    from rich.text import Text

    found = Table(expand=True, box=None, header_style="bold")
    for heading in ("Time", "Event", "Program", "Peer", "Host", "Details"):
        found.add_column(heading, ratio=1 if heading == "Details" else None, overflow="fold")
    # One line is for the heading. What folds pushes the oldest ones out at the bottom.
    for row in islice(rows, height - 1):
        found.add_row(*(Text(cell) for cell in row), style=_STYLES.get(row[1]))
    return found


def cells(event: Attributes) -> tuple[str, ...]:
    """Return what a row of the table holds after the time."""
    return (
        event["event"].name.lower(),
        f"{printable(event.get('comm', '')) or _NONE}[{event.get('pid', 0)}]",
        _address(event, "remote_address"),
        printable(event.get("host_name", "")) or _NONE,
        " ".join(_details(event)),
    )


def _details(event: Attributes) -> list[str]:
    match event["event"]:
        case EventKind.CONNECTED | EventKind.ACCEPTED:
            return [_version(event), event.get("cipher", ""), _transport(event)]
        case EventKind.REFUSED:
            number = event.get("error", 0)
            return [printable(event.get("text", "")) or os.strerror(number)]
        case EventKind.LISTENING:
            return [f"on {_address(event, 'local_address')}, backlog {event.get('backlog', 0)}"]
        case EventKind.CLOSED:
            sent, received = event.get("bytes_sent", 0), event.get("bytes_received", 0)
            return [f"{sent} bytes sent, {received} received"]
        case _:
            return []


def _events(link: Link) -> Iterator[Attributes]:
    """Give the events until nobody reads what is printed."""
    poll = select.poll()
    poll.register(link.fileno(), select.POLLIN)
    poll.register(sys.stdout.fileno(), 0)  # tells when the other end of a pipe is closed
    while True:
        if not link.has_messages:
            ready = dict(poll.poll())
            if sys.stdout.fileno() in ready:
                raise BrokenPipeError
        try:
            message = link.receive(wait=False)
        except MessagesLost:
            print("ssad: Events were lost: more came than could be shown.", file=sys.stderr)
            continue
        if message is not None and message.command == Command.NOTIFY:
            yield message.attributes


def _now() -> dt.datetime:
    return dt.datetime.now().astimezone()


def _address(attributes: Attributes, name: str) -> str:
    raw = attributes.get(name)
    address = parse_sockaddr(raw) if isinstance(raw, bytes) else None
    if address is None or (address.port == 0 and address.ip.is_unspecified):
        return _NONE
    return str(address)


def _version(attributes: Attributes) -> str:
    version = attributes.get("version", 0)
    return VERSION_NAMES.get(version, f"{version:#06x}") if version else _NONE


def _transport(attributes: Attributes) -> str:
    transport = attributes.get("transport")
    return transport.name.lower() if transport else _NONE
