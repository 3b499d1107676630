# SPDX-License-Identifier: BSD-3-Clause
"""The smallest servers of HTTP/1.1 and HTTP/2, for a socket that somebody else has accepted."""

from __future__ import annotations

from typing import TYPE_CHECKING

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import RequestReceived

if TYPE_CHECKING:
    import socket


def answer_http1(sock: socket.socket, page: bytes) -> None:
    """Answer each request of a connection with `page`, until the client or HTTP/1.0 ends it."""
    data = b""
    while True:
        while b"\r\n\r\n" not in data:
            piece = sock.recv(1 << 16)
            if not piece:
                return
            data += piece
        request, _, data = data.partition(b"\r\n\r\n")
        old = b"HTTP/1.0" in request.splitlines()[0]
        end = b"Connection: close\r\n" if old else b""
        head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n%s\r\n" % (len(page), end)
        sock.sendall(head + page)
        if old:
            return


def answer_http2(sock: socket.socket, page: bytes) -> None:
    """Answer each request of a connection with `page`, until the client ends it."""
    http = H2Connection(H2Configuration(client_side=False))
    http.initiate_connection()
    sock.sendall(http.data_to_send())
    while data := sock.recv(1 << 16):
        for event in http.receive_data(data):
            if isinstance(event, RequestReceived) and event.stream_id is not None:
                length = str(len(page))
                http.send_headers(event.stream_id, [(":status", "200"), ("content-length", length)])
                http.send_data(event.stream_id, page, end_stream=True)
        sock.sendall(http.data_to_send())
