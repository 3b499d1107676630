# SPDX-License-Identifier: BSD-3-Clause
"""SECURITY.md: what it says that a test holds, a test does hold."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

_TOP = Path(__file__).parents[2]
_PAGE = (_TOP / "SECURITY.md").read_text()
# A file below tests/, then a function, or a class and maybe one of its functions.
_NAMED = re.compile(r"`(\w+/test_\w+\.py)::(\w+(?:::\w+)?)`")
# A row of a table that says what holds a control, without the rows of its head.
_ROW = re.compile(r"^\| (?!attack|-)([^|]*) \| [^|]* \| ([^|]*) \|$", re.MULTILINE)


@pytest.mark.parametrize(("file", "name"), sorted(set(_NAMED.findall(_PAGE))))
def test_a_test_that_is_named_exists(file: str, name: str) -> None:
    source = (_TOP / "tests" / file).read_text()
    start = 0
    for part in name.split("::"):
        found = re.compile(rf"^ *(?:async )?(?:def|class) {part}\b", re.MULTILINE).search(
            source, start
        )
        assert found, f"{part} is not in tests/{file}"
        start = found.end()


def test_every_control_has_a_test() -> None:
    tables = re.findall(r"\| attack \| control \| held by \|\n(?:\|.*\n)+", _PAGE)
    rows = [row for table in tables for row in _ROW.findall(table)]
    assert len(rows) > 30
    assert [attack for attack, held in rows if not _NAMED.search(held)] == []


def test_the_readers_way_leads_here() -> None:
    assert "SECURITY.md" in (_TOP / "README.md").read_text()
