# SPDX-License-Identifier: BSD-3-Clause
"""What a program has set on one TLS socket: option values, parsed and checked."""

from __future__ import annotations

import errno
import functools
import ipaddress
import re
import struct
from collections.abc import Callable
from dataclasses import dataclass, field

import idna
from cryptography import x509
from OpenSSL import SSL

from ssad import credentials
from ssad.checks import OPTIONS as CHECK_OPTIONS
from ssad.checks import Checks
from ssad.credentials import Identity
from ssad.errors import Refused
from ssad.identity import subject
from ssad.policy import TLS_1_2, TLS_1_3, VERSION_NAMES, Policy
from ssad.wire import HOST_NAME_MAX, TlsOption

# RFC 7301, 3.1: a protocol name has 1 to 255 bytes, the whole list fits into 16 bits of length.
ALPN_NAME_MAX = 255
ALPN_LIST_MAX = 65535

# Values of TLS_REQUEST_PEER_AUTH.
AUTH_NONE, AUTH_OPTIONAL, AUTH_REQUIRED = range(3)

# Underscores are no part of a host name, yet they occur in DNS, and certificates match them.
_LABEL = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?<!-)", re.ASCII)


@dataclass(slots=True)
class Settings:
    """The settings of one socket. None or empty: what the policy says."""

    host_name: str | None = None  # lower-case A-labels, or an IP address in canonical form
    trusted: bytes | None = None  # PEM
    identities: tuple[Identity, ...] = ()  # in the order in which they were set
    pending_chain: bytes | None = field(default=None, repr=False)  # PEM; its key is to follow
    request_peer_auth: int = AUTH_NONE
    alpn: tuple[str, ...] = ()
    version_min: int | None = None
    version_max: int | None = None
    trusted_ciphers: tuple[str, ...] | None = None
    disabled_ciphers: frozenset[str] = frozenset()
    checks: Checks = field(default_factory=Checks)  # of revocation
    session_ttl: int | None = None  # seconds
    session_reuse: bool = False

    def set(self, option: TlsOption, value: bytes, policy: Policy) -> None:
        """Take an option's whole value.

        Raises Refused: EINVAL if the value is malformed, EPROTO if it would weaken the policy,
        ENOPROTOOPT if the option can't be set. The settings are unchanged then.
        """
        if option in CHECK_OPTIONS:
            self.checks = self.checks.set(option, value, policy)
            return
        setter = _SETTERS.get(option)
        if setter is None:
            raise Refused(errno.ENOPROTOOPT, f"{option.name} can't be set on this socket.")
        setter(self, value, policy)

    def get(self, option: TlsOption, policy: Policy) -> bytes:  # noqa: PLR0911 - one an option
        """Return an option's value. Raises Refused with ENOPROTOOPT if it can't be asked for."""
        match option:
            case TlsOption.TLS_HOSTNAME:
                return (self.host_name or "").encode()
            case TlsOption.TLS_ALPN:
                return ",".join(self.alpn).encode()
            case TlsOption.TLS_REQUEST_PEER_AUTH:
                return struct.pack("=I", self.request_peer_auth)
            case TlsOption.TLS_VERSION_MIN:
                return struct.pack("=I", max(self.version_min or 0, policy.version_min))
            case TlsOption.TLS_VERSION_MAX:
                highest = min(self.version_max or policy.version_max, policy.version_max)
                return struct.pack("=I", highest)
            case TlsOption.TLS_TRUSTED_CIPHERS:
                return ":".join(self.ciphers(policy)).encode()
            case TlsOption.TLS_SESSION_TTL:
                return struct.pack("=I", self.session_lifetime(policy))
            case _:
                raise Refused(errno.ENOPROTOOPT, f"{option.name} can't be asked for.")

    def session_lifetime(self, policy: Policy) -> int:
        """Return the seconds that a session may be resumed."""
        return min(self.session_ttl or policy.session_timeout, policy.session_timeout)

    def ciphers(self, policy: Policy) -> tuple[str, ...]:
        """Names of the ciphers that this socket may use, the most wanted first."""
        allowed = policy.cipher_names()
        names = allowed if self.trusted_ciphers is None else self.trusted_ciphers
        # The policy may be another one than when they were set.
        return tuple(
            name for name in names if name in allowed and name not in self.disabled_ciphers
        )

    def ciphers12(self, policy: Policy) -> str:
        """Return the TLS 1.2 part of `ciphers` as OpenSSL wants it; may be empty."""
        return ":".join(name for name in self.ciphers(policy) if not name.startswith("TLS_"))

    def ciphers13(self, policy: Policy) -> str:
        """Return the TLS 1.3 part of `ciphers` as OpenSSL wants it; may be empty."""
        return ":".join(name for name in self.ciphers(policy) if name.startswith("TLS_"))

    def versions(self, policy: Policy) -> tuple[int, int]:
        """Lowest and highest version to offer: the ones that have a cipher left.

        Raises Refused with EINVAL if the settings contradict each other, so that none is left.
        """
        low = max(self.version_min or 0, policy.version_min)
        high = min(self.version_max or policy.version_max, policy.version_max)
        if not self.ciphers12(policy):
            low = max(low, TLS_1_3)
        if not self.ciphers13(policy):
            high = min(high, TLS_1_2)
        if low > high:
            raise Refused(
                errno.EINVAL,
                "No cipher is left for the TLS versions that this socket may use; "
                "TLS_VERSION_MIN, TLS_VERSION_MAX and the cipher options contradict each other.",
            )
        return low, high

    def connect_to(self, name: str) -> None:
        """Take the name that connect() gave in place of an address: it is the one to verify.

        Raises Refused with EINVAL if it is no name, or TLS_HOSTNAME has another one.
        """
        host_name = parse_host_name(name)
        if self.host_name not in {None, host_name}:
            raise _invalid(
                f"connect() to {_show(name)}, while TLS_HOSTNAME is {_show(self.host_name or '')}: "
                "leave one of them out."
            )
        self.host_name = host_name

    def check(self, policy: Policy) -> None:
        """Check what can only be checked once all is set. Raises Refused with EINVAL."""
        self.versions(policy)
        if self.pending_chain is not None:
            raise Refused(
                errno.EINVAL,
                "TLS_CERTIFICATE_CHAIN was set without its key; set TLS_PRIVATE_KEY after it.",
            )

    def check_listen(self, policy: Policy) -> None:
        """Check what listen() needs besides. Raises Refused with EINVAL."""
        self.check(policy)
        if not self.identities:
            raise Refused(
                errno.EINVAL,
                "listen() needs a certificate: set TLS_CERTIFICATE_CHAIN and TLS_PRIVATE_KEY "
                "before it.",
            )

    def listen_warnings(self) -> list[str]:
        """Say in sentences why clients are likely to refuse the certificates, now or for lack of
        an intermediate one.

        That one is missing is taken for granted if a certificate comes alone and did not sign
        itself: hardly any root issues servers' certificates directly.
        """
        return [warning for one in self.identities for warning in credentials.warnings(one)]


def parse_host_name(name: str) -> str:
    """Return a host name as lower-case A-labels without final dot, or an IP address as written in
    RFC 5952. Raises Refused with EINVAL if it is neither."""
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        pass
    else:
        if isinstance(address, ipaddress.IPv6Address) and address.scope_id is not None:
            raise _invalid(f"{name!r} has a zone, which no certificate can name; leave it out.")
        return str(address)

    ascii_name = name.removesuffix(".").lower()
    if not ascii_name.isascii():
        try:
            ascii_name = idna.encode(ascii_name, uts46=True).decode("ascii")
        except idna.IDNAError as error:
            raise _invalid(f"{_show(name)} is no host name (RFC 5891): {error}.") from error
    labels = ascii_name.split(".")
    if len(ascii_name) > HOST_NAME_MAX or not all(_LABEL.fullmatch(label) for label in labels):
        raise _invalid(
            f"{_show(name)} is no host name: wanted up to {HOST_NAME_MAX} characters, in labels "
            "of 1 to 63 letters, digits and hyphens with dots between them."
        )
    if labels[-1].isdigit():
        # RFC 1123, 2.1: a name can't look like an address. "127.1" would be one to inet_aton().
        raise _invalid(f"{_show(name)} is neither a host name nor a complete IP address.")
    return ascii_name


def _set_host_name(settings: Settings, value: bytes, _policy: Policy) -> None:
    settings.host_name = parse_host_name(_text(TlsOption.TLS_HOSTNAME, value))


def _set_trusted(settings: Settings, value: bytes, policy: Policy) -> None:
    option = TlsOption.TLS_TRUSTED_PEER_CERTIFICATES
    if not policy.program_trust:
        raise Refused(
            errno.EPROTO,
            f"{option.name} is refused: the policy does not let programs choose whom to trust.",
        )
    try:
        x509.load_pem_x509_certificates(value)
    except ValueError as error:
        raise _invalid(
            f"{option.name} holds no PEM certificate, or one that can't be read."
        ) from error
    settings.trusted = value


def _set_chain(settings: Settings, value: bytes, _policy: Policy) -> None:
    if settings.pending_chain is not None:
        before = x509.load_pem_x509_certificate(settings.pending_chain)
        raise _invalid(
            "TLS_CERTIFICATE_CHAIN was set twice in a row; the key of the previous chain "
            f"({subject(before)}) is missing. Set TLS_PRIVATE_KEY after each chain."
        )
    settings.pending_chain = credentials.load_chain(value)


def _set_private_key(settings: Settings, value: bytes, _policy: Policy) -> None:
    if settings.pending_chain is None:
        raise _invalid("TLS_PRIVATE_KEY needs its certificate: set TLS_CERTIFICATE_CHAIN first.")
    settings.identities += (credentials.pair(settings.pending_chain, value),)
    settings.pending_chain = None


def _set_alpn(settings: Settings, value: bytes, _policy: Policy) -> None:
    names = tuple(_text(TlsOption.TLS_ALPN, value).split(","))
    if not all(name.isascii() and 1 <= len(name) <= ALPN_NAME_MAX for name in names):
        raise _invalid(
            f"TLS_ALPN wants protocol names of 1 to {ALPN_NAME_MAX} ASCII characters with commas "
            "between them, as in 'h2,http/1.1'."
        )
    if sum(len(name) + 1 for name in names) > ALPN_LIST_MAX:
        raise _invalid("TLS_ALPN holds more protocol names than a ClientHello can carry.")
    settings.alpn = names


def _set_request_peer_auth(settings: Settings, value: bytes, _policy: Policy) -> None:
    level = int(struct.unpack("=I", value)[0]) if len(value) == 4 else None
    if level not in {AUTH_NONE, AUTH_OPTIONAL, AUTH_REQUIRED}:
        raise _invalid(
            "TLS_REQUEST_PEER_AUTH wants an int: 0 for no client certificate, 1 for an optional "
            "one, 2 for a required one."
        )
    settings.request_peer_auth = level


def _set_version_min(settings: Settings, value: bytes, policy: Policy) -> None:
    version = _version(TlsOption.TLS_VERSION_MIN, value, policy)
    _check_range(version, settings.version_max or policy.version_max)
    settings.version_min = version


def _set_version_max(settings: Settings, value: bytes, policy: Policy) -> None:
    version = _version(TlsOption.TLS_VERSION_MAX, value, policy)
    _check_range(settings.version_min or policy.version_min, version)
    settings.version_max = version


def _version(option: TlsOption, value: bytes, policy: Policy) -> int:
    version = int(struct.unpack("=I", value)[0]) if len(value) == 4 else None
    if version not in VERSION_NAMES:
        raise _invalid(f"{option.name} wants an int: 0x0303 for TLS 1.2 or 0x0304 for TLS 1.3.")
    if not policy.version_min <= version <= policy.version_max:
        raise Refused(
            errno.EPROTO,
            f"{option.name} can't be {VERSION_NAMES[version]}: the policy allows "
            f"{VERSION_NAMES[policy.version_min]} to {VERSION_NAMES[policy.version_max]}.",
        )
    return version


def _check_range(low: int, high: int) -> None:
    if low > high:
        raise _invalid(
            f"TLS_VERSION_MIN ({VERSION_NAMES[low]}) would be above "
            f"TLS_VERSION_MAX ({VERSION_NAMES[high]})."
        )


def _set_trusted_ciphers(settings: Settings, value: bytes, policy: Policy) -> None:
    option = TlsOption.TLS_TRUSTED_CIPHERS
    names = tuple(dict.fromkeys(_text(option, value).split(":")))
    for name in names:
        _check_cipher(option, name, policy)
    settings.trusted_ciphers = names
    settings.disabled_ciphers = frozenset()  # the new list is the program's whole will


def _set_disable_cipher(settings: Settings, value: bytes, policy: Policy) -> None:
    option = TlsOption.TLS_DISABLE_CIPHER
    name = _text(option, value)
    _check_cipher_known(option, name)
    if set(settings.ciphers(policy)) <= {name}:
        raise _invalid(f"{option.name}: {name} is the only cipher left.")
    settings.disabled_ciphers |= {name}


def _set_enable_cipher(settings: Settings, value: bytes, policy: Policy) -> None:
    option = TlsOption.TLS_ENABLE_CIPHER
    name = _text(option, value)
    _check_cipher(option, name, policy)
    settings.disabled_ciphers -= {name}
    if settings.trusted_ciphers is not None and name not in settings.trusted_ciphers:
        settings.trusted_ciphers += (name,)


def _set_session_ttl(settings: Settings, value: bytes, policy: Policy) -> None:
    seconds = int(struct.unpack("=I", value)[0]) if len(value) == 4 else 0
    if not seconds:
        raise _invalid("TLS_SESSION_TTL wants an int: the seconds that a session may be resumed.")
    if seconds > policy.session_timeout:
        raise Refused(
            errno.EPROTO,
            f"TLS_SESSION_TTL can't be {seconds} seconds: the policy allows "
            f"{policy.session_timeout}.",
        )
    settings.session_ttl = seconds


def _set_session_reuse(settings: Settings, value: bytes, policy: Policy) -> None:
    wanted = int(struct.unpack("=I", value)[0]) if len(value) == 4 else None
    if wanted not in {0, 1}:
        raise _invalid("TLS_SESSION_REUSE wants an int: 0 for full handshakes only, or 1.")
    if wanted and not policy.client_sessions:
        raise Refused(
            errno.EPROTO,
            "TLS_SESSION_REUSE is refused: the policy does not let clients resume sessions.",
        )
    settings.session_reuse = bool(wanted)


def _check_cipher(option: TlsOption, name: str, policy: Policy) -> None:
    _check_cipher_known(option, name)
    if name not in policy.cipher_names():
        raise Refused(errno.EPROTO, f"{option.name}: the policy does not allow {name}.")


def _check_cipher_known(option: TlsOption, name: str) -> None:
    if name not in known_ciphers():
        raise _invalid(f"{option.name}: {_show(name)} is not the OpenSSL name of a cipher.")


@functools.cache
def known_ciphers() -> frozenset[str]:
    """Names of all ciphers of TLS 1.2 and 1.3 that OpenSSL has, however weak they are."""
    context = SSL.Context(SSL.TLS_METHOD)
    context.set_cipher_list(b"ALL:COMPLEMENTOFALL:@SECLEVEL=0")
    # "ALL" does not speak of TLS 1.3, where OpenSSL leaves these two out by default.
    context.set_tls13_ciphersuites(
        b"TLS_AES_128_GCM_SHA256:TLS_AES_256_GCM_SHA384:TLS_CHACHA20_POLY1305_SHA256:"
        b"TLS_AES_128_CCM_SHA256:TLS_AES_128_CCM_8_SHA256"
    )
    return frozenset(SSL.Connection(context, None).get_cipher_list())


def _text(option: TlsOption, value: bytes) -> str:
    try:
        text = value.decode()
    except UnicodeDecodeError as error:
        raise _invalid(f"{option.name} is not UTF-8 text.") from error
    if not text.isprintable():
        raise _invalid(f"{option.name} has characters that can't be printed.")
    return text


def _show(text: str) -> str:
    """Quote what a program gave, short enough to leave room for the rest of the sentence."""
    return repr(text if len(text) <= 60 else text[:57] + "...")


def _invalid(text: str) -> Refused:
    return Refused(errno.EINVAL, text)


_SETTERS: dict[TlsOption, Callable[[Settings, bytes, Policy], None]] = {
    TlsOption.TLS_HOSTNAME: _set_host_name,
    TlsOption.TLS_TRUSTED_PEER_CERTIFICATES: _set_trusted,
    TlsOption.TLS_CERTIFICATE_CHAIN: _set_chain,
    TlsOption.TLS_PRIVATE_KEY: _set_private_key,
    TlsOption.TLS_ALPN: _set_alpn,
    TlsOption.TLS_REQUEST_PEER_AUTH: _set_request_peer_auth,
    TlsOption.TLS_VERSION_MIN: _set_version_min,
    TlsOption.TLS_VERSION_MAX: _set_version_max,
    TlsOption.TLS_TRUSTED_CIPHERS: _set_trusted_ciphers,
    TlsOption.TLS_DISABLE_CIPHER: _set_disable_cipher,
    TlsOption.TLS_ENABLE_CIPHER: _set_enable_cipher,
    TlsOption.TLS_SESSION_TTL: _set_session_ttl,
    TlsOption.TLS_SESSION_REUSE: _set_session_reuse,
}
