# SPDX-License-Identifier: BSD-3-Clause
"""Socket addresses, as the kernel's own structures hold them."""

from __future__ import annotations

import socket
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssad.address import parse_sockaddr

_INET = struct.pack("=H", socket.AF_INET)
_INET6 = struct.pack("=H", socket.AF_INET6)


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (_INET + b"\x01\xbb\xc0\0\2\1" + bytes(8), "192.0.2.1:443"),
        (_INET6 + b"\x01\xbb" + bytes(4) + bytes(15) + b"\1" + bytes(4), "[::1]:443"),
        (
            _INET6 + b"\0\1" + bytes(4) + bytes(10) + b"\xff\xff\xc0\0\2\1" + bytes(4),
            "[::ffff:192.0.2.1]:1",
        ),
    ],
)
def test_an_address_is_read_and_shown(raw: bytes, text: str) -> None:
    assert str(parse_sockaddr(raw)) == text
    assert str(parse_sockaddr(raw.ljust(128, b"\0"))) == text  # struct sockaddr_storage


@pytest.mark.parametrize("raw", [b"", b"\2", _INET + b"\1\2\3", _INET6 + bytes(20), b"\1\0path"])
def test_what_is_no_address_is_none(raw: bytes) -> None:
    assert parse_sockaddr(raw) is None


@given(st.binary(max_size=40))
def test_any_bytes_are_an_address_or_none(raw: bytes) -> None:
    address = parse_sockaddr(raw)
    assert address is None or address.port in range(65536)
