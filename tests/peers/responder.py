# SPDX-License-Identifier: BSD-3-Clause
"""An HTTP server that answers as a test says: OCSP responses, CRLs, and what is neither."""

from __future__ import annotations

import threading
from collections import Counter
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class Responder:
    """What there is at which path: bytes, an HTTP status alone, or a call that gives either.

    `asked` counts requests by path. One whose path is in `silent` gets no answer before `release`;
    `arrived` says that there is one.
    """

    def __init__(self, port: int) -> None:
        self.port = port
        self.pages: dict[str, bytes | int | Callable[[bytes], bytes]] = {}
        self.silent: set[str] = set()
        self.release = threading.Event()
        self.arrived = threading.Event()
        self.asked: Counter[str] = Counter()
        self.counting = threading.Lock()  # each request has a thread of its own

    def url(self, path: str) -> str:
        """Return the URL of a path, which begins with a slash."""
        return f"http://127.0.0.1:{self.port}{path}"

    def put(self, path: str, page: bytes | int | Callable[[bytes], bytes]) -> str:
        """Have something at a path, and return its URL."""
        self.pages[path] = page
        return self.url(path)


class _Handler(BaseHTTPRequestHandler):
    responder: Responder

    def do_POST(self) -> None:
        self._answer(self.rfile.read(int(self.headers["Content-Length"])))

    def do_GET(self) -> None:
        self._answer(b"")

    def _answer(self, body: bytes) -> None:
        responder = self.responder
        with responder.counting:
            responder.asked[self.path] += 1
        if self.path in responder.silent:
            responder.arrived.set()
            responder.release.wait()
        page = responder.pages.get(self.path, 404)
        if callable(page):
            page = page(body)
        with suppress(OSError):  # it has been given up
            self.send_response(page if isinstance(page, int) else 200)
            data = b"" if isinstance(page, int) else page
            if isinstance(page, int) and 300 <= page < 400:
                self.send_header("Location", responder.url("/elsewhere"))
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - as it is overridden
        """Say nothing."""


@contextmanager
def responding() -> Iterator[Responder]:
    """Run one on a port of the loopback interface."""

    class Handler(_Handler):
        pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        Handler.responder = Responder(server.server_port)
        thread = threading.Thread(target=server.serve_forever, args=[0.05])
        thread.start()
        try:
            yield Handler.responder
        finally:
            Handler.responder.release.set()
            server.shutdown()
            thread.join()
