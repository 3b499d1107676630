# SPDX-License-Identifier: BSD-3-Clause
"""How the commands end."""

from __future__ import annotations

from enum import IntEnum


class Exit(IntEnum):
    """Exit codes; 3 and 4 mean what they mean for init scripts (LSB)."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    NOT_RUNNING = 3
    NOT_PERMITTED = 4
    NO_MODULE = 5
    DEGRADED = 6
    RUNNING_ALREADY = 7


class CommandError(Exception):
    """A command could not do what it is for."""

    def __init__(self, code: Exit, text: str) -> None:
        super().__init__(code, text)
        self.code = code
        self.text = text

    def __str__(self) -> str:
        return self.text
