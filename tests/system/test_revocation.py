# SPDX-License-Identifier: BSD-3-Clause
"""Certificates that were revoked, and the options that say how that is found out."""

from __future__ import annotations

import ctypes
import errno
import socket
import struct
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
from cryptography import x509
from cryptography.x509 import ocsp

from ssad.wire import IPPROTO_TLS, TlsOption
from tests.peers import clients, servers
from tests.peers.authority import HOUR, MUST_STAPLE, Authority, now, sources
from tests.peers.clients import Target
from tests.peers.responder import responding
from tests.peers.servers import Site, free_port
from tests.system.daemon import await_condition
from tests.system.program import (
    Address,
    connect,
    get_number,
    libc,
    name_of,
    raw_connect,
    refused,
    set_bytes,
    set_number,
    set_text,
    tls_error,
    tls_socket,
)
from tests.system.server import Events, listening

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.peers.pki import Identity, Pki
    from tests.peers.responder import Responder
    from tests.peers.servers import Server
    from tests.system.daemon import Daemon

ALL = TlsOption.TLS_REVOCATION_CHECKS
STAPLED = TlsOption.TLS_OCSP_STAPLED_CHECKS
OCSP = TlsOption.TLS_OCSP_CHECKS
CRL = TlsOption.TLS_CRL_CHECKS
CACHED = TlsOption.TLS_CACHED_REV_CHECKS
STAPLING = TlsOption.TLS_SERVER_OCSP_STAPLING

OPTIONS = (ALL, STAPLED, OCSP, CRL, CACHED, STAPLING)
DEFAULTS = {ALL: 1, STAPLED: 1, OCSP: 0, CRL: 0, CACHED: 1, STAPLING: 1}
PEER_OPTIONS = OPTIONS[:-1]
REQUIRED = 2

pytestmark = pytest.mark.usefixtures("daemon")


@dataclass(frozen=True)
class World:
    """An authority with its register and its lists, certificates, and sites that show them."""

    ports: dict[str, int]
    responder: Responder
    certificates: dict[str, x509.Certificate]
    identities: dict[str, Identity]

    def address(self, site: str) -> Address:
        return Address("127.0.0.1", self.ports[site])


@pytest.fixture(scope="session")
def world(pki: Pki, directory: Path) -> Iterator[World]:
    """Run `openssl ocsp`, an HTTP server with lists and bad answers, and nginx with a site for
    each kind of certificate and staple."""
    place = directory / "revocation"
    place.mkdir()
    ca, key = Authority.load(pki.intermediate), Authority.load(pki.ecdsa).key
    with ExitStack() as stack:
        responder = stack.enter_context(responding())
        port = free_port()
        held = stack.enter_context(socket.socket())  # bound only, so that it refuses
        held.bind(("127.0.0.1", 0))
        nobody = held.getsockname()[1]
        ask, look = f"http://127.0.0.1:{port}", responder.url("/list.crl")
        certificates = {
            "good": ca.issue(*sources(ocsp_url=ask, crl_url=look), key=key),
            "revoked": ca.issue(*sources(ocsp_url=ask, crl_url=look), key=key),
            "must": ca.issue(*sources(ocsp_url=ask), MUST_STAPLE, key=key),
            "bare": ca.issue(key=key),
            "nobody": ca.issue(*sources(ocsp_url=f"http://127.0.0.1:{nobody}"), key=key),
            **{
                name: ca.issue(*sources(ocsp_url=responder.url(f"/{name}")), key=key)
                for name in ("silent", "garbage", "large", "moved")
            },
        }
        later = now() + 24 * HOUR  # than a debug kernel needs for all tests
        responder.silent.add("/silent")
        responder.pages |= {
            "/garbage": b"garbage",
            "/large": bytes(1 << 20),
            "/moved": 302,
            "/list.crl": ca.crl(
                {certificates["revoked"]: x509.ReasonFlags.key_compromise}, until=later
            ),
        }
        identities = {
            name: ca.identity(place, one, pki.ecdsa.key) for name, one in certificates.items()
        }
        good, old = certificates["good"], now() - 3 * HOUR
        staples = {
            "good": ca.ocsp(good, until=later),
            "revoked": ca.ocsp(certificates["revoked"], ocsp.OCSPCertStatus.REVOKED, until=later),
            "old": ca.ocsp(good, since=old, until=old + HOUR),
            "stranger": ca.ocsp(good, responder=Authority.load(pki.top), until=later),
            "others": ca.ocsp(certificates["bare"], until=later),
            "must": ca.ocsp(certificates["must"], until=later),
        }
        sites = {name: Site(identity) for name, identity in identities.items()}
        for name, response in staples.items():
            path = place / f"{name}.der"
            path.write_bytes(response)
            sites[f"staple {name}"] = Site(identities.get(name, identities["good"]), path)
        index = place / "index.txt"
        index.write_text(_register(certificates))
        stack.enter_context(servers.openssl_ocsp(index, pki.intermediate, place / "ocsp.log", port))
        ports = stack.enter_context(servers.nginx_sites(sites, place))
        yield World(ports, responder, certificates, identities)


def _register(certificates: dict[str, x509.Certificate]) -> str:
    """Write the register of an authority as openssl-ca(1) does, in which no name comes twice."""
    lines = []
    for name, one in certificates.items():
        end = f"{one.not_valid_after_utc:%y%m%d%H%M%SZ}"
        revoked = f"{now() - HOUR:%y%m%d%H%M%SZ},keyCompromise" if name == "revoked" else ""
        serial = f"{one.serial_number:X}"
        serial = serial.zfill(len(serial) + len(serial) % 2)
        state = "R" if revoked else "V"
        lines.append("\t".join([state, end, revoked, serial, "unknown", f"/CN={name}"]) + "\n")
    return "".join(lines)


def values(sock: socket.socket, options: tuple[TlsOption, ...] = OPTIONS) -> dict[TlsOption, int]:
    return {option: get_number(sock, option) for option in options}


def reached(world: World, site: str, *options: TlsOption, trusted: Path | None = None) -> str:
    """Connect with these options set; return why it failed, or the empty string."""
    with tls_socket() as sock:
        for option in options:
            set_number(sock, option, 1)
        if trusted is not None:
            set_text(sock, TlsOption.TLS_TRUSTED_PEER_CERTIFICATES, str(trusted))
        address = world.address(site)
        found = raw_connect(sock, address)
        assert found in {0, errno.EPROTO}, name_of(found)
        return tls_error(sock)


def test_every_option_is_set_and_read_back_and_only_tightens() -> None:
    with tls_socket() as sock:
        assert values(sock) == DEFAULTS
        for option in OPTIONS:
            set_number(sock, option, 1)
            assert get_number(sock, option) == 1
            for value in (2, -1):
                refused(errno.EINVAL, lambda o=option, v=value: set_number(sock, o, v))  # type: ignore[misc]
                assert option.name in tls_error(sock)
            for length in (0, 1, 3, 5, 8):
                refused(errno.EINVAL, lambda o=option, n=length: set_bytes(sock, o, bytes(n)))  # type: ignore[misc]
            room = ctypes.c_int(4)
            assert libc.setsockopt(sock.fileno(), IPPROTO_TLS, option, None, 4) == -1
            assert ctypes.get_errno() == errno.EFAULT
            assert libc.getsockopt(sock.fileno(), IPPROTO_TLS, option, None, ctypes.byref(room))
            assert ctypes.get_errno() == errno.EFAULT
            room = ctypes.c_int(3)
            buffer = ctypes.create_string_buffer(4)
            assert libc.getsockopt(sock.fileno(), IPPROTO_TLS, option, buffer, ctypes.byref(room))
            assert ctypes.get_errno() == errno.EINVAL
        assert set(values(sock).values()) == {1}
        # The policy wants staples looked at.
        for option in (ALL, STAPLED):
            refused(errno.EPROTO, lambda o=option: set_number(sock, o, 0))  # type: ignore[misc]
            assert f"{option.name} can't be 0: the policy" in tls_error(sock)
        for option in (OCSP, CRL, CACHED, STAPLING):
            set_number(sock, option, 0)
            assert get_number(sock, option) == 0
        assert values(sock) == {ALL: 1, STAPLED: 1, OCSP: 0, CRL: 0, CACHED: 0, STAPLING: 0}
    with tls_socket() as sock:
        set_number(sock, ALL, 1)
        assert values(sock) == {**DEFAULTS, OCSP: 1, CRL: 1}


def test_they_can_be_read_in_every_state_and_set_in_the_first(
    daemon: Daemon, echo_server: Server, pki: Pki
) -> None:
    expected = {ALL: 1, STAPLED: 1, OCSP: 0, CRL: 0, CACHED: 0}

    def check(sock: socket.socket) -> None:
        assert values(sock, PEER_OPTIONS) == expected
        for option in OPTIONS:
            refused(errno.EOPNOTSUPP, lambda o=option: set_number(sock, o, 1))  # type: ignore[misc]
        refused(errno.EOPNOTSUPP, lambda: get_number(sock, STAPLING))

    def prepare(sock: socket.socket) -> None:
        set_number(sock, CACHED, 0)

    with tls_socket() as sock:
        prepare(sock)
        sock.connect((echo_server.address, echo_server.port))
        daemon.freeze()  # which is not asked
        check(sock)
        daemon.thaw()
        unspecified = struct.pack("=H14x", socket.AF_UNSPEC)
        assert libc.connect(sock.fileno(), unspecified, len(unspecified)) == 0
        check(sock)
    with listening(pki.ecdsa, prepare=prepare) as listener:
        check(listener.sock)
        target = Target(listener.port, pki.root)
        with (
            clients.connect(clients.context(pki.root), target),
            listener.accept() as accepted,
        ):
            check(accepted)
        with tls_socket(host="other.test") as failed:
            prepare(failed)
            refused(errno.EPROTO, lambda: failed.connect(("127.0.0.1", listener.port)))
            check(failed)


# What is stapled, the options that are set, and what is said of it; nothing if it is good.
STAPLES = [
    ("staple good", (), ""),
    ("staple good", (STAPLED,), ""),
    ("staple must", (), ""),
    ("good", (), ""),
    ("staple revoked", (), "was revoked on"),
    ("staple old", (), "held until"),
    ("staple stranger", (), "somebody else"),
    ("staple others", (), "another certificate"),
    ("must", (), "RFC 7633"),
    ("good", (STAPLED,), "TLS_OCSP_STAPLED_CHECKS wants one"),
    # Somebody else can be asked instead.
    ("good", (STAPLED, OCSP), ""),
    ("staple revoked", (OCSP, CRL), "the server stapled"),
]


@pytest.mark.usefixtures("transport")
def test_what_a_server_staples_is_checked(world: World) -> None:
    found = {(site, options): reached(world, site, *options) for site, options, _ in STAPLES}
    for site, options, words in STAPLES:
        why = found[site, options]
        assert words in why, f"{site} with {options}: {why}"
        assert bool(words) == bool(why), f"{site} with {options}: {why}"


# As above, of certificates that nothing is stapled to.
ONLINE = [
    ("good", (OCSP,), ""),
    ("good", (CRL,), ""),
    ("good", (ALL,), ""),
    ("revoked", (), ""),
    ("revoked", (OCSP,), "(keyCompromise), says the OCSP responder at http://127.0.0.1"),
    ("revoked", (CRL,), "(keyCompromise), says the CRL at http://127.0.0.1"),
    ("revoked", (ALL,), "was revoked on"),
    ("bare", (OCSP,), "does not name an OCSP responder"),
    ("bare", (CRL,), "does not name a CRL"),
    ("nobody", (OCSP,), "could not be reached (Connection refused)"),
    ("garbage", (OCSP,), "can't be read"),
    ("large", (OCSP,), "more than 65536 bytes"),
    ("moved", (OCSP,), "HTTP status 302"),
    ("silent", (OCSP,), "gave no answer in time"),
    ("staple good", (ALL,), ""),
]


@pytest.mark.usefixtures("transport")
def test_whom_certificates_name_is_asked(world: World) -> None:
    for site, options, words in ONLINE:
        why = reached(world, site, *options)
        assert words in why, f"{site} with {options}: {why}"
        assert bool(words) == bool(why), f"{site} with {options}: {why}"
    assert world.responder.asked["/elsewhere"] == 0


def test_what_is_known_is_used_again_unless_the_program_minds(world: World) -> None:
    assert reached(world, "good", CRL) == ""
    before = world.responder.asked["/list.crl"]
    assert reached(world, "good", CRL) == ""
    assert "was revoked" in reached(world, "revoked", CRL)
    assert world.responder.asked["/list.crl"] == before
    with tls_socket() as sock:
        set_number(sock, CRL, 1)
        set_number(sock, CACHED, 0)
        address = world.address("good")
        sock.connect((address.address, address.port))
    assert world.responder.asked["/list.crl"] == before + 1


def test_a_program_reaches_nothing_through_the_daemon(world: World, pki: Pki) -> None:
    before = world.responder.asked.total()
    for site in ("good", "garbage"):
        why = reached(world, site, ALL, trusted=pki.root)
        assert "not public" in why
    assert world.responder.asked.total() == before


def test_the_server_is_told_in_both_versions(world: World, logs: Path) -> None:
    for version in servers.VERSIONS:
        offer = servers.Offer(version, "AES-128-GCM")
        with servers.openssl(world.identities["revoked"], logs, "-www", offer=offer) as server:
            with tls_socket() as sock:
                set_number(sock, CRL, 1)
                refused(errno.EPROTO, lambda: sock.connect((server.address, server.port)))
                assert "was revoked on" in tls_error(sock)
            await_condition(
                f"{version}: s_server tells of the alert",
                lambda: "alert certificate revoked" in logs.read_text(),
            )
        logs.write_text("")


def _staple_of(port: int, pki: Pki) -> str:
    said = clients.openssl(Target(port, pki.root), "-status", request=b"Q\n").decode()
    return "good" if "Cert Status: good" in said else said


def test_our_own_server_staples(world: World, pki: Pki) -> None:
    identity = world.identities["good"]
    with listening(identity) as listener:
        with tls_socket() as off:
            set_number(off, STAPLING, 0)
        await_condition("a response is stapled", lambda: _staple_of(listener.port, pki) == "good")
        # Ours is content as well, though it wants one.
        with connect(Address("127.0.0.1", listener.port)) as sock:
            assert get_number(sock, STAPLED) == 1
        with tls_socket() as sock:
            set_number(sock, STAPLED, 1)
            sock.connect(("127.0.0.1", listener.port))
    with listening(identity, prepare=lambda sock: set_number(sock, STAPLING, 0)) as listener:
        assert "OCSP response: no response sent" in _staple_of(listener.port, pki)


def test_a_client_that_was_revoked_is_refused(world: World, pki: Pki, tmp_path: Path) -> None:
    ca, key = Authority.load(pki.intermediate), Authority.load(pki.client).key
    purpose = x509.oid.ExtendedKeyUsageOID.CLIENT_AUTH
    shown = {}
    for name in ("kept", "lost"):
        one = ca.issue(
            *sources(crl_url=world.responder.url("/clients.crl")),
            key=key,
            name=f"{name}.test",
            purpose=purpose,
        )
        shown[name] = one, ca.identity(tmp_path, one, pki.client.key)
    world.responder.put("/clients.crl", ca.crl({shown["lost"][0]: None}))

    def prepare(sock: socket.socket) -> None:
        set_number(sock, TlsOption.TLS_REQUEST_PEER_AUTH, REQUIRED)
        set_number(sock, CRL, 1)

    with listening(pki.ecdsa, prepare=prepare) as listener, Events() as events:
        for version in servers.VERSIONS:
            target = Target(listener.port, pki.root, version, identity=shown["lost"][1])
            said = clients.openssl(target).decode(errors="replace")
            assert "alert certificate revoked" in said
            text = events.refusal()["text"]
            assert "CN=lost.test was revoked on" in text
        target = Target(listener.port, pki.root, identity=shown["kept"][1])
        trust = clients.context(pki.root)
        trust.load_cert_chain(shown["kept"][1].chain, shown["kept"][1].key)
        with clients.connect(trust, target) as client, listener.accept() as accepted:
            client.sendall(b"question")
            assert accepted.recv(8, socket.MSG_WAITALL) == b"question"
