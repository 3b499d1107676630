#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""Fetches a page over TLS: client.py HOST PORT"""

import socket
import sys

IPPROTO_TLS, TLS_HOSTNAME, TLS_ERROR = 205, 85, 100  # in_tls.h

host, port = sys.argv[1], int(sys.argv[2])
with socket.socket(socket.AF_INET, socket.SOCK_STREAM, IPPROTO_TLS) as tls:
    tls.setsockopt(IPPROTO_TLS, TLS_HOSTNAME, host.encode() + b"\0")
    try:
        tls.connect((host, port))
    except OSError as error:
        why = tls.getsockopt(IPPROTO_TLS, TLS_ERROR, 512).rstrip(b"\0").decode()
        sys.exit(f"connect: {error.strerror}: {why}")
    tls.sendall(f"GET / HTTP/1.0\r\nHost: {host}\r\n\r\n".encode())
    while data := tls.recv(4096):
        sys.stdout.buffer.write(data)
