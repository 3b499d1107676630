# SPDX-License-Identifier: BSD-3-Clause
"""Every option of level IPPROTO_TLS: set, read back and refused, in every state, and against a
policy that it would weaken."""

from __future__ import annotations

import errno
import re
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest

from ssad.wire import SocketState, TlsOption
from tests.system import options
from tests.system.options import Option, Value, get_without_length, raw_get, raw_set
from tests.system.program import (
    connect,
    get_bytes,
    get_id,
    name_of,
    set_number,
    tls_error,
    tls_socket,
)
from tests.system.test_states import World, as_table

if TYPE_CHECKING:
    from pathlib import Path

    from tests.peers.pki import Pki
    from tests.peers.servers import Server
    from tests.system.daemon import Daemon
    from tests.system.program import Address

NEW, CONNECTED = SocketState.NEW, SocketState.CONNECTED
TLS_1_2, TLS_1_3 = 0x0303, 0x0304
CHACHA = "TLS_CHACHA20_POLY1305_SHA256"
AES_128, AES_256 = "TLS_AES_128_GCM_SHA256", "TLS_AES_256_GCM_SHA384"

# It leaves each option that can weaken a policy something to weaken.
STRICT = f"""
[tls]
version_min = "1.3"
ciphers_tls13 = ["{AES_256}", "{AES_128}"]
[trust]
programs_may_choose = false
[sessions]
timeout = 600
clients = false
[revocation]
ocsp_stapled = true
ocsp = true
crl = true
cache = false
server_stapling = false
"""


def invalid(*values: Value) -> dict[Value, int]:
    """Give values that are EINVAL."""
    return dict.fromkeys(values, errno.EINVAL)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What is done with one option, and what comes of it."""

    good: Value | None = None  # what it can be set to; None: it can't be set
    read: str | None = None  # pattern of what a NEW socket tells then; None: what was set
    connected: str = ""  # pattern of what a CONNECTED socket tells, on which nothing was set
    first: tuple[tuple[TlsOption, Value], ...] = ()  # what has to be set before
    # What another option tells then.
    makes: tuple[TlsOption, str] | None = None
    bad: Mapping[Value, int] = field(default_factory=dict)
    weaker: tuple[Value, ...] = ()  # than STRICT
    stricter: Value | None = None  # or as strict


def _switch(*, policy: int, weaker: int) -> Row:
    return Row(
        good=1 - weaker,
        connected=str(policy),
        bad=invalid(2, 0xFFFFFFFF),
        weaker=(weaker,),
        stricter=1 - weaker,
    )


def rows(pki: Pki, donor: socket.socket) -> dict[TlsOption, Row]:
    """Return the table. `donor`: a socket with settings that STRICT does not allow."""
    chain, key = str(pki.ecdsa.chain), str(pki.ecdsa.key)
    missing = str(pki.directory / "none")
    not_allowed: tuple[Value, ...] = (CHACHA, "TLS_AES_128_CCM_SHA256", "AES128-SHA")
    o = TlsOption
    return {
        o.TLS_HOSTNAME: Row(
            good="a.test", connected=r"server\.test", bad=invalid("a..b", "127.1", "a b", b"\xff")
        ),
        o.TLS_TRUSTED_PEER_CERTIFICATES: Row(
            good=str(pki.root),
            bad={
                **invalid("-----BEGIN CERTIFICATE-----", key, "/dev/zero"),
                missing: errno.ENOENT,
                "/": errno.EISDIR,
            },
            weaker=(str(pki.root), str(pki.unknown_root)),
        ),
        o.TLS_CERTIFICATE_CHAIN: Row(
            good=chain, bad={**invalid(key, "-----BEGIN CERTIFICATE-----"), missing: errno.ENOENT}
        ),
        o.TLS_PRIVATE_KEY: Row(
            good=key,
            first=((o.TLS_CERTIFICATE_CHAIN, chain),),
            bad={**invalid(chain, str(pki.rsa.key)), missing: errno.ENOENT},
        ),
        o.TLS_REQUEST_PEER_AUTH: Row(good=2, bad=invalid(3, 0xFFFFFFFF)),
        o.TLS_ALPN: Row(
            good="h2,http/1.1", connected="", bad=invalid(",", "h2,", "x" * 256, b"\xff", "h\n2")
        ),
        o.TLS_DISABLE_CIPHER: Row(
            good=CHACHA,
            first=((o.TLS_TRUSTED_CIPHERS, f"{CHACHA}:{AES_256}"),),
            makes=(o.TLS_TRUSTED_CIPHERS, AES_256),
            bad=invalid("none", "ALL", f"{CHACHA}:{AES_256}"),
            stricter=AES_256,
        ),
        o.TLS_ENABLE_CIPHER: Row(
            good=CHACHA,
            first=((o.TLS_TRUSTED_CIPHERS, AES_256),),
            makes=(o.TLS_TRUSTED_CIPHERS, f"{AES_256}:{CHACHA}"),
            bad=invalid("none", "ALL"),
            weaker=not_allowed,
            stricter=AES_128,
        ),
        o.TLS_TRUSTED_CIPHERS: Row(
            good=f"{CHACHA}:ECDHE-ECDSA-AES256-GCM-SHA384",
            bad=invalid("none", f"{AES_256}::{CHACHA}", ":"),
            weaker=(*not_allowed, f"{AES_256}:{CHACHA}"),
            stricter=AES_128,
        ),
        o.TLS_VERSION_MIN: Row(
            good=TLS_1_3, bad=invalid(0, 0x0302, 0x0305), weaker=(TLS_1_2,), stricter=TLS_1_3
        ),
        o.TLS_VERSION_MAX: Row(
            good=TLS_1_2, bad=invalid(0, 0x0300, 0x0305), weaker=(TLS_1_2,), stricter=TLS_1_3
        ),
        # What the policy wants checked can't be left out.
        o.TLS_REVOCATION_CHECKS: _switch(policy=1, weaker=0),
        o.TLS_OCSP_STAPLED_CHECKS: _switch(policy=1, weaker=0),
        o.TLS_OCSP_CHECKS: _switch(policy=0, weaker=0),
        o.TLS_CRL_CHECKS: _switch(policy=0, weaker=0),
        # What the policy takes away can't be had.
        o.TLS_CACHED_REV_CHECKS: _switch(policy=1, weaker=1),
        o.TLS_SERVER_OCSP_STAPLING: _switch(policy=1, weaker=1),
        o.TLS_ID: Row(read=r"[1-9]\d*", connected=r"[1-9]\d*"),
        o.TLS_ERROR: Row(read="", connected=""),
        o.TLS_PEER_IDENTITY: Row(connected=r"CN=server\.test"),
        o.TLS_PEER_CERTIFICATE_CHAIN: Row(
            connected=r"(-----BEGIN CERTIFICATE-----\n[^-]*-----END CERTIFICATE-----\n)+"
        ),
        o.TLS_CHOSEN_CIPHER: Row(connected="TLS_[A-Z0-9_]+"),
        o.TLS_VERSION_CONN: Row(connected=str(TLS_1_3)),
        o.TLS_RESUMED_SESSION: Row(connected="0"),
        o.TLS_TRANSPORT: Row(connected="ktls|channel"),
        o.TLS_SESSION_TTL: Row(good=60, bad=invalid(0), weaker=(601, 7200), stricter=600),
        o.TLS_SESSION_REUSE: Row(
            good=1, connected="0", bad=invalid(2, 0xFFFFFFFF), weaker=(1,), stricter=0
        ),
        o.TLS_CONTEXT: Row(
            good=get_id(donor),
            connected=r"[1-9]\d*",
            bad={0: errno.ENOENT, 1 << 63: errno.ENOENT},
            weaker=(get_id(donor),),
        ),
    }


@pytest.fixture
def donor(daemon: Daemon) -> Iterator[socket.socket]:
    """Have a socket to take settings over from."""
    assert daemon.pid
    with tls_socket(host=None) as made:
        set_number(made, TlsOption.TLS_VERSION_MAX, TLS_1_2)
        yield made


class Walk:
    """Collects what is not as the table says, to tell all of it at once."""

    def __init__(self) -> None:
        self.faults: list[str] = []
        self.calls = 0

    def expect(self, what: str, wanted: object, found: object) -> None:
        """Compare what a call was to give and what it gave."""
        self.calls += 1
        if found != wanted:
            self.faults.append(f"{what}: wanted {wanted}, found {found}")

    def errno(self, what: str, wanted: int, found: int) -> None:
        """As `expect`, for 0 or an errno."""
        self.expect(what, name_of(wanted), name_of(found))

    def told(self, what: str, pattern: str, found: str) -> None:
        """Compare what an option was to tell and what it told."""
        self.calls += 1
        if not re.fullmatch(pattern, found):
            self.faults.append(f"{what}: wanted {pattern!r}, found {found!r}")

    def set(self, sock: socket.socket, option: Option, value: Value, wanted: int) -> None:
        """Set an option. If it is to be refused, TLS_ERROR tells why, and nothing has changed."""
        readable = NEW in option.get and option.number != TlsOption.TLS_ERROR
        before = get_bytes(sock, option.number) if readable else b""
        given = option.encode(value)
        what = f"set {option.number.name} to {value!r}"[:100]
        self.errno(what, wanted, raw_set(sock, option.number, given, len(given)))
        if wanted and wanted != errno.ENOPROTOOPT:
            self.told(f"TLS_ERROR after {what}", r"(?s).+[.?]", tls_error(sock))
            after = get_bytes(sock, option.number) if readable else b""
            self.expect(f"{option.number.name} after {what}", before, after)

    def check_arguments_of_set(self, sock: socket.socket, option: Option) -> None:
        """Set what no value of its type is."""
        name, longest = option.number, option.longest
        nothing = raw_set(sock, name, None, option.size or 4)
        self.errno(f"set {name.name} from NULL", errno.EFAULT, nothing)
        self.errno(f"set {name.name}, length -1", errno.EINVAL, raw_set(sock, name, bytes(8), -1))
        self.set(sock, option, b"", errno.EINVAL)
        if option.size is not None:
            for length in (1, option.size - 1, option.size + 1, 2 * option.size):
                self.set(sock, option, bytes(length), errno.EINVAL)
            return
        assert longest is not None, f"{name.name} can be set, and has no longest value"
        self.set(sock, option, b"x" * (longest + 1), errno.EMSGSIZE)
        self.set(sock, option, b"x" * (longest + 1) + b"\0", errno.EMSGSIZE)
        if option.kind == "STRING":  # DER is full of NULs
            self.set(sock, option, b"\0", errno.EINVAL)
            self.set(sock, option, b"x\0y\0", errno.EINVAL)

    def check_arguments_of_get(self, sock: socket.socket, option: Option) -> None:
        """Read an option with too little room, and into nowhere."""
        name, what = option.number, f"get {option.number.name}"
        size = len(get_bytes(sock, name))
        if option.size is not None:
            self.expect(f"length of {name.name}", option.size, size)
        for room in (0, size - 1):
            found, length, buffer = raw_get(sock, name, room)
            if option.size is not None:
                self.errno(f"{what}, room {room}", errno.EINVAL, found)
            else:
                self.errno(f"{what}, room {room}", errno.EMSGSIZE, found)
                self.expect(f"{what}, length for room {room}", size, length)
            self.expect(f"{what}, buffer of {room}", b"", buffer.strip(b"\xaa"))
        found, length, _ = raw_get(sock, name, size)
        self.expect(f"{what}, room {size}", ("success", size), (name_of(found), length))
        self.errno(f"{what}, room -1", errno.EINVAL, raw_get(sock, name, -1)[0])
        self.errno(f"{what} into NULL", errno.EFAULT, raw_get(sock, name, size, nowhere=True)[0])
        self.errno(f"{what}, no length", errno.EFAULT, get_without_length(sock, name))

    def end(self) -> None:
        """Fail if anything was not as the table says."""
        assert not self.faults, "\n".join(["", *self.faults])
        assert self.calls


def test_the_table_has_every_option(pki: Pki, donor: socket.socket) -> None:
    """So that none can be forgotten, here or in the module."""
    table = rows(pki, donor)
    assert set(table) == set(TlsOption)
    assert sorted(option.number for option in options.table()) == sorted(TlsOption)
    for option in options.table():
        row = table[option.number]
        assert bool(option.set) == (row.good is not None), option.number.name
        assert bool(row.bad) == bool(option.set), option.number.name
        assert option.set or option.get, option.number.name


def test_each_option_is_set_read_back_and_refused(pki: Pki, donor: socket.socket) -> None:
    walk = Walk()
    table = {option.number: option for option in options.table()}
    for number, row in rows(pki, donor).items():
        option = table[number]
        with tls_socket(host=None) as sock:
            for other, value in row.first:
                walk.set(sock, table[other], value, 0)
            if row.good is None:
                walk.set(sock, option, bytes(option.size or 4), errno.ENOPROTOOPT)
            else:
                walk.check_arguments_of_set(sock, option)
                for value, refusal in row.bad.items():
                    walk.set(sock, option, value, refusal)
                walk.set(sock, option, row.good, 0)
            if NEW in option.get:
                pattern = re.escape(str(row.good)) if row.read is None else row.read
                walk.told(f"get {number.name}", pattern, option.decode(get_bytes(sock, number)))
                walk.check_arguments_of_get(sock, option)
            if row.makes is not None:
                other, told = row.makes
                found = table[other].decode(get_bytes(sock, other))
                walk.told(f"{other.name} after {number.name}", re.escape(told), found)
    walk.end()


def refusal(states: frozenset[SocketState], state: SocketState) -> int:
    """Return the errno of a call that goes ahead in these states, 0 if this is one of them."""
    if not states:
        return errno.ENOPROTOOPT
    return 0 if state in states else errno.EOPNOTSUPP


def visit(
    walk: Walk, sock: socket.socket, state: SocketState, option: Option, row: Row
) -> tuple[int, int]:
    """Set and get an option in a state; return what came of both."""
    name = option.number
    value = row.good if row.stricter is None else row.stricter
    given = bytes(option.size or 4) if value is None else option.encode(value)
    if state not in option.set:
        # The state counts before the value.
        wanted, found = refusal(option.set, state), raw_set(sock, name, None, len(given))
        walk.errno(f"set {name.name} from NULL", wanted, found)
    was_set = raw_set(sock, name, given, len(given))
    if option.set and was_set:
        walk.told("TLS_ERROR", f"{name.name} can be set before .*", tls_error(sock))
    was_got, _, _ = raw_get(sock, name, 1 << 16)
    if option.get == {state}:
        walk.check_arguments_of_get(sock, option)
    return was_set, was_got


def test_each_option_in_each_state(
    pki: Pki,
    donor: socket.socket,
    echo_server: Server,
    void: Address,
    capsys: pytest.CaptureFixture[str],
) -> None:
    walk = Walk()
    world = World(echo_server, void, pki)
    table = rows(pki, donor)
    found: dict[str, dict[SocketState, str]] = {}
    wanted: dict[str, dict[SocketState, str]] = {}
    for option in options.table():
        for call, states in (("set", option.set), ("get", option.get)):
            what = f"{call} {option.number.name}"
            found[what] = {}
            wanted[what] = {state: name_of(refusal(states, state)) for state in SocketState}
    for state in SocketState:
        with world.at(state) as sock:
            for option in options.table():
                name = option.number
                was_set, was_got = visit(walk, sock, state, option, table[name])
                found[f"set {name.name}"][state] = name_of(was_set)
                found[f"get {name.name}"][state] = name_of(was_got)
    with capsys.disabled():
        print(as_table(found))
    assert found == wanted
    walk.end()


def test_a_connection_tells_what_the_table_says(
    pki: Pki, donor: socket.socket, echo_server: Server
) -> None:
    walk = Walk()
    table = rows(pki, donor)
    with connect(echo_server) as sock:
        for option in options.table():
            if CONNECTED in option.get:
                told = option.decode(get_bytes(sock, option.number))
                walk.told(f"get {option.number.name}", table[option.number].connected, told)
    walk.end()


def test_no_other_number_is_an_option(daemon: Daemon) -> None:
    assert daemon.pid
    walk = Walk()
    with tls_socket(host=None) as sock:
        for number in (*range(-2, 300), 1 << 16, (1 << 31) - 1, -(1 << 31)):
            if number in set(TlsOption):
                continue
            walk.errno(f"set {number}", errno.ENOPROTOOPT, raw_set(sock, number, bytes(4), 4))
            walk.errno(f"get {number}", errno.ENOPROTOOPT, raw_get(sock, number, 64)[0])
    walk.end()


def test_an_option_tightens_the_policy_and_never_weakens_it(
    pki: Pki, donor: socket.socket, any_daemon: Daemon, directory: Path
) -> None:
    table = rows(pki, donor)
    policy = directory / "strict.toml"
    policy.write_text(STRICT)
    policy.chmod(0o644)
    any_daemon.ensure(None, "--config", str(policy))
    walk = Walk()
    for option in options.table():
        row = table[option.number]
        with tls_socket(host=None) as sock:
            for value in row.weaker:
                walk.set(sock, option, value, errno.EPROTO)
            if row.stricter is None:
                continue
            walk.set(sock, option, row.stricter, 0)
            if NEW in option.get:
                told = option.decode(get_bytes(sock, option.number))
                walk.told(option.number.name, re.escape(str(row.stricter)), told)
    walk.end()
