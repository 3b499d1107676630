# SPDX-License-Identifier: BSD-3-Clause
"""A TLS handshake without I/O, a client's or a server's: records in, bytes to send out.

The caller feeds one record at a time and sends what it gets back. When `done`, everything that was
fed belonged to the handshake: whatever the peer sends next is for the transport.
"""

from __future__ import annotations

import abc
import datetime as dt
import errno
from dataclasses import dataclass, field

from cryptography import x509
from OpenSSL import SSL, crypto

from ssad import alerts, errors, identity, keys, records, verification
from ssad.alerts import Alert
from ssad.context import (
    Notes,
    ServerContexts,
    client_connection,
    resumed,
    server_name,
    verified_before,
)
from ssad.errors import HandshakeError
from ssad.keys import KernelKeys, Suite
from ssad.policy import TLS_1_2, TLS_1_3, VERSION_NAMES, Policy
from ssad.revocation import Peer
from ssad.sessions import Visit
from ssad.settings import AUTH_REQUIRED, Settings
from ssad.wire import CHAIN_MAX

_FLIGHT = 65536  # read from OpenSSL at once
_VERSION_NAMES = {0x0300: "SSL 3.0", 0x0301: "TLS 1.0", 0x0302: "TLS 1.1", **VERSION_NAMES}

# What a peer says of our certificate.
_CERTIFICATE_ALERTS = {
    Alert.BAD_CERTIFICATE,
    Alert.UNSUPPORTED_CERTIFICATE,
    Alert.CERTIFICATE_REVOKED,
    Alert.CERTIFICATE_EXPIRED,
    Alert.CERTIFICATE_UNKNOWN,
    Alert.UNKNOWN_CA,
}


@dataclass(frozen=True, slots=True)
class Result:
    """What a handshake agreed on."""

    version: int
    cipher: str  # OpenSSL's name
    alpn: str  # empty if none was chosen
    peer_identity: str  # empty if a client gave no certificate
    # PEM, as the peer sent it. Of a client whose session was resumed only its own certificate.
    peer_chain: bytes = field(repr=False)
    server_name: str  # the host name that a client asked for; empty if none, and for clients
    resumed: bool
    keys: KernelKeys | None  # None if kernel TLS does not know the cipher
    connection: SSL.Connection = field(repr=False)


class Handshake(abc.ABC):
    """One handshake. All errors but Refused from the constructor are HandshakeErrors; what the
    peer is to be told of them is in `pending_output()`."""

    _peer = "peer"  # what sentences call it
    # The secret of what is sent last in a TLS 1.3 handshake, as the keylog calls it.
    _alert_label = "CLIENT_HANDSHAKE_TRAFFIC_SECRET"

    def __init__(self, connection: SSL.Connection, settings: Settings, policy: Policy) -> None:
        self._connection = connection
        self._notes: Notes = connection.get_app_data()
        self._settings = settings
        self._policy = policy
        self._last_flight = b""
        self._alert_secret = b""
        self._checked = False
        self._result: Result | None = None

    @property
    def done(self) -> bool:
        """Whether the handshake has succeeded, once its last output is sent."""
        return self._result is not None

    @property
    def result(self) -> Result:
        """What was agreed on; to be asked for when done."""
        if self._result is None:
            raise RuntimeError("the handshake is not done")
        return self._result

    def start(self) -> bytes:
        """Return the first bytes to send; a server has none."""
        self._advance()
        return self.pending_output()

    def receive_record(self, record: bytes) -> bytes:
        """Take one record, as `records.read_record` returns it. Returns bytes to send, if any.

        Raises HandshakeError: EPROTO, or ECONNABORTED if the peer said that it closes.
        """
        # OpenSSL gets the bad ones as well, for it makes the alert.
        self._connection.bio_write(record)
        succeeded = self._advance(record)
        output = self.pending_output()
        if succeeded:
            self._result = self._conclude(output)
        self._last_flight = output or self._last_flight
        return output

    def unchecked_peer(self, uid: int) -> Peer | None:
        """Return the peer if it has to be checked for revocation before anything more is sent;
        `uid` is the user who wants it.

        To be asked for when there is something to send, or all is done. Returns it once. Raises
        HandshakeError (EPROTO) if it can't be checked.
        """
        rules = self._notes.rules
        if self._checked or not rules.online or not (self._notes.verified or self.done):
            return None
        self._checked = True
        connection = self._connection
        if self.done and not self.result.peer_chain:
            return None  # a client without a certificate
        chain = connection.get_verified_chain(as_cryptography=True)
        if chain is None:
            # Only a session that was resumed has none, and who checks resumes none.
            raise HandshakeError(
                errno.EPROTO,
                f"The certificate of the {self._peer} could not be checked for revocation: "
                "the session that was resumed does not have its issuer's.",
            )
        own_trust = self._settings.trusted is not None
        return Peer(chain, rules, self._notes.stapled, own_trust, uid)

    def alert(self, description: int) -> bytes:
        """Return a fatal alert to send instead of what `receive_record` has returned, which was
        the first to be encrypted. Empty if it can't be made."""
        if self._connection.get_protocol_version() != TLS_1_3:
            return records.fatal_alert(description)
        suite = keys.suite(self._connection.get_cipher_name() or "")
        if suite is None or not self._alert_secret:
            return b""
        return keys.tls13_alert(suite, self._alert_secret, description)

    def pending_output(self) -> bytes:
        """Return bytes that are to be sent and were not returned yet."""
        output = b""
        try:
            while True:
                output += self._connection.bio_read(_FLIGHT)
        except SSL.WantReadError:
            return output

    def _advance(self, record: bytes = b"") -> bool:
        """Let OpenSSL work. True if the handshake succeeded."""
        fault = records.fault(record, self._peer) if record else ""
        succeeded = False
        try:
            self._connection.do_handshake()
            succeeded = True
        except SSL.WantReadError:
            pass
        except SSL.ZeroReturnError as error:
            raise errors.peer_closed() from error
        except SSL.Error as error:
            raise HandshakeError(errno.EPROTO, fault or self._why(error, record)) from error
        if fault:
            raise HandshakeError(errno.EPROTO, fault)
        return succeeded

    def _why(self, error: SSL.Error, record: bytes) -> str:
        notes = self._notes
        if notes.refusal:
            return notes.refusal
        if notes.alert_received is not None:
            return self._refused_by_peer(notes.alert_received)
        reasons = [reason for *_, reason in error.args[0]] if error.args else []
        why = ", ".join(reasons) or "unknown error"
        found = ""
        if notes.alert_sent is not None:
            found = self._refused_by_us(notes.alert_sent, record, why)
            why += f"; it was told so with the alert {alerts.name(notes.alert_sent)}"
        return found or f"The {self._peer} broke the TLS protocol: {why}."

    def _refused_by_us(self, alert: int, _record: bytes, _why: str) -> str:
        """Say why OpenSSL sent an alert after a record; empty if the alert alone does not tell."""
        if alert == Alert.RECORD_OVERFLOW:
            return (
                f"The {self._peer} sent a TLS record with more than {records.PLAINTEXT_MAX} bytes "
                "in it (RFC 8446, 5.1)."
            )
        return ""

    def _refused_by_peer(self, alert: int) -> str:
        """Say what the peer's alert means."""
        return f"The {self._peer} refused the handshake with the alert {alerts.name(alert)}."

    def _versions(self) -> str:
        low, high = (VERSION_NAMES[v] for v in self._settings.versions(self._policy))
        return low if low == high else f"{low} to {high}"

    def _ciphers(self) -> str:
        return ", ".join(self._settings.ciphers(self._policy))

    def _conclude(self, output: bytes) -> Result:
        connection = self._connection
        chain = self._verified_chain()
        # By OpenSSL, which does not mind what is in the ones that were of no use.
        pem = b"".join(crypto.dump_certificate(crypto.FILETYPE_PEM, c) for c in chain)
        if len(pem) > CHAIN_MAX:
            raise HandshakeError(
                errno.EPROTO,
                f"The certificate chain of the {self._peer} has {len(pem)} bytes as PEM; "
                f"{CHAIN_MAX} are the most.",
            )
        return Result(
            version=connection.get_protocol_version(),
            cipher=connection.get_cipher_name() or "",
            alpn=self._chosen_alpn(),
            peer_identity=identity.subject(chain[0].to_cryptography()) if chain else "",
            peer_chain=pem,
            server_name=self._server_name(),
            resumed=resumed(connection),
            keys=self._kernel_keys(output),
            connection=connection,
        )

    @abc.abstractmethod
    def _verified_chain(self) -> list[crypto.X509]:
        """Return the peer's certificates, its own first. Raises HandshakeError if they were not
        verified, or are missing and must not be."""

    def _chosen_alpn(self) -> str:
        return self._connection.get_alpn_proto_negotiated().decode("ascii", "backslashreplace")

    def _server_name(self) -> str:
        return ""

    def _kernel_keys(self, output: bytes) -> KernelKeys | None:
        connection = self._connection
        secrets = self._notes.secrets
        self._notes.secrets = {}  # needed no longer, wherever the connection goes
        self._alert_secret = secrets.get(self._alert_label, b"")
        suite = keys.suite(connection.get_cipher_name() or "")
        if suite is None:
            return None
        if connection.get_protocol_version() == TLS_1_3:
            return self._tls13_keys(suite, secrets, output)
        return keys.tls12(
            suite,
            master_secret=connection.master_key() or b"",
            client_random=connection.client_random() or b"",
            server_random=connection.server_random() or b"",
            # Our Finished is the last we sent: just now, or earlier if the peer's came after it.
            finished=records.split(output or self._last_flight)[-1],
            server=isinstance(self, ServerHandshake),
        )

    @abc.abstractmethod
    def _tls13_keys(self, suite: Suite, secrets: dict[str, bytes], output: bytes) -> KernelKeys:
        """Make the keys from the secrets, given what was sent last."""


class ClientHandshake(Handshake):
    """A client's handshake."""

    def __init__(
        self,
        settings: Settings,
        policy: Policy,
        remote: identity.Address,
        visit: Visit | None = None,
    ) -> None:
        """`remote` is the address that the program connects to, `visit` knows of sessions that can
        be resumed.

        Raises HandshakeError if there is no usable trust store, Refused if the settings contradict
        each other.
        """
        super().__init__(client_connection(settings, policy, remote), settings, policy)
        self._visit = visit
        if visit is not None:
            visit.offer(self._connection)

    def _conclude(self, output: bytes) -> Result:
        result = super()._conclude(output)
        if self._visit is not None:
            try:
                chain = self._connection.get_verified_chain(as_cryptography=True)
            except identity.UNREADABLE:
                chain = None  # OpenSSL could read it: the connection is good, but not its session
            self._visit.begin(self._connection, chain or ())
        return result

    def _verified_chain(self) -> list[crypto.X509]:
        chain = self._connection.get_peer_cert_chain()
        if chain and self._visit is not None and verified_before(self._connection):
            for certificate in chain:
                _check_validity(certificate.to_cryptography())
            return chain
        if not chain or not self._notes.verified:
            # Can't happen while OpenSSL verifies; if ever it does not, nothing is let through.
            raise HandshakeError(errno.EPROTO, "The peer's certificate was not verified.")
        return chain

    def _chosen_alpn(self) -> str:
        alpn = super()._chosen_alpn()
        if alpn and alpn not in self._settings.alpn:
            raise HandshakeError(
                errno.EPROTO,
                f"The peer chose the protocol {alpn!r}, which TLS_ALPN does not offer.",
            )
        return alpn

    def _tls13_keys(self, suite: Suite, secrets: dict[str, bytes], _output: bytes) -> KernelKeys:
        return keys.tls13(
            suite,
            send_secret=secrets["CLIENT_TRAFFIC_SECRET_0"],
            receive_secret=secrets["SERVER_TRAFFIC_SECRET_0"],
        )

    def _refused_by_us(self, alert: int, record: bytes, why: str) -> str:
        if alert == Alert.PROTOCOL_VERSION:
            name = _version_name(_hello_version(record))
            return f"The peer answered with {name}; the policy wants {self._versions()}."
        return super()._refused_by_us(alert, record, why)

    def _refused_by_peer(self, alert: int) -> str:
        name = alerts.name(alert)
        match alert:
            case Alert.PROTOCOL_VERSION:
                return (
                    f"The peer refused all TLS versions offered, with the alert {name}; "
                    f"the policy wants {self._versions()}."
                )
            case Alert.HANDSHAKE_FAILURE | Alert.INSUFFICIENT_SECURITY:
                return (
                    f"The peer refused the handshake with the alert {name}: "
                    "most likely it has no cipher in common with what may be used here, "
                    f"{self._versions()} with {self._ciphers()}."
                )
            case Alert.NO_APPLICATION_PROTOCOL:
                return (
                    f"The peer speaks none of the protocols of TLS_ALPN: it sent the alert {name}."
                )
            case Alert.UNRECOGNIZED_NAME:
                return f"The peer does not know the host name asked for: it sent the alert {name}."
            case _ if alert in _CERTIFICATE_ALERTS:
                return f"The peer refused the client's certificate with the alert {name}."
            case _:
                return super()._refused_by_peer(alert)


class ServerHandshake(Handshake):
    """A server's handshake."""

    _peer = "client"
    _alert_label = "SERVER_TRAFFIC_SECRET_0"

    def __init__(self, contexts: ServerContexts) -> None:
        """`contexts` are those of the listener."""
        super().__init__(contexts.connection(), contexts.settings, contexts.policy)
        # A callback of theirs must not be freed while it runs, should the listener close meanwhile.
        self._contexts = contexts
        self._hello = b""  # the first record

    def _advance(self, record: bytes = b"") -> bool:
        self._contexts.prepare_step()
        return super()._advance(record)

    def receive_record(self, record: bytes) -> bytes:
        """As Handshake has it."""
        self._hello = self._hello or record
        return super().receive_record(record)

    def _verified_chain(self) -> list[crypto.X509]:
        own = self._connection.get_peer_certificate()
        if own is None:
            if self._settings.request_peer_auth == AUTH_REQUIRED:
                raise HandshakeError(errno.EPROTO, _NO_CERTIFICATE)
            return []
        if resumed(self._connection):
            # It was verified when the session began, which may have been hours ago.
            _check_validity(own.to_cryptography())
        elif not self._notes.verified:
            raise HandshakeError(errno.EPROTO, "The client's certificate was not verified.")
        # A server gets the issuers alone (SSL_get_peer_cert_chain(3)).
        return [own, *(self._connection.get_peer_cert_chain() or ())]

    def _server_name(self) -> str:
        return server_name(self._connection)

    def _tls13_keys(self, suite: Suite, secrets: dict[str, bytes], output: bytes) -> KernelKeys:
        return keys.tls13(
            suite,
            send_secret=secrets["SERVER_TRAFFIC_SECRET_0"],
            receive_secret=secrets["CLIENT_TRAFFIC_SECRET_0"],
            # The client's Finished was the last message, so these are the session tickets.
            sent=len(records.split(output)),
        )

    def _refused_by_us(self, alert: int, record: bytes, why: str) -> str:
        match alert:
            case Alert.PROTOCOL_VERSION:
                return (
                    f"The client offers no TLS version that may be used here{self._at_most()}; "
                    f"the policy wants {self._versions()}."
                )
            case Alert.CERTIFICATE_REQUIRED:
                return _NO_CERTIFICATE
            case Alert.HANDSHAKE_FAILURE if self._waits_for_certificate():
                return _NO_CERTIFICATE
            case Alert.HANDSHAKE_FAILURE:
                kinds = dict.fromkeys(one.kind for one in self._settings.identities)
                return (
                    f"The client offers nothing that fits ({why}); what may be used here is "
                    f"{self._versions()} with the ciphers {self._ciphers()} "
                    f"and a certificate with a key for {', '.join(kinds)}."
                )
            case _:
                return super()._refused_by_us(alert, record, why)

    def _at_most(self) -> str:
        version = _hello_version(self._hello)
        # One that offers TLS 1.3 says 1.2 here, and more elsewhere (RFC 8446, 4.1.2).
        lowest, _ = self._settings.versions(self._policy)
        return f", {_version_name(version)} at most" if version < lowest else ""

    def _waits_for_certificate(self) -> bool:
        """Tell whether the next message of a TLS 1.2 client had to be its certificate."""
        return (
            self._settings.request_peer_auth == AUTH_REQUIRED
            and self._connection.get_protocol_version() == TLS_1_2
            and bool(self._last_flight)
            and self._connection.get_peer_certificate() is None
        )

    def _refused_by_peer(self, alert: int) -> str:
        if alert in _CERTIFICATE_ALERTS:
            name = alerts.name(alert)
            return f"The client refused the server's certificate with the alert {name}."
        return super()._refused_by_peer(alert)


_NO_CERTIFICATE = "The client sent no certificate; TLS_REQUEST_PEER_AUTH wants one."


def _check_validity(certificate: x509.Certificate) -> None:
    if dt.datetime.now(dt.UTC) > certificate.not_valid_after_utc:
        fault = verification.Fault(SSL.X509VerificationCodes.ERR_CERT_HAS_EXPIRED, 0, certificate)
        raise HandshakeError(errno.EPROTO, verification.sentence(fault, ""))


def _hello_version(record: bytes) -> int:
    """Return the version in the record of a ClientHello or a ServerHello."""
    # A record's header, a handshake message's header, then the version.
    return int.from_bytes(record[9:11])


def _version_name(version: int) -> str:
    return _VERSION_NAMES.get(version, f"protocol version {version:#06x}")
