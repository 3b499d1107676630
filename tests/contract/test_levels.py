# SPDX-License-Identifier: BSD-3-Clause
"""Every option that Linux has at the levels of sockets, TCP and IP is in a table of the module."""

from __future__ import annotations

import re

import pytest

from tests import levels
from tests.contract.conftest import ROOT
from tests.system.test_levels import SETTINGS
from vm import kernels

MIRROR = ROOT / "kmod/mirror.c"

WORDS = {
    "socket_rows": {"NONE", "KEPT", "COPIED", "ANSWERED"},
    "tcp_rows": {"NONE", "REFUSED", "ENDPOINT", "APART"},
    "ip_rows": {"NONE", "REFUSED", "ENDPOINT"},
    "ipv6_rows": {"NONE", "REFUSED", "ENDPOINT", "APART"},
}

# Options that are copied, and that tests/system/test_levels.py does not look for on an endpoint.
COPIED_UNSEEN = {
    "SO_SNDBUFFORCE": "what is copied is that of SO_SNDBUF",
    "SO_RCVBUFFORCE": "what is copied is that of SO_RCVBUF",
    "SO_BINDTOIFINDEX": "what is copied is that of SO_BINDTODEVICE",
    "SO_RCVTIMEO_OLD": "goes to the transport: test_time_is_limited",
    "SO_RCVTIMEO_NEW": "as SO_RCVTIMEO_OLD",
    "SO_SNDTIMEO_OLD": "goes to the transport: test_time_is_limited",
    "SO_SNDTIMEO_NEW": "as SO_SNDTIMEO_OLD",
}

# What mirror.c copies for each option: fields of struct ssa_mirror, and bits of its `flags`.
COPIED_AS = {
    "SO_REUSEADDR": {"reuse"},
    "SO_REUSEPORT": {"reuseport"},
    "SO_DONTROUTE": {"SOCK_LOCALROUTE"},
    "SO_KEEPALIVE": {"SOCK_KEEPOPEN"},
    "SO_LINGER": {"SOCK_LINGER", "lingertime"},
    "SO_RCVTIMEO_OLD": {"rcvtimeo"},
    "SO_RCVTIMEO_NEW": {"rcvtimeo"},
    "SO_SNDTIMEO_OLD": {"sndtimeo"},
    "SO_SNDTIMEO_NEW": {"sndtimeo"},
    "SO_SNDBUF": {"sndbuf", "userlocks"},
    "SO_SNDBUFFORCE": {"sndbuf", "userlocks"},
    "SO_RCVBUF": {"rcvbuf", "userlocks"},
    "SO_RCVBUFFORCE": {"rcvbuf", "userlocks"},
    "SO_BUF_LOCK": {"userlocks"},
    "SO_MARK": {"mark"},
    "SO_PRIORITY": {"priority"},
    "SO_BINDTODEVICE": {"bound_dev_if"},
    "SO_BINDTOIFINDEX": {"bound_dev_if"},
    "SO_MAX_PACING_RATE": {"max_pacing_rate"},
    "SO_TXREHASH": {"txrehash"},
    "SO_INCOMING_CPU": {"incoming_cpu"},
}

# What answer_changes() and answer_where() write for each option: fields of struct sock.
ANSWERED_AS: dict[str, set[str]] = {
    "SO_SNDBUF": {"sk_sndbuf"},
    "SO_RCVBUF": {"sk_rcvbuf"},
    "SO_PRIORITY": {"sk_priority"},
    "SO_BINDTODEVICE": {"sk_bound_dev_if"},
    "SO_BINDTOIFINDEX": {"sk_bound_dev_if"},
    "SO_INCOMING_CPU": {"sk_incoming_cpu"},
    "SO_INCOMING_NAPI_ID": {"sk_napi_id"},
    "SO_ERROR": set(),  # transport_wake() does it
    "SO_PEERNAME": set(),  # ssa_getname() does it
}


def numbers(table: str) -> dict[str, int]:
    """Return the number of each option that any of the kernels has at a table's level."""
    level = levels.TABLES[table][1]
    return {
        name: number
        for tested in kernels.TESTED
        for name, number in levels.defined(kernels.find(tested).modules, level).items()
    }


@pytest.mark.parametrize("table", levels.TABLES)
def test_no_option_is_missing(table: str) -> None:
    known = numbers(table)
    covered = {known[row.name] for row in levels.rows(table)}
    missing = [name for name, number in known.items() if number not in covered]
    assert not missing, f"{', '.join(missing)} of {levels.TABLES[table][0]} has no row"


@pytest.mark.parametrize("table", levels.TABLES)
def test_each_row_is_an_option_with_a_reason(table: str) -> None:
    known = numbers(table)
    for row in levels.rows(table):
        assert row.name in known, f"{row.name} is defined by no header"
        assert {row.set, row.get} <= WORDS[table], f"{row.name}: unknown words"
        assert row.why.strip(), f"{row.name} has no reason"


def test_what_can_be_set_on_an_endpoint_is_recorded_or_has_a_reason_not_to_be() -> None:
    unrecorded = {
        row.name
        for table in ("tcp_rows", "ip_rows", "ipv6_rows")
        for row in levels.rows(table)
        if row.set == "ENDPOINT" and row.record == "NOT"
    }
    assert unrecorded == {"IPV6_FLOWLABEL_MGR"}


def test_a_line_that_is_no_row_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(levels.TABLES, "transport_names", ("kmod/sockopt.c", 0))
    with pytest.raises(ValueError, match="is not a row"):
        levels.rows("transport_names")


def options_that_are(word: str) -> set[str]:
    """Return the options of SOL_SOCKET of which this is done to set or to get them."""
    return {row.name for row in levels.rows("socket_rows") if word in {row.set, row.get}}


def test_what_is_copied_is_looked_for_on_an_endpoint_or_has_a_reason_not_to_be() -> None:
    known = numbers("socket_rows")
    seen = {number for level, number, _ in SETTINGS if level == levels.TABLES["socket_rows"][1]}
    copied = options_that_are("COPIED")
    assert COPIED_UNSEEN.keys() <= copied
    assert {known[name] for name in copied - COPIED_UNSEEN.keys()} == seen


def fields(pattern: str, *functions: str) -> set[str]:
    """Return what a pattern finds in functions of mirror.c."""
    found: set[str] = set()
    for name in functions:
        body = rf"^static [^\n]*\b{name}\(.*?^}}$"
        [code] = re.findall(body, MIRROR.read_text(), re.MULTILINE | re.DOTALL)
        found |= set(re.findall(pattern, code))
    return found


def test_what_is_copied_is_what_the_module_compares_keeps_and_copies() -> None:
    assert COPIED_AS.keys() == options_that_are("COPIED")
    copied = set().union(*COPIED_AS.values())
    flags = {name for name in copied if name.startswith("SOCK_")}
    copied = copied - flags | {"flags"}
    assert fields(r"\bold->(\w+) !=", "changed") == copied
    assert fields(r"\bto->(\w+) =", "snapshot") == copied
    copying = "copy_route", "copy_buffers", "copy", "copy_changes"
    assert fields(r"\bnew(?:->|\.)(\w+)", *copying) == copied
    [mirrored] = re.findall(r"^#define MIRRORED_FLAGS (.*)$", MIRROR.read_text(), re.MULTILINE)
    assert set(re.findall(r"SOCK_\w+", mirrored)) == flags


def test_what_is_answered_is_what_the_module_writes() -> None:
    assert ANSWERED_AS.keys() == options_that_are("ANSWERED")
    written = fields(r"(?:&|WRITE_ONCE\()sk->(sk_\w+)", "answer_changes", "answer_where")
    assert written == set().union(*ANSWERED_AS.values())
