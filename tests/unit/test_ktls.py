# SPDX-License-Identifier: BSD-3-Clause
"""What the kernel is told. That it works with it is shown where there is a kernel with TLS."""

from __future__ import annotations

import errno
import socket

import pytest

from ssad import ktls
from ssad.keys import Aead, KernelKeys, TrafficKey
from ssad.policy import TLS_1_2, TLS_1_3

NONCE = bytes(range(100, 112))


@pytest.mark.parametrize("version", [TLS_1_2, TLS_1_3])
@pytest.mark.parametrize(
    ("aead", "cipher_type", "iv", "salt"),
    [
        (Aead.AES_128_GCM, 51, NONCE[4:], NONCE[:4]),
        (Aead.AES_256_GCM, 52, NONCE[4:], NONCE[:4]),
        (Aead.CHACHA20_POLY1305, 54, NONCE, b""),
    ],
)
def test_crypto_info_has_the_layout_of_linux_tls_h(
    version: int, aead: Aead, cipher_type: int, iv: bytes, salt: bytes
) -> None:
    key = bytes(range(aead.key_length))

    packed = ktls.crypto_info(version, aead, TrafficKey(key, NONCE, sequence=0x0102))

    # struct tls_crypto_info, then iv, key, salt, rec_seq; numbers are the host's, rec_seq is not.
    assert packed[:4] == version.to_bytes(2, "little") + cipher_type.to_bytes(2, "little")
    assert packed[4:] == iv + key + salt + b"\0\0\0\0\0\0\1\2"


def test_a_socket_that_takes_no_tls_is_left_as_it_was() -> None:
    key = TrafficKey(bytes(16), NONCE, sequence=0)
    found = KernelKeys(TLS_1_3, Aead.AES_128_GCM, send=key, receive=key)
    one, other = socket.socketpair()
    with one, other:
        with pytest.raises(OSError, match="did not put TLS onto the TCP connection") as caught:
            ktls.install(one, found)
        one.send(b"goes on")
        assert other.recv(100) == b"goes on"
    assert caught.value.errno == errno.EOPNOTSUPP
    assert str(caught.value.strerror).endswith(".")
