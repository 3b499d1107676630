# SPDX-License-Identifier: BSD-3-Clause
"""Failures that a program gets to see: an errno, and a sentence for TLS_ERROR."""

from __future__ import annotations

import errno
import os

from ssad.wire import TEXT_MAX, clip


def printable(text: str) -> str:
    """Return text that others have chosen so that it does a terminal or a log no harm."""
    return "".join(c if c.isprintable() else "?" for c in text)


class Refused(Exception):
    """A program's request can't be granted. `errno` is what its call fails with."""

    def __init__(self, errno: int, text: str) -> None:
        super().__init__(errno, text)
        self.errno = errno
        # Certificates and peers choose parts of it, terminals and logs show it.
        self.text = clip(printable(text), TEXT_MAX)

    def __str__(self) -> str:
        return self.text


class HandshakeError(Refused):
    """A TLS handshake failed."""


def peer_closed() -> HandshakeError:
    """The peer's FIN came before the handshake was done."""
    return HandshakeError(
        errno.ECONNABORTED,
        "The peer closed the connection in the middle of the TLS handshake; "
        "its own log may say why.",
    )


def peer_reset(error: OSError) -> HandshakeError:
    """TCP failed after it was established and before the handshake was done."""
    if isinstance(error, ConnectionResetError | BrokenPipeError):
        text = "The peer reset the connection in the middle of the TLS handshake."
    else:
        reason = os.strerror(error.errno or errno.EIO)
        text = f"The TCP connection failed in the middle of the TLS handshake: {reason}."
    return HandshakeError(errno.ECONNABORTED, text)


def deadline(seconds: float) -> HandshakeError:
    """The handshake was not done in time."""
    return HandshakeError(
        errno.EPROTO,
        f"The peer did not finish the TLS handshake within {seconds:g} seconds; "
        "perhaps the port does not speak TLS.",
    )
