# SPDX-License-Identifier: BSD-3-Clause
"""What the administrator allows. A program can tighten it for its own socket, never weaken it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

TLS_1_2 = 0x0303
TLS_1_3 = 0x0304

VERSION_NAMES = {TLS_1_2: "TLS 1.2", TLS_1_3: "TLS 1.3"}

TransportChoice = Literal["auto", "ktls", "channel"]


@dataclass(frozen=True, slots=True)
class Policy:
    """The rules for every connection; the defaults are secure as they stand."""

    version_min: int = TLS_1_2
    version_max: int = TLS_1_3
    # Forward secrecy and authenticated encryption only (RFC 9325, 4.2). AES-128 comes first: it
    # is as safe in TLS as AES-256, and faster.
    ciphers12: str = (
        "ECDHE-ECDSA-AES128-GCM-SHA256:ECDHE-RSA-AES128-GCM-SHA256:"
        "ECDHE-ECDSA-AES256-GCM-SHA384:ECDHE-RSA-AES256-GCM-SHA384:"
        "ECDHE-ECDSA-CHACHA20-POLY1305:ECDHE-RSA-CHACHA20-POLY1305"
    )
    ciphers13: str = "TLS_AES_128_GCM_SHA256:TLS_AES_256_GCM_SHA384:TLS_CHACHA20_POLY1305_SHA256"
    trust_store: Path = Path("/etc/ssl/certs/ca-certificates.crt")
    program_trust: bool = True  # may a program name its own trusted certificates?
    # auto: kernel TLS where it works, else the channel. ktls and channel: that one or failure.
    transport: TransportChoice = "auto"
    handshake_timeout: float = 30.0  # seconds, from its first message on
    handshakes_per_listener: int = 512  # under way at once
    handshakes_total: int = 2048  # of all listeners
    session_timeout: int = 7200  # seconds that a session ticket of ours may be used
    close_timeout: float = 60.0  # seconds a closed channel may take to deliver what was written

    def cipher_names(self) -> tuple[str, ...]:
        """Names of all allowed ciphers, TLS 1.3's first, each version's most wanted first."""
        return (*self.ciphers13.split(":"), *self.ciphers12.split(":"))
