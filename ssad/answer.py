# SPDX-License-Identifier: BSD-3-Clause
"""What an authority says of one certificate, in an OCSP response or a CRL, and until when."""

from __future__ import annotations

import datetime as dt
import enum
from dataclasses import dataclass

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes

from ssad.identity import UNREADABLE, subject

# How far an authority's clock and ours may be apart.
SKEW = dt.timedelta(minutes=5)

# What cryptography raises for an answer that it can't read, in whole or in part.
UNREADABLE_ANSWER = (*UNREADABLE, UnsupportedAlgorithm, TypeError)

# Collisions in what is shorter can be made, SHA-1's for one (RFC 9155).
_DIGEST_MIN = 28


class Unusable(Exception):
    """An answer proves nothing. The text says why, and goes on from "it"."""


class Status(enum.Enum):
    """What became of a certificate."""

    GOOD = enum.auto()
    REVOKED = enum.auto()
    UNKNOWN = enum.auto()


@dataclass(frozen=True, slots=True)
class Answer:
    """What was said. It holds from `since` until `until`."""

    status: Status
    since: dt.datetime
    until: dt.datetime
    revoked_on: dt.datetime | None = None
    reason: str = ""  # as RFC 5280, 5.3.1 names it; empty if none is given


def validity(
    since: dt.datetime, until: dt.datetime | None, now: dt.datetime
) -> tuple[dt.datetime, dt.datetime]:
    """Return from when until when an answer holds, given its thisUpdate and nextUpdate.

    One without an end is of use for as long as clocks may differ: its authority says that there
    can be a newer one at any time (RFC 6960, 4.2.2.1). Raises Unusable if that is not now.
    """
    if since > now + SKEW:
        raise Unusable(f"begins to hold on {time(since)} only")
    if until is None:
        until = since
    if until + SKEW < now:
        raise Unusable(f"held until {time(until)} only")
    return since, until + SKEW


def check_digest(algorithm: hashes.HashAlgorithm | None) -> None:
    """Raise Unusable if a signature is made of a weak digest. None: a signature without one."""
    if algorithm is not None and algorithm.digest_size < _DIGEST_MIN:
        raise Unusable(f"is signed with {algorithm.name}, which is too weak")


def refusal(certificate: x509.Certificate, answer: Answer, source: str) -> str:
    """Say why an answer speaks against a certificate; empty if it does not.

    `source` says what gave the answer.
    """
    name = subject(certificate)
    match answer.status:
        case Status.GOOD:
            return ""
        case Status.UNKNOWN:
            return (
                f"The certificate of {name} is unknown to its authority, says {source}; "
                "the policy wants one that is known to be good."
            )
        case Status.REVOKED:
            when = f" on {time(answer.revoked_on)}" if answer.revoked_on else ""
            why = f" ({answer.reason})" if answer.reason else ""
            return (
                f"The certificate of {name} was revoked{when}{why}, says {source}; "
                "the policy wants one that is not."
            )


def reason_name(flag: x509.ReasonFlags | None) -> str:
    """Name the reason of a revocation; empty if there is none to name."""
    return "" if flag in {None, x509.ReasonFlags.unspecified} else str(flag.value)


def time(when: dt.datetime) -> str:
    """Write a time as sentences have it."""
    return f"{when:%Y-%m-%d %H:%M:%S} UTC"
