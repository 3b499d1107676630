# SPDX-License-Identifier: BSD-3-Clause
"""The module's table of what each call does in each state, read out of its source."""

from __future__ import annotations

import re
from pathlib import Path

from ssad.wire import SocketState

_SOURCE = Path(__file__).parents[2] / "kmod/states.c"
_ROW = re.compile(r"^\tCALL\((\w+),\s*([^)]*)\),$", re.MULTILINE)


def table() -> dict[str, dict[SocketState, str]]:
    """Return, for each call and state, the name of the errno; "0" where the call goes ahead."""
    found = {}
    for name, cells in _ROW.findall(_SOURCE.read_text()):
        errnos = [cell.strip().removeprefix("-") for cell in cells.split(",")]
        found[name] = dict(zip(SocketState, errnos, strict=True))
    return found
