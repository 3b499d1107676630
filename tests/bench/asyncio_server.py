# SPDX-License-Identifier: BSD-3-Clause
"""httpd.c with Python's asyncio and ssl: `--tls PORT:CHAIN:KEY ... FILE ...`.

With protocols, which cost less than streams do. It prints "ready" when it listens.
"""

from __future__ import annotations

import argparse
import asyncio
import ssl
from collections.abc import Sequence
from pathlib import Path

_END = b"\r\n\r\n"
_HANDSHAKE_TIMEOUT = 86400.0  # the guest's clock leaps whenever it is idle


class _Http(asyncio.Protocol):
    """One connection."""

    def __init__(self, answers: dict[bytes, bytes]) -> None:
        self._answers = answers
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._received += data
        while _END in self._received:
            request, _, self._received = self._received.partition(_END)
            _method, name, _rest = request.split(b" ", 2)
            self._transport.write(self._answers[name])


async def _serve(ports: Sequence[str], answers: dict[bytes, bytes]) -> None:
    loop = asyncio.get_running_loop()
    for port in ports:
        number, chain, key = port.split(":")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(chain, key)
        await loop.create_server(
            lambda: _Http(answers),
            "127.0.0.1",
            int(number),
            ssl=context,
            ssl_handshake_timeout=_HANDSHAKE_TIMEOUT,
            backlog=511,
        )
    print("ready", flush=True)
    await loop.create_future()


def _answer(path: Path) -> bytes:
    data = path.read_bytes()
    return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(data) + data


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--tls", action="append", default=[])
    parser.add_argument("files", nargs="+", type=Path)
    arguments = parser.parse_args()
    answers = {b"/" + path.name.encode(): _answer(path) for path in arguments.files}
    asyncio.run(_serve(arguments.tls, answers))


if __name__ == "__main__":
    main()
