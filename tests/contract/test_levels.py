# SPDX-License-Identifier: BSD-3-Clause
"""Every option that Linux has at the levels of sockets, TCP and IP is in a table of the module."""

from __future__ import annotations

import pytest

from tests import levels
from vm import kernels

WORDS = {
    "socket_rows": {"NONE", "KEPT", "COPIED", "ANSWERED"},
    "tcp_rows": {"NONE", "REFUSED", "ENDPOINT", "APART"},
    "ip_rows": {"NONE", "REFUSED", "ENDPOINT"},
    "ipv6_rows": {"NONE", "REFUSED", "ENDPOINT", "APART"},
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
