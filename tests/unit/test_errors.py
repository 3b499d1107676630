# SPDX-License-Identifier: BSD-3-Clause
"""Failures are an errno and a sentence."""

from __future__ import annotations

import errno

import pytest

from ssad import errors
from ssad.errors import HandshakeError


@pytest.mark.parametrize(
    ("error", "number", "text"),
    [
        (
            errors.peer_closed(),
            errno.ECONNABORTED,
            (
                "The peer closed the connection in the middle of the TLS handshake; "
                "its own log may say why."
            ),
        ),
        (
            errors.peer_reset(ConnectionResetError(errno.ECONNRESET, "")),
            errno.ECONNABORTED,
            "The peer reset the connection in the middle of the TLS handshake.",
        ),
        (
            errors.peer_reset(OSError(errno.EHOSTUNREACH, "")),
            errno.ECONNABORTED,
            "The TCP connection failed in the middle of the TLS handshake: No route to host.",
        ),
        (
            errors.deadline(30.0),
            errno.EPROTO,
            (
                "The peer did not finish the TLS handshake within 30 seconds; "
                "perhaps the port does not speak TLS."
            ),
        ),
    ],
)
def test_what_went_wrong_is_told(error: HandshakeError, number: int, text: str) -> None:
    assert error.errno == number
    assert str(error) == error.text == text


def test_what_a_peer_put_into_a_sentence_can_not_drive_a_terminal() -> None:
    assert HandshakeError(errno.EPROTO, "CN=\x1b[2J\n.").text == "CN=?[2J?."
