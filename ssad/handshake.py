# SPDX-License-Identifier: BSD-3-Clause
"""A client's TLS handshake without I/O: records in, bytes to send out.

The caller feeds one record at a time and sends what it gets back. When `done`, everything that was
fed belonged to the handshake: whatever the peer sends next is for the transport.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass, field

from OpenSSL import SSL, crypto

from ssad import alerts, errors, identity, keys, records
from ssad.alerts import Alert
from ssad.context import Notes, client_connection
from ssad.errors import HandshakeError
from ssad.keys import KernelKeys
from ssad.policy import TLS_1_3, VERSION_NAMES, Policy
from ssad.settings import Settings

_FLIGHT = 65536  # read from OpenSSL at once
_VERSION_NAMES = {0x0300: "SSL 3.0", 0x0301: "TLS 1.0", 0x0302: "TLS 1.1", **VERSION_NAMES}


@dataclass(frozen=True, slots=True)
class Result:
    """What a handshake agreed on."""

    version: int
    cipher: str  # OpenSSL's name
    alpn: str  # empty if none was chosen
    peer_identity: str
    peer_chain: bytes = field(repr=False)  # PEM, as the peer sent it
    resumed: bool
    keys: KernelKeys | None  # None if kernel TLS does not know the cipher
    connection: SSL.Connection = field(repr=False)


class ClientHandshake:
    """One handshake. All errors but Refused from the constructor are HandshakeErrors; what the
    peer is to be told of them is in `pending_output()`."""

    def __init__(self, settings: Settings, policy: Policy, remote: identity.Address) -> None:
        """`remote` is the address that the program connects to.

        Raises HandshakeError if there is no usable trust store, Refused if the settings contradict
        each other.
        """
        self._connection = client_connection(settings, policy, remote)
        self._notes: Notes = self._connection.get_app_data()
        self._offer = _Offer(
            *settings.versions(policy),
            settings.ciphers(policy),
            tuple(name.encode("ascii") for name in settings.alpn),
        )
        self._last_flight = b""
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
        """Return the first bytes to send."""
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
        fault = records.fault(record) if record else ""
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
            return self._offer.refused_by_peer(notes.alert_received)
        if notes.alert_sent == Alert.PROTOCOL_VERSION:
            return self._offer.version_refused(record)
        if notes.alert_sent == Alert.RECORD_OVERFLOW:
            return (
                f"The peer sent a TLS record with more than {records.PLAINTEXT_MAX} bytes in it "
                "(RFC 8446, 5.1)."
            )
        reasons = [reason for *_, reason in error.args[0]] if error.args else []
        why = ", ".join(reasons) or "unknown error"
        if notes.alert_sent is not None:
            why += f"; it was told so with the alert {alerts.name(notes.alert_sent)}"
        return f"The peer broke the TLS protocol: {why}."

    def _conclude(self, output: bytes) -> Result:
        connection = self._connection
        chain = connection.get_peer_cert_chain()
        if not chain or not self._notes.verified:
            # Can't happen while OpenSSL verifies; if ever it does not, nothing is let through.
            raise HandshakeError(errno.EPROTO, "The peer's certificate was not verified.")
        alpn = connection.get_alpn_proto_negotiated()
        if alpn and alpn not in self._offer.alpn:
            raise HandshakeError(
                errno.EPROTO,
                f"The peer chose the protocol {alpn!r}, which TLS_ALPN does not offer.",
            )
        return Result(
            version=connection.get_protocol_version(),
            cipher=connection.get_cipher_name() or "",
            alpn=alpn.decode("ascii"),
            peer_identity=identity.subject(chain[0].to_cryptography()),
            # By OpenSSL, which does not mind what is in the ones that were of no use.
            peer_chain=b"".join(crypto.dump_certificate(crypto.FILETYPE_PEM, c) for c in chain),
            resumed=False,
            keys=self._kernel_keys(output),
            connection=connection,
        )

    def _kernel_keys(self, output: bytes) -> KernelKeys | None:
        connection = self._connection
        secrets = self._notes.secrets
        self._notes.secrets = {}  # needed no longer, wherever the connection goes
        suite = keys.suite(connection.get_cipher_name() or "")
        if suite is None:
            return None
        if connection.get_protocol_version() == TLS_1_3:
            return keys.tls13(
                suite,
                send_secret=secrets["CLIENT_TRAFFIC_SECRET_0"],
                receive_secret=secrets["SERVER_TRAFFIC_SECRET_0"],
            )
        return keys.tls12(
            suite,
            master_secret=connection.master_key() or b"",
            client_random=connection.client_random() or b"",
            server_random=connection.server_random() or b"",
            # The client's Finished came with an earlier flight, unless the session was resumed.
            finished=records.last_record(output or self._last_flight),
        )


@dataclass(frozen=True, slots=True)
class _Offer:
    """What the peer can choose from, for sentences."""

    version_min: int
    version_max: int
    ciphers: tuple[str, ...]
    alpn: tuple[bytes, ...]

    def versions(self) -> str:
        low, high = VERSION_NAMES[self.version_min], VERSION_NAMES[self.version_max]
        return low if low == high else f"{low} to {high}"

    def version_refused(self, record: bytes) -> str:
        """Say that the ServerHello in a record has a version that we do not do."""
        # A record's header, a handshake message's header, then the version.
        version = int.from_bytes(record[9:11])
        name = _VERSION_NAMES.get(version, f"protocol version {version:#06x}")
        return f"The peer answered with {name}; the policy wants {self.versions()}."

    def refused_by_peer(self, alert: int) -> str:
        """Say what the peer's alert means."""
        name = alerts.name(alert)
        match alert:
            case Alert.PROTOCOL_VERSION:
                return (
                    f"The peer refused all TLS versions offered, with the alert {name}; "
                    f"the policy wants {self.versions()}."
                )
            case Alert.HANDSHAKE_FAILURE | Alert.INSUFFICIENT_SECURITY:
                return (
                    f"The peer refused the handshake with the alert {name}: "
                    "most likely it has no cipher in common with what may be used here, "
                    f"{self.versions()} with {', '.join(self.ciphers)}."
                )
            case Alert.NO_APPLICATION_PROTOCOL:
                return (
                    f"The peer speaks none of the protocols of TLS_ALPN: it sent the alert {name}."
                )
            case Alert.UNRECOGNIZED_NAME:
                return f"The peer does not know the host name asked for: it sent the alert {name}."
            case _:
                return f"The peer refused the handshake with the alert {name}."
