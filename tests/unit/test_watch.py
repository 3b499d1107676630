# SPDX-License-Identifier: BSD-3-Clause
"""Events as lines, as JSON and as a table."""

from __future__ import annotations

import errno
import json
import os
import re
import socket
import struct
import sys
import threading
from collections.abc import Callable, Iterator

import pytest
from rich.console import Console

from ssad import watch
from ssad.link import Link, LinkError
from ssad.wire import Attributes, Command, EventKind, SocketState, Transport
from tests.unit.kernel import Kernel

_PEER = struct.pack("=H", socket.AF_INET) + struct.pack("!H4s8x", 443, b"\xc0\0\2\1")

OPENED: Attributes = {"event": EventKind.OPENED, "socket": 9, "pid": 7, "comm": "curl"}
CONNECTED: Attributes = {
    **OPENED,
    "event": EventKind.CONNECTED,
    "remote_address": _PEER,
    "host_name": "example.com",
    "version": 0x0304,
    "cipher": "TLS_AES_128_GCM_SHA256",
    "transport": Transport.KTLS,
}
REFUSED: Attributes = {
    **OPENED,
    "event": EventKind.REFUSED,
    "remote_address": _PEER,
    "error": errno.EPROTO,
    "text": "The certificate of CN=\x1b[31mevil expired.",
}
REFUSED_WITHOUT_TEXT: Attributes = {
    **OPENED,
    "event": EventKind.REFUSED,
    "error": errno.ECONNREFUSED,
}
LISTENING: Attributes = {
    **OPENED,
    "event": EventKind.LISTENING,
    "state": SocketState.LISTENING,
    "local_address": _PEER,
    "queued": 3,
    "backlog": 128,
}
CLOSED: Attributes = {
    **OPENED,
    "event": EventKind.CLOSED,
    "remote_address": _PEER,
    "bytes_sent": 18,
    "bytes_received": 4752,
}


@pytest.mark.parametrize(
    ("event", "words"),
    [
        (OPENED, ["opened", "curl[7]", "socket 9"]),
        (
            CONNECTED,
            [
                *["connected", "curl[7]", "socket 9", "192.0.2.1:443 (example.com)"],
                *["TLS 1.3", "TLS_AES_128_GCM_SHA256", "ktls"],
            ],
        ),
        (
            REFUSED,
            [
                *["refused", "curl[7]", "socket 9", "192.0.2.1:443"],
                "The certificate of CN=?[31mevil expired.",
            ],
        ),
        (
            LISTENING,
            ["listening", "curl[7]", "socket 9", "on 192.0.2.1:443, backlog 128"],
        ),
        (
            {**CONNECTED, "event": EventKind.ACCEPTED},
            [
                *["accepted", "curl[7]", "socket 9", "192.0.2.1:443 (example.com)"],
                *["TLS 1.3", "TLS_AES_128_GCM_SHA256", "ktls"],
            ],
        ),
        (REFUSED_WITHOUT_TEXT, ["refused", "curl[7]", "socket 9", "Connection refused"]),
        (
            CLOSED,
            ["closed", "curl[7]", "socket 9", "192.0.2.1:443", "18 bytes sent, 4752 received"],
        ),
    ],
)
def test_an_event_is_told_in_one_line(event: Attributes, words: list[str]) -> None:
    assert re.split(r" {2,}", watch.line(event)) == words


def test_a_listening_socket_is_shown_with_its_queue() -> None:
    heading, shown = watch.table([LISTENING]).splitlines()
    assert heading.startswith("State ")
    assert re.split(r" {2,}", shown)[:4] == ["listening 3/128", "-", "192.0.2.1:443", "-"]


def test_a_table_fits_the_terminal_and_keeps_the_newest() -> None:
    console = Console(width=120, height=4, color_system=None)
    rows = [(f"12:00:0{number}", *watch.cells(REFUSED)) for number in reversed(range(9))]
    with console.capture() as capture:
        console.print(watch.live_table(rows, console.height))
    lines = capture.get().splitlines()
    assert len(lines) == 4
    assert "12:00:08" in lines[1]
    assert "CN=?[31mevil expired" in lines[1]


@pytest.fixture
def kernel() -> Iterator[Kernel]:
    with Kernel() as kernel:
        yield kernel


@pytest.mark.parametrize("show", [watch.show_lines, watch.show_json])
def test_every_event_is_printed_when_it_comes(
    kernel: Kernel, capfd: pytest.CaptureFixture[str], show: Callable[[Link], None]
) -> None:
    link = kernel.link()
    for event in (OPENED, CONNECTED):
        kernel.tell(Command.NOTIFY, event)
    kernel.hang_up()
    with pytest.raises(LinkError):
        show(link)
    first, second = capfd.readouterr().out.splitlines()
    if show is watch.show_json:
        assert json.loads(first)["event"] == "opened"
        assert json.loads(second)["peer"] == "192.0.2.1:443"
        assert json.loads(second).keys() >= {"time", "id", "host", "cipher", "transport"}
    else:
        assert re.match(r"\d\d:\d\d:\d\d  opened", first)
        assert re.match(r"\d\d:\d\d:\d\d  connected", second)


def test_it_ends_when_nobody_reads_any_more(
    kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    read_end, write_end = os.pipe()
    link = kernel.link()
    with os.fdopen(write_end, "w") as output:
        monkeypatch.setattr(sys, "stdout", output)
        reader = threading.Timer(0.05, os.close, [read_end])
        reader.start()
        # No event comes, so that only the closed pipe can end it.
        with pytest.raises(BrokenPipeError):
            watch.show_lines(link)
        reader.join()
