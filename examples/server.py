#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""Serves the current directory over TLS: server.py PORT CHAIN KEY"""

import socket
import sys
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

IPPROTO_TLS, TLS_CERTIFICATE_CHAIN, TLS_PRIVATE_KEY = 205, 88, 89  # in_tls.h


class Server(ThreadingHTTPServer):
    """Python's own server, with another socket."""

    def server_bind(self) -> None:
        self.socket = socket.socket(self.address_family, self.socket_type, IPPROTO_TLS)
        self.socket.setsockopt(IPPROTO_TLS, TLS_CERTIFICATE_CHAIN, sys.argv[2].encode())
        self.socket.setsockopt(IPPROTO_TLS, TLS_PRIVATE_KEY, sys.argv[3].encode())
        super().server_bind()


Server(("", int(sys.argv[1])), SimpleHTTPRequestHandler).serve_forever()
