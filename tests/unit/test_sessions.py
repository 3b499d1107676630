# SPDX-License-Identifier: BSD-3-Clause
"""Sessions that a client keeps: who may resume them, how often and for how long."""

from __future__ import annotations

import asyncio
import datetime as dt
import errno
import os
import struct
import subprocess
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import pytest
from cryptography.hazmat.bindings.openssl.binding import Binding
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305
from OpenSSL import SSL

from ssad import identity
from ssad.address import Address
from ssad.context import TicketContexts, resumed
from ssad.errors import Refused
from ssad.handshake import ClientHandshake, Result
from ssad.keys import Aead
from ssad.policy import TLS_1_2, TLS_1_3, Policy
from ssad.records import HEADER_LENGTH, split
from ssad.sessions import Kept, Owner, SessionCache, Validity, Visit
from ssad.settings import Settings
from ssad.tickets import TicketReader, TicketReaders
from ssad.wire import TICKETS_MAX, TlsOption
from tests.peers.pki import ALIAS, HOST
from tests.unit.memory_client import MemoryClient, client_context, listen, serve, settings_of
from tests.unit.memory_server import LOCALHOST, MemoryServer, context, shake_hands

if TYPE_CHECKING:
    from pathlib import Path

    from tests.peers.pki import Pki

ME = Owner(1000, 1)
REMOTE = Address(LOCALHOST, 443)
VERSIONS = [TLS_1_2, TLS_1_3]
SUITES = [
    "TLS_AES_128_GCM_SHA256",
    "TLS_AES_256_GCM_SHA384",
    "TLS_CHACHA20_POLY1305_SHA256",
]


def named(settings: Settings, remote: Address) -> tuple[str, int]:
    return str(identity.wanted(settings.host_name, remote.ip)), remote.port


@dataclass
class Client:
    """A program that connects again and again, over kernel TLS as far as the daemon can tell."""

    policy: Policy
    now: float = 1000.0
    wrong_by: dt.timedelta = field(default_factory=dt.timedelta)  # the clock that can be set
    cache: SessionCache = field(init=False)

    def __post_init__(self) -> None:
        self.cache = SessionCache(
            100, lambda: self.now, lambda: dt.datetime.now(dt.UTC) + self.wrong_by
        )

    def visit(
        self,
        server: SSL.Context,
        *,
        tickets: int = 2,
        owner: Owner = ME,
        remote: Address = REMOTE,
        **others: object,
    ) -> bool:
        """Connect, read up to `tickets` tickets, and return whether the session was resumed;
        `others` are settings."""
        settings = replace(Settings(host_name=HOST, session_reuse=True), **others)  # type: ignore[arg-type]
        visit = self.cache.visit(owner, settings, self.policy, *named(settings, remote))
        peer = MemoryServer(server)
        result = shake_hands(ClientHandshake(settings, self.policy, LOCALHOST, visit), peer)
        assert result.resumed == resumed(peer.connection)
        assert result.peer_identity == f"CN={HOST}"
        assert b"BEGIN CERTIFICATE" in result.peer_chain
        if visit is not None:
            reader = TicketReader.of(result, visit)
            if reader is not None:
                for message in opened(result, peer.output())[:tickets]:
                    assert reader.receive(message)
                reader.close()
        return result.resumed


def opened(result: Result, output: bytes) -> list[bytes]:
    """Do as kernel TLS does with the records after a handshake."""
    assert result.keys is not None
    key = result.keys.receive
    aead = (ChaCha20Poly1305 if result.keys.aead is Aead.CHACHA20_POLY1305 else AESGCM)(key.key)
    found = []
    for sequence, record in enumerate(split(output)):
        nonce = (int.from_bytes(key.nonce) ^ sequence).to_bytes(12)
        inner = aead.decrypt(nonce, record[HEADER_LENGTH:], record[:HEADER_LENGTH])
        found.append(inner[:-1])  # the last byte is the type
    return found


@pytest.fixture
def client(pki: Pki) -> Client:
    return Client(Policy(trust_store=pki.root))


def server_of(pki: Pki, **others: object) -> SSL.Context:
    made = context(pki.ecdsa, **others)  # type: ignore[arg-type]
    made.set_session_id(b"test")
    return made


class TestResumption:
    @pytest.mark.parametrize("version", VERSIONS)
    def test_a_session_is_resumed_again_and_again(
        self, client: Client, pki: Pki, version: int
    ) -> None:
        server = server_of(pki, version=version)
        assert [client.visit(server) for _ in range(4)] == [False, True, True, True]

    @pytest.mark.parametrize("suite", SUITES)
    def test_with_every_cipher_of_tls13(self, client: Client, pki: Pki, suite: str) -> None:
        server = server_of(pki, ciphers13=suite)
        assert [client.visit(server) for _ in range(2)] == [False, True]

    def test_a_ticket_of_tls13_is_used_once(self, client: Client, pki: Pki) -> None:
        server = server_of(pki, version=TLS_1_3)
        client.visit(server)
        found = [client.visit(server, tickets=0) for _ in range(3)]
        assert found == [True, True, False]

    def test_a_session_of_tls12_needs_no_ticket(self, client: Client, pki: Pki) -> None:
        server = server_of(pki, version=TLS_1_2)
        found = [client.visit(server, tickets=0) for _ in range(3)]
        assert found == [False, True, True]

    def test_not_without_the_option(self, client: Client, pki: Pki) -> None:
        server = server_of(pki)
        assert not client.visit(server, session_reuse=False)
        assert not client.visit(server)
        assert not client.visit(server, session_reuse=False)
        assert client.visit(server)

    @pytest.mark.parametrize("version", VERSIONS)
    def test_not_by_another(self, client: Client, pki: Pki, version: int) -> None:
        server = server_of(pki, version=version, alpn=["h2"])
        client.visit(server)
        root = pki.root.read_bytes()
        others: list[dict[str, object]] = [
            {"owner": Owner(1001, 1)},
            {"owner": Owner(1000, 2)},
            {"remote": Address(LOCALHOST, 444)},
            {"host_name": ALIAS},
            {"host_name": None},
            {"alpn": ("h2",)},
            {"trusted": root},
            {"trusted": root + root},
            {"disabled_ciphers": frozenset({SUITES[1], SUITES[2]})},
            {"trusted_ciphers": (*client.policy.cipher_names()[1:],)},
            {"version_min": version, "version_max": version},
            {"identities": settings_of(pki.client).identities},
        ]
        for other in others:
            assert not client.visit(server, **other), other  # type: ignore[arg-type]
        assert client.visit(server)

    def test_not_under_another_policy(self, client: Client, pki: Pki) -> None:
        server = server_of(pki)
        client.visit(server)
        before, client.policy = client.policy, replace(client.policy, session_timeout=7100)
        assert not client.visit(server)
        client.policy = replace(client.policy, client_sessions=False)
        assert not client.visit(server)
        client.policy = before
        assert client.visit(server)

    def test_not_once_the_trust_store_has_changed(
        self, client: Client, pki: Pki, tmp_path: Path
    ) -> None:
        store = tmp_path / "store.pem"
        store.write_bytes(pki.root.read_bytes())
        client.policy = replace(client.policy, trust_store=store)
        server = server_of(pki)
        assert [client.visit(server) for _ in range(2)] == [False, True]
        os.utime(store, ns=(1, 1))
        assert not client.visit(server)

    @pytest.mark.parametrize("version", VERSIONS)
    def test_a_server_that_forgot_it_makes_a_full_handshake(
        self, client: Client, pki: Pki, version: int
    ) -> None:
        client.visit(server_of(pki, version=version))
        other = server_of(pki, version=version)
        assert [client.visit(other) for _ in range(2)] == [False, True]


class TestTime:
    @pytest.mark.parametrize("version", VERSIONS)
    def test_it_counts_from_the_full_handshake(
        self, client: Client, pki: Pki, version: int
    ) -> None:
        server = server_of(pki, version=version)
        found = []
        for _ in range(5):
            found.append(client.visit(server, session_ttl=100))
            client.now += 40
        assert found == [False, True, True, False, True]

    def test_the_shorter_time_of_two_sockets_counts(self, client: Client, pki: Pki) -> None:
        server = server_of(pki)
        client.visit(server, session_ttl=1000)
        client.now += 50
        assert not client.visit(server, session_ttl=50, tickets=0)
        assert client.visit(server, session_ttl=1000)

    @pytest.mark.parametrize("version", VERSIONS)
    @pytest.mark.parametrize("days", [-3, 370], ids=["before", "beyond"])
    def test_only_while_the_certificates_are_valid(
        self, client: Client, pki: Pki, version: int, days: int
    ) -> None:
        server = server_of(pki, version=version)
        assert [client.visit(server), client.visit(server)] == [False, True]
        client.wrong_by = dt.timedelta(days=days)  # as the clock is set, and no time passes
        assert not client.visit(server)

    def test_tickets_of_a_listener_live_as_long_as_it_says(self, pki: Pki) -> None:
        policy = Policy()
        tickets = TicketContexts(policy)
        short = listen(settings_of(pki.ecdsa, session_ttl=77), policy, tickets)
        usual = listen(settings_of(pki.ecdsa), policy, tickets)
        for contexts, lifetime in ((short, 77), (usual, 7200), (short, 77)):
            visitor = MemoryClient(client_context(version=TLS_1_2))
            serve(contexts, visitor)
            assert f"hint: {lifetime} (".encode() in _described(visitor)
        assert not serve(usual, visitor.again()).resumed
        assert serve(short, visitor.again()).resumed


def _described(visitor: MemoryClient) -> bytes:
    """Let OpenSSL describe a session, which pyOpenSSL can't."""
    lib, ffi = Binding.lib, Binding.ffi
    session = visitor.connection.get_session()
    assert session is not None
    size = lib.i2d_SSL_SESSION(session._session, ffi.NULL)
    room = ffi.new("unsigned char[]", size)
    lib.i2d_SSL_SESSION(session._session, ffi.new("unsigned char **", room))
    command = ["openssl", "sess_id", "-inform", "DER", "-noout", "-text"]
    done = subprocess.run(command, input=bytes(room), capture_output=True, check=True)
    return done.stdout


class TestCache:
    def session(self) -> SSL.Session:
        return SSL.Session.__new__(SSL.Session)  # the cache does not look into it

    def kept(self, ends: float) -> Kept:
        now = dt.datetime.now(dt.UTC)
        always = Validity(now - dt.timedelta(1), now + dt.timedelta(1))
        return Kept(self.session(), 0.0, ends, always)

    def test_the_newest_goes_first_and_few_are_kept_of_one_key(self) -> None:
        cache = SessionCache(100, lambda: 0.0)
        kept = [self.kept(10.0) for _ in range(6)]
        for one in kept:
            cache.add(b"key", one)
        assert len(cache) == 4
        assert [cache.take(b"key", 5) for _ in range(5)] == [*reversed(kept[2:]), None]
        assert len(cache) == 0

    def test_what_was_not_used_for_longest_gives_way(self) -> None:
        cache = SessionCache(3, lambda: 0.0)
        for key in (b"1", b"2", b"3"):
            cache.add(key, self.kept(10.0))
        cache.add(b"1", self.kept(10.0))
        assert len(cache) == 3
        assert cache.take(b"2", 5) is None
        assert cache.take(b"1", 5) is not None
        assert cache.take(b"3", 5) is not None

    def test_what_is_over_is_forgotten(self) -> None:
        now = 0.0
        cache = SessionCache(3, lambda: now)
        cache.add(b"key", self.kept(10.0))
        cache.add(b"key", self.kept(20.0))
        now = 10.0
        assert cache.take(b"key", 5) is None
        assert len(cache) == 1
        now = 20.0
        assert cache.take(b"key", 50) is None
        assert len(cache) == 0


class TestTickets:
    def reader(self, client: Client, pki: Pki) -> tuple[TicketReader, list[bytes]]:
        """Connect; return the reader and the tickets that it could be given."""
        settings = Settings(host_name=HOST, session_reuse=True)
        visit = client.cache.visit(ME, settings, client.policy, *named(settings, REMOTE))
        assert isinstance(visit, Visit)
        peer = MemoryServer(server_of(pki, version=TLS_1_3))
        result = shake_hands(ClientHandshake(settings, client.policy, LOCALHOST, visit), peer)
        reader = TicketReader.of(result, visit)
        assert reader is not None
        return reader, opened(result, peer.output())

    def test_so_many_are_taken_and_no_more(self, client: Client, pki: Pki) -> None:
        reader, messages = self.reader(client, pki)
        found = [reader.receive(messages[0]) for _ in range(TICKETS_MAX)]
        assert found == [True] * (TICKETS_MAX - 1) + [False]
        assert len(client.cache) == TICKETS_MAX

    @pytest.mark.parametrize(
        "message",
        [b"\x04\0\0\0", b"\x04\0\0\5wrong", b"\x18\0\0\1\7", b"\x02\0\0\1x", b"\x04\0\0\x80"],
    )
    def test_nonsense_ends_it(self, client: Client, pki: Pki, message: bytes) -> None:
        reader, messages = self.reader(client, pki)
        assert reader.receive(messages[0])
        for _ in range(TICKETS_MAX):
            if not reader.receive(message):
                break
        else:
            pytest.fail("it goes on")
        reader.close()

    async def test_readers_are_kept_for_a_while(self, client: Client, pki: Pki) -> None:
        readers = TicketReaders(limit=2)
        for number in (1, 2, 3):
            readers.add(number, self.reader(client, pki)[0])
        assert len(readers) == 2
        reader, messages = self.reader(client, pki)
        readers.receive(1, messages[0])  # too late
        assert len(client.cache) == 0
        readers.add(3, reader)  # instead of the other
        readers.receive(3, messages[0])
        assert len(client.cache) == 1
        readers.receive(3, b"\x04\0\0\5wrong")
        readers.drop(2)
        assert len(readers) == 0

        impatient = TicketReaders(patience=0)
        impatient.add(1, self.reader(client, pki)[0])

        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert len(impatient) == 0


class TestSettings:
    def number(self, value: int) -> bytes:
        return struct.pack("=I", value)

    def test_the_time_is_the_policys_at_most(self) -> None:
        policy = Policy(session_timeout=100)
        settings = Settings()
        get = TlsOption.TLS_SESSION_TTL
        assert settings.get(get, policy) == self.number(100)
        settings.set(get, self.number(60), policy)
        assert settings.get(get, policy) == self.number(60)
        for value, number in ((0, errno.EINVAL), (101, errno.EPROTO), (2**31, errno.EPROTO)):
            with pytest.raises(Refused) as refused:
                settings.set(get, self.number(value), policy)
            assert refused.value.errno == number
        assert settings.get(get, policy) == self.number(60)

    def test_the_policy_can_forbid_it(self) -> None:
        policy = Policy(client_sessions=False)
        settings = Settings()
        settings.set(TlsOption.TLS_SESSION_REUSE, self.number(0), policy)
        with pytest.raises(Refused) as refused:
            settings.set(TlsOption.TLS_SESSION_REUSE, self.number(1), policy)
        assert refused.value.errno == errno.EPROTO
        with pytest.raises(Refused) as refused:
            settings.set(TlsOption.TLS_SESSION_REUSE, self.number(2), Policy())
        assert refused.value.errno == errno.EINVAL
        settings.set(TlsOption.TLS_SESSION_REUSE, self.number(1), Policy())
        assert settings.session_reuse
