# SPDX-License-Identifier: BSD-3-Clause
"""The kinds of values that the policy file has: what is allowed, and how TOML says it."""

from __future__ import annotations

import datetime as dt
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

_SHOWN_MAX = 60  # characters of what was found that a sentence repeats

_TYPES: dict[type, str] = {
    bool: "a boolean",
    int: "an integer",
    float: "a float",
    str: "a string",
    list: "an array",
    dict: "a table",
    dt.datetime: "a date and time",
    dt.date: "a date",
    dt.time: "a time",
}

T = TypeVar("T")


class Kind(Protocol):
    """One kind of value."""

    @property
    def wanted(self) -> str:
        """Say what type of value it is, as in "wanted a string"."""

    @property
    def allowed(self) -> str:
        """Say which values are allowed, as in "Allowed: true, false"."""

    def read(self, found: object) -> object:
        """Return what TOML gave in the form that Policy has. Raises ValueError with a sentence
        that says what was wanted, what was found and what is allowed."""

    def write(self, value: object) -> str:
        """Return a value of Policy as TOML; `read` takes it back."""


@dataclass(frozen=True, slots=True)
class Flag:
    """Yes or no."""

    wanted = "a boolean"
    allowed = "true, false"

    def read(self, found: object) -> bool:
        """As Kind has it."""
        if isinstance(found, bool):
            return found
        raise refusal(self, found)

    def write(self, value: object) -> str:
        """As Kind has it."""
        return "true" if value else "false"


@dataclass(frozen=True, slots=True)
class Count:
    """A whole number."""

    low: int
    high: int

    wanted = "an integer"

    @property
    def allowed(self) -> str:
        """As Kind has it."""
        return f"{self.low} to {self.high}"

    def read(self, found: object) -> int:
        """As Kind has it."""
        # A bool is an int in Python, not in TOML.
        if (
            isinstance(found, int)
            and not isinstance(found, bool)
            and self.low <= found <= self.high
        ):
            return found
        raise refusal(self, found)

    def write(self, value: object) -> str:
        """As Kind has it."""
        return str(value)


@dataclass(frozen=True, slots=True)
class Seconds:
    """A time, with or without a fraction."""

    low: float
    high: float

    wanted = "a number of seconds"

    @property
    def allowed(self) -> str:
        """As Kind has it."""
        return f"{self.low:g} to {self.high:g}"

    def read(self, found: object) -> float:
        """As Kind has it."""
        # nan is neither above nor below anything.
        if (
            isinstance(found, int | float)
            and not isinstance(found, bool)
            and self.low <= found <= self.high
        ):
            return float(found)
        raise refusal(self, found)

    def write(self, value: object) -> str:
        """As Kind has it."""
        return repr(value)


@dataclass(frozen=True, slots=True)
class Choice:
    """One of several strings, each with what Policy has for it."""

    values: Mapping[str, object]

    wanted = "a string"

    @property
    def allowed(self) -> str:
        """As Kind has it."""
        return ", ".join(map(toml_string, self.values))

    def read(self, found: object) -> object:
        """As Kind has it."""
        if isinstance(found, str) and found in self.values:
            return self.values[found]
        raise refusal(self, found)

    def write(self, value: object) -> str:
        """As Kind has it."""
        return toml_string(next(name for name, own in self.values.items() if own == value))


@dataclass(frozen=True, slots=True)
class File:
    """The absolute path of a file."""

    wanted = "a string"
    allowed = "the absolute path of a file, in characters that can be printed"

    def read(self, found: object) -> Path:
        """As Kind has it."""
        if isinstance(found, str) and found.isprintable() and Path(found).is_absolute():
            return Path(found)
        raise refusal(self, found)

    def write(self, value: object) -> str:
        """As Kind has it."""
        return toml_string(str(value))


@dataclass(frozen=True, slots=True)
class Names:
    """A list of names, the most wanted first. Policy has it with colons between them."""

    wanted = "an array of strings"
    allowed = "names in quotation marks, each once"

    def read(self, found: object) -> str:
        """As Kind has it."""
        if not isinstance(found, list):
            raise refusal(self, found)
        for name in found:
            if not isinstance(name, str) or not name or ":" in name or found.count(name) > 1:
                raise refusal(self, name, "in it ")
        return ":".join(found)

    def write(self, value: object) -> str:
        """As Kind has it."""
        names = [toml_string(name) for name in str(value).split(":") if name]
        if not names:
            return "[]"
        return "[\n" + "".join(f"    {name},\n" for name in names) + "]"


def refusal(kind: Kind, found: object, where: str = "") -> ValueError:
    """Make the error of a value that a kind does not have."""
    return ValueError(
        f"wanted {kind.wanted}, found {where}{describe(found)}; allowed: {kind.allowed}."
    )


def describe(found: object) -> str:
    """Say what TOML gave: its type, and the value if it is short."""
    named = _TYPES.get(type(found), "something else")
    match found:
        case bool():
            shown = "true" if found else "false"
        case int() if abs(found) < 1 << 64:
            shown = str(found)
        case float():
            shown = repr(found) if math.isfinite(found) else f"{found:g}"
        case str():
            shown = toml_string(found)
        case _:
            return named
    if len(shown) > _SHOWN_MAX:
        shown = shown[: _SHOWN_MAX - 3] + "..."
    return f"{'the' + named[named.index(' ') :]} {shown}"


def toml_string(text: str) -> str:
    """Return a basic string of TOML. JSON's are the same, but for DEL."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
