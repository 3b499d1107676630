# SPDX-License-Identifier: BSD-3-Clause
"""What a program has set about revocation, and what that makes of the policy's rules.

Every one of these options is 0 or 1. A program can ask for more checks than the policy does, and
for fresher answers, but not for fewer or staler ones.
"""

from __future__ import annotations

import errno
import struct
from dataclasses import dataclass, replace

from ssad.errors import Refused
from ssad.policy import Policy
from ssad.wire import TlsOption

# In the attribute `switches`, bit n is the value of the option that is this one + n.
_FIRST_SWITCH = TlsOption.TLS_REVOCATION_CHECKS

# Those that are checks, with their names in Checks and the policy.
_KINDS = {
    TlsOption.TLS_OCSP_STAPLED_CHECKS: "ocsp_stapled",
    TlsOption.TLS_OCSP_CHECKS: "ocsp",
    TlsOption.TLS_CRL_CHECKS: "crl",
}
# Those that the policy can only take away.
_PERMISSIONS = {
    TlsOption.TLS_CACHED_REV_CHECKS: "revocation_cache",
    TlsOption.TLS_SERVER_OCSP_STAPLING: "server_stapling",
}
OPTIONS = frozenset((TlsOption.TLS_REVOCATION_CHECKS, *_KINDS, *_PERMISSIONS))


@dataclass(frozen=True, slots=True)
class Rules:
    """How the certificates of one connection's peer are checked for revocation.

    A certificate that any of the checks finds revoked is refused. If `ocsp` or `crl` is on, one of
    the checks has to find it good: the stapled response, the responder's, or the CRL.
    """

    stapled: bool  # ask for a stapled response, and refuse a bad one
    want_staple: bool  # refuse that there is none, unless `ocsp` or `crl` does instead
    ocsp: bool
    crl: bool
    cached: bool

    @property
    def online(self) -> bool:
        """Whether somebody has to be asked, if no stapled response has told all."""
        return self.ocsp or self.crl


@dataclass(frozen=True, slots=True)
class Checks:
    """What a program has set. None: what the policy says."""

    ocsp_stapled: bool | None = None
    ocsp: bool | None = None
    crl: bool | None = None
    revocation_cache: bool | None = None
    server_stapling: bool | None = None

    def set(self, option: TlsOption, value: bytes, policy: Policy) -> Checks:
        """Return these with one of OPTIONS changed.

        Raises Refused: EINVAL if the value is neither 0 nor 1, EPROTO if it would weaken the
        policy.
        """
        on = _switch(option, value)
        if option in _PERMISSIONS:
            name = _PERMISSIONS[option]
            if on and not getattr(policy, name):
                raise Refused(
                    errno.EPROTO, f"{option.name} can't be 1: the policy has {name} turned off."
                )
            return replace(self, **{name: on})
        names = [_KINDS[option]] if option in _KINDS else list(_KINDS.values())
        wanted = [name for name in names if getattr(policy, name)]
        if wanted and not on:
            raise Refused(
                errno.EPROTO,
                f"{option.name} can't be 0: the policy wants certificates checked "
                f"({', '.join(wanted)}).",
            )
        return replace(self, **dict.fromkeys(names, on))

    def switches(self, policy: Policy) -> int:
        """Return what getsockopt gives for all OPTIONS, as the attribute `switches` has it."""
        values = {option: self._is(name, policy) for option, name in _KINDS.items()}
        values[TlsOption.TLS_REVOCATION_CHECKS] = any(values.values())
        values |= {option: self._may(name, policy) for option, name in _PERMISSIONS.items()}
        return sum(1 << option - _FIRST_SWITCH for option, on in values.items() if on)

    def rules(self, policy: Policy) -> Rules:
        """Return how the peer of this socket is checked."""
        return Rules(
            stapled=self._is("ocsp_stapled", policy),
            want_staple=bool(self.ocsp_stapled),
            ocsp=self._is("ocsp", policy),
            crl=self._is("crl", policy),
            cached=self._may("revocation_cache", policy),
        )

    def staples(self, policy: Policy) -> bool:
        """Tell whether a listening socket staples."""
        return self._may("server_stapling", policy)

    def _is(self, name: str, policy: Policy) -> bool:
        return bool(getattr(self, name) or getattr(policy, name))

    def _may(self, name: str, policy: Policy) -> bool:
        return getattr(self, name) is not False and bool(getattr(policy, name))


def _switch(option: TlsOption, value: bytes) -> bool:
    number = int(struct.unpack("=I", value)[0]) if len(value) == 4 else None
    if number not in {0, 1}:
        raise Refused(errno.EINVAL, f"{option.name} wants an int: 0 or 1.")
    return number == 1
