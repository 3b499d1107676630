# SPDX-License-Identifier: BSD-3-Clause
"""What the administrator allows. A program can tighten it for its own socket, never weaken it.

Each rule is declared once, here: its place in the policy file, what is allowed, its default and
what it means. The file's reader, `ssad config`, the command line and the man page follow.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, get_type_hints

from ssad.values import Choice, Count, File, Flag, Kind, Names, Seconds

TLS_1_2 = 0x0303
TLS_1_3 = 0x0304

VERSION_NAMES = {TLS_1_2: "TLS 1.2", TLS_1_3: "TLS 1.3"}

TransportChoice = Literal["auto", "ktls", "channel"]


@dataclass(frozen=True, slots=True)
class Key:
    """How the policy file says one of the rules."""

    path: str  # its table, a dot, its name
    kind: Kind
    doc: str  # a sentence, with the unit

    @property
    def table(self) -> str:
        """The table of the file that it is in."""
        return self.path.partition(".")[0]

    @property
    def name(self) -> str:
        """Its name in this table."""
        return self.path.partition(".")[2]

    def __str__(self) -> str:
        return self.path


_VERSION = Choice({"1.2": TLS_1_2, "1.3": TLS_1_3})
_TRANSPORT = Choice({"auto": "auto", "ktls": "ktls", "channel": "channel"})
_DAY = 86400

HANDSHAKE_TIMEOUT = Seconds(0.01, 3600)  # an option of the command line has it as well


@dataclass(frozen=True, slots=True)
class Policy:
    """The rules for every connection; the defaults are secure as they stand."""

    version_min: Annotated[
        int, Key("tls.version_min", _VERSION, "The lowest version of TLS that is spoken.")
    ] = TLS_1_2
    version_max: Annotated[
        int, Key("tls.version_max", _VERSION, "The highest version of TLS that is spoken.")
    ] = TLS_1_3
    # Forward secrecy and authenticated encryption only (RFC 9325, 4.2). AES-128 comes first: it
    # is as safe in TLS as AES-256, and faster.
    ciphers12: Annotated[
        str,
        Key(
            "tls.ciphers_tls12",
            Names(),
            "The ciphers of TLS 1.2 by their OpenSSL names, the most wanted first; none without "
            "encryption or without certificates.",
        ),
    ] = (
        "ECDHE-ECDSA-AES128-GCM-SHA256:ECDHE-RSA-AES128-GCM-SHA256:"
        "ECDHE-ECDSA-AES256-GCM-SHA384:ECDHE-RSA-AES256-GCM-SHA384:"
        "ECDHE-ECDSA-CHACHA20-POLY1305:ECDHE-RSA-CHACHA20-POLY1305"
    )
    ciphers13: Annotated[
        str,
        Key(
            "tls.ciphers_tls13",
            Names(),
            "The ciphers of TLS 1.3 by their names, the most wanted first.",
        ),
    ] = "TLS_AES_128_GCM_SHA256:TLS_AES_256_GCM_SHA384:TLS_CHACHA20_POLY1305_SHA256"

    trust_store: Annotated[
        Path,
        Key(
            "trust.store",
            File(),
            "PEM file with the certificates that are trusted; the user that ssad runs as has to be "
            "able to read it.",
        ),
    ] = Path("/etc/ssl/certs/ca-certificates.crt")
    program_trust: Annotated[
        bool,
        Key(
            "trust.programs_may_choose",
            Flag(),
            "Whether a program may name the certificates that it trusts instead, with "
            "TLS_TRUSTED_PEER_CERTIFICATES.",
        ),
    ] = True
    # As far as OpenSSL counts: certificates between the peer's own and the trusted one.
    verify_depth: Annotated[
        int,
        Key(
            "trust.depth",
            Count(0, 100),
            "How many certificates there may be between a peer's own and a trusted one.",
        ),
    ] = 10

    session_timeout: Annotated[
        int,
        Key(
            "sessions.timeout",
            # RFC 8446, 4.6.1: no ticket lives longer.
            Count(1, 7 * _DAY),
            "Seconds for which a session may be resumed; TLS_SESSION_TTL may say less.",
        ),
    ] = 7200
    client_sessions: Annotated[
        bool,
        Key(
            "sessions.clients",
            Flag(),
            "Whether programs may resume sessions as clients, with TLS_SESSION_REUSE.",
        ),
    ] = True
    client_sessions_max: Annotated[
        int,
        Key(
            "sessions.clients_max",
            Count(1, 1_000_000),
            "How many sessions of clients each worker keeps.",
        ),
    ] = 4096

    ocsp_stapled: Annotated[
        bool,
        Key(
            "revocation.ocsp_stapled",
            Flag(),
            "Whether clients ask servers for a stapled OCSP response and heed it.",
        ),
    ] = True
    ocsp: Annotated[
        bool,
        Key(
            "revocation.ocsp",
            Flag(),
            "Whether OCSP responders are asked about the certificates of peers.",
        ),
    ] = False
    crl: Annotated[
        bool,
        Key(
            "revocation.crl",
            Flag(),
            "Whether revocation lists are fetched for the certificates of peers.",
        ),
    ] = False
    revocation_cache: Annotated[
        bool,
        Key(
            "revocation.cache",
            Flag(),
            "Whether OCSP responses and revocation lists are kept until they expire.",
        ),
    ] = True
    revocation_timeout: Annotated[
        float,
        Key(
            "revocation.timeout",
            Seconds(0.01, 300),
            "Seconds that asking about a certificate may take.",
        ),
    ] = 5.0
    server_stapling: Annotated[
        bool,
        Key(
            "revocation.server_stapling",
            Flag(),
            "Whether servers fetch OCSP responses for their own certificates and staple them.",
        ),
    ] = True

    resolve_timeout: Annotated[
        float,
        Key(
            "hosts.resolve_timeout",
            Seconds(0.01, 300),
            "Seconds that the resolution of a host name may take.",
        ),
    ] = 10.0
    attempt_delay: Annotated[
        float,
        Key(
            "hosts.attempt_delay",
            # RFC 8305, 5 and 8: at least 10 ms, at most 2 s.
            Seconds(0.01, 2),
            "Seconds before the next address of a host is tried as well, if none has answered "
            "(RFC 8305).",
        ),
    ] = 0.25

    transport: Annotated[
        TransportChoice,
        Key(
            "transport.mode",
            _TRANSPORT,
            "What carries the data: auto is kernel TLS where it works, else a channel through "
            "ssad; ktls and channel are that one, or no connection.",
        ),
    ] = "auto"

    handshake_timeout: Annotated[
        float,
        Key(
            "deadlines.handshake",
            HANDSHAKE_TIMEOUT,
            "Seconds that a TLS handshake may take, once TCP is connected.",
        ),
    ] = 30.0
    close_timeout: Annotated[
        float,
        Key(
            "deadlines.close",
            Seconds(0.01, 3600),
            "Seconds that a closed channel may take to deliver what was written before.",
        ),
    ] = 60.0
    leave_timeout: Annotated[
        float,
        Key(
            "deadlines.leave",
            Seconds(0.01, 7 * _DAY),
            "Seconds that channels and handshakes of old workers may go on after 'ssad restart'; "
            "what is left then has two more to end.",
        ),
    ] = 3600.0

    handshakes_per_listener: Annotated[
        int,
        Key(
            "limits.handshakes_per_listener",
            Count(1, 65536),
            "How many clients of one listening socket may be in their handshakes at once, for each "
            "worker.",
        ),
    ] = 512
    handshakes_total: Annotated[
        int,
        Key(
            "limits.handshakes_total",
            Count(1, 65536),
            "How many clients of all listening sockets may be in their handshakes at once, for "
            "each worker.",
        ),
    ] = 2048
    connects_total: Annotated[
        int,
        Key(
            "limits.connects_total",
            Count(1, 65536),
            "How many connects may be in their handshakes at once, for each worker; further ones "
            "wait for their turn.",
        ),
    ] = 1024
    connects_per_user: Annotated[
        int,
        Key(
            "limits.connects_per_user",
            Count(1, 65536),
            "How many of these may be one user's, so that no user can take all turns.",
        ),
    ] = 256

    def cipher_names(self) -> tuple[str, ...]:
        """Names of all allowed ciphers, TLS 1.3's first, each version's most wanted first."""
        return tuple(name for name in f"{self.ciphers13}:{self.ciphers12}".split(":") if name)


# By the names of Policy's fields, in their order.
KEYS: dict[str, Key] = {
    name: hint.__metadata__[0] for name, hint in get_type_hints(Policy, include_extras=True).items()
}
