# SPDX-License-Identifier: BSD-3-Clause
"""Hand a connection's keys to kernel TLS (Documentation/networking/tls.rst, linux/tls.h)."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct

from ssad.errors import HandshakeError
from ssad.keys import Aead, KernelKeys, TrafficKey
from ssad.policy import TLS_1_3

TCP_ULP = 31  # linux/tcp.h
SOL_TLS = 282  # linux/socket.h
TLS_TX = 1  # linux/tls.h
TLS_RX = 2
TLS_RX_EXPECT_NO_PAD = 4

_CIPHER_TYPES = {  # TLS_CIPHER_*
    Aead.AES_128_GCM: 51,
    Aead.AES_256_GCM: 52,
    Aead.CHACHA20_POLY1305: 54,
}
_GCM_SALT_LENGTH = 4


def install(sock: socket.socket, keys: KernelKeys) -> None:
    """Let the kernel encrypt and decrypt what goes over a TCP socket from now on.

    The next byte to send and to receive must be the first one of a record.

    Raises OSError if the kernel can't do it; its text says which step failed. The socket is still
    good then for records that someone else encrypts. Raises HandshakeError (ECONNABORTED) if the
    kernel took one direction only: the socket is good for nothing.
    """
    # Packed first, so that nothing can go wrong between the steps but the steps.
    receive = crypto_info(keys.version, keys.aead, keys.receive)
    send = crypto_info(keys.version, keys.aead, keys.send)
    try:
        sock.setsockopt(socket.IPPROTO_TCP, TCP_ULP, b"tls")
    except OSError as error:
        raise OSError(error.errno, _ulp_text(error.errno or 0)) from error
    try:
        # A protocol with no keys passes bytes on as they are, so this failure does no harm yet.
        sock.setsockopt(SOL_TLS, TLS_TX, send)
    except OSError as error:
        raise OSError(error.errno, _keys_text(keys, "sending", error)) from error
    try:
        sock.setsockopt(SOL_TLS, TLS_RX, receive)
    except OSError as error:
        raise HandshakeError(errno.ECONNABORTED, _keys_text(keys, "receiving", error)) from error
    if keys.version == TLS_1_3:
        # The kernel then decrypts straight into the program's buffer, a third faster, and once more
        # elsewhere if the record turns out to be padded or no data. A kernel that does not know the
        # option is only slower.
        with contextlib.suppress(OSError):
            sock.setsockopt(SOL_TLS, TLS_RX_EXPECT_NO_PAD, 1)


def crypto_info(version: int, aead: Aead, key: TrafficKey) -> bytes:
    """Pack struct tls12_crypto_info_*: info, iv, key, salt, rec_seq. Made for TLS 1.3 as well."""
    # ChaCha20-Poly1305 has no salt: all 12 bytes of the nonce are called iv.
    salt_length = 0 if aead is Aead.CHACHA20_POLY1305 else _GCM_SALT_LENGTH
    salt, iv = key.nonce[:salt_length], key.nonce[salt_length:]
    return (
        struct.pack("=HH", version, _CIPHER_TYPES[aead])
        + iv
        + key.key
        + salt
        + struct.pack("!Q", key.sequence)
    )


def _ulp_text(error: int) -> str:
    text = f"The kernel did not put TLS onto the TCP connection: {os.strerror(error)}"
    match error:
        case errno.ENOENT:
            return f"{text}; its module tls is not loaded (modprobe tls)."
        case errno.ENOTCONN:
            return f"{text}; the peer has closed its side already."
        case _:
            return f"{text}."


def _keys_text(keys: KernelKeys, direction: str, error: OSError) -> str:
    return (
        f"The kernel's TLS did not take the {keys.aead.value[0]} key for {direction}: "
        f"{os.strerror(error.errno or 0)}."
    )
