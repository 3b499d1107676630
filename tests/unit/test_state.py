# SPDX-License-Identifier: BSD-3-Clause
"""What the worker remembers of sockets, and values that come in pieces."""

from __future__ import annotations

import errno

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssad.errors import Refused
from ssad.state import Socket, Sockets
from ssad.wire import VALUE_MAX, VALUE_PIECE_MAX, TlsOption

TRUSTED = TlsOption.TLS_TRUSTED_PEER_CERTIFICATES
CHAIN = TlsOption.TLS_CERTIFICATE_CHAIN


def a_socket() -> Socket:
    return Socket(id=1, pid=2, uid=3, comm="curl")


@given(st.binary(max_size=300), st.integers(1, 100))
def test_pieces_in_order_make_the_value(value: bytes, size: int) -> None:
    sock = a_socket()
    found = sock.receive_piece(TRUSTED, len(value), 0, value[:size])
    for offset in range(size, len(value), size):
        assert found is None
        found = sock.receive_piece(TRUSTED, len(value), offset, value[offset : offset + size])
    assert found == value


def test_the_longest_value_is_taken() -> None:
    sock = a_socket()
    for offset in range(0, VALUE_MAX, VALUE_PIECE_MAX):
        found = sock.receive_piece(TRUSTED, VALUE_MAX, offset, b"x" * VALUE_PIECE_MAX)
    assert found == b"x" * VALUE_MAX


@pytest.mark.parametrize(
    ("option", "length", "offset", "piece"),
    [
        (TRUSTED, 10, 5, b"late"),  # leaves one out
        (TRUSTED, 10, 3, b"again"),  # comes again
        (TRUSTED, 11, 4, b"length"),
        (CHAIN, 10, 4, b"option"),
        (TRUSTED, 10, 4, b"toolong"),
        (TRUSTED, 2, 0, b"toolong"),
        (TRUSTED, VALUE_MAX + 1, 0, b"huge"),
    ],
)
def test_a_piece_that_does_not_fit_is_refused_and_the_value_forgotten(
    option: TlsOption, length: int, offset: int, piece: bytes
) -> None:
    sock = a_socket()
    sock.receive_piece(TRUSTED, 10, 0, b"good")
    with pytest.raises(Refused) as caught:
        sock.receive_piece(option, length, offset, piece)
    assert caught.value.errno == errno.EINVAL
    with pytest.raises(Refused):
        sock.receive_piece(TRUSTED, 10, 4, b"morels")


def test_a_first_piece_begins_anew() -> None:
    sock = a_socket()
    sock.receive_piece(TRUSTED, 10, 0, b"good")
    assert sock.receive_piece(CHAIN, 5, 0, b"other") == b"other"


def test_an_unknown_socket_is_ebadf() -> None:
    sockets = Sockets()
    sockets.add(a_socket())
    assert sockets.get(1).comm == "curl"
    assert sockets.forget(1) is not None
    assert sockets.forget(1) is None
    with pytest.raises(Refused) as caught:
        sockets.get(1)
    assert caught.value.errno == errno.EBADF
