# SPDX-License-Identifier: BSD-3-Clause
"""The policy file: TOML in, a Policy or everything that is wrong with it out, and back.

Nothing is passed over. A file that can't be read, an unknown key or a value that is not allowed
make the whole file unusable, for half a policy may be a weak one.
"""

from __future__ import annotations

import difflib
import functools
import os
import pwd
import re
import stat
import textwrap
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ssad.errors import Refused
from ssad.policy import KEYS, TLS_1_2, TLS_1_3, Key, Policy
from ssad.values import describe, toml_string

DEFAULT_FILE = Path("/etc/ssad/ssad.toml")

_SIZE_MAX = 65536  # bytes; some ten times what a file with every key and its comment has
_WIDTH = 79  # of comments

_FIELDS = {(key.table, key.name): name for name, key in KEYS.items()}
_TABLES: dict[str, list[Key]] = {}
for _key in KEYS.values():
    _TABLES.setdefault(_key.table, []).append(_key)

_HEAD = """\
# The policy of ssad: what TLS sockets may do on this machine. See ssad.toml(5).
# 'ssad config check' checks it, 'ssad reload' makes a change hold."""

_CIPHERS12 = "ALL:!aNULL:!eNULL:!PSK:!SRP"  # openssl-ciphers(1)

# How tomllib ends its messages.
_AT = re.compile(r"(.*) \(at (?:line (\d+), column (\d+)|end of document)\)", re.DOTALL)

# The place of a table or of a key in a file: ("tls",), ("tls", "version_min").
_Place = tuple[str, ...]
_DEPTH = 2  # nothing deeper has a place


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that is wrong."""

    file: str  # or the option of the command line that says it
    line: int | None
    key: str  # empty if it is no key's fault
    text: str  # what was wanted, what was found, what is allowed

    def __str__(self) -> str:
        where = self.file if self.line is None else f"{self.file}:{self.line}"
        return ": ".join(part for part in (where, self.key, self.text) if part)


class Faulty(Exception):
    """A policy can't be used."""

    def __init__(self, faults: Iterable[Fault]) -> None:
        self.faults = tuple(faults)
        super().__init__(self.faults)

    def __str__(self) -> str:
        return "\n".join(map(str, self.faults))


@dataclass(frozen=True, slots=True)
class Source:
    """Where a policy comes from: a file, and what the command line says instead."""

    path: Path = DEFAULT_FILE
    required: bool = False  # else the defaults hold if there is no such file
    overrides: Mapping[str, object] = field(default_factory=dict)  # by Policy's fields, as TOML's

    def load(self, *, usable: bool = True) -> Policy:
        """Read and check all of it as the user that this process runs as. `usable`: as for parse.

        Raises Faulty with everything that is wrong.
        """
        text = self.text()
        if text is None and not self.overrides and not usable:
            return Policy()  # of which nothing is in doubt
        return parse(text or "", str(self.path), self.overrides, usable=usable)

    def text(self) -> str | None:
        """Return what is in the file; None if it is missing and may be. Raises Faulty."""
        try:
            return _read(self.path)
        except FileNotFoundError as error:
            if not self.required:
                return None
            reason = error.strerror
        except PermissionError as error:
            reason = f"{error.strerror} for user {_user()}; let this user read it"
        except (OSError, ValueError) as error:
            reason = str(getattr(error, "strerror", None) or error)
        raise Faulty([Fault(str(self.path), None, "", f"The policy file can't be read: {reason}.")])


def _user() -> str:
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())


def _read(path: Path) -> str:
    """Raises OSError, or ValueError with a reason."""
    # Nobody may make us wait, as a FIFO would.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise ValueError("it is no regular file")
        data = file.read(_SIZE_MAX + 1)
    if len(data) > _SIZE_MAX:
        raise ValueError(f"it has more than {_SIZE_MAX} bytes")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ValueError(f"line {line} is not UTF-8 text") from error


def parse(
    text: str, file: str, overrides: Mapping[str, object] | None = None, *, usable: bool = False
) -> Policy:
    """Return the policy that a text says. `file` is what errors call it; `overrides` are as Source
    has them; `usable`: check what the policy needs of this machine as well.

    Raises Faulty with everything that is wrong.
    """
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise Faulty([_syntax_fault(str(error), text, file)]) from error
    except RecursionError as error:
        text = "No policy is nested that deeply; wanted tables, and values and lists in them."
        raise Faulty([Fault(file, None, "", text)]) from error
    reader = _Reader(file, text)
    reader.take(document)
    reader.override(overrides or {})
    policy = Policy(**reader.found)
    reader.check(policy)
    if usable and not reader.faults:
        reader.check_usable(policy)
    if reader.faults:
        raise Faulty(sorted(reader.faults, key=lambda fault: fault.line or 0))
    return policy


def _syntax_fault(message: str, text: str, file: str) -> Fault:
    what, line, column = message, str(text.count("\n") + 1), ""
    if match := _AT.fullmatch(message):
        what = match[1]
        line, column = match[2] or line, f" in column {match[3]}" if match[3] else ""
    return Fault(file, int(line), "", f"This is not TOML: {what}{column}.")


def _places(text: str) -> Iterator[tuple[_Place, int]]:
    """Give the line of each table and key of a valid document; the first, if there are several.

    tomllib does not say it, nor does any parser in wide use. But a statement of TOML can stand
    alone, and none is whole before its last line: so the fewest lines that parse are one.
    """
    seen: set[_Place] = set()
    table: _Place = ()
    lines = text.replace("\r\n", "\n").split("\n")
    first = 0
    for last in range(len(lines)):
        try:
            statement = tomllib.loads("\n".join(lines[first : last + 1]))
        except (tomllib.TOMLDecodeError, RecursionError):
            continue
        places = list(_paths(statement))
        if lines[first].lstrip().startswith("["):
            table = places[-1]
        else:
            places = [(*table, *place) for place in places]
        for place in places:
            if place not in seen:
                seen.add(place)
                yield place, first + 1
        first = last + 1


def _paths(found: Mapping[str, Any], depth: int = _DEPTH) -> Iterator[_Place]:
    for name, value in found.items():
        yield (name,)
        if isinstance(value, dict) and depth > 1:
            yield from ((name, *rest) for rest in _paths(value, depth - 1))


class _Reader:
    """Reads a document that is valid TOML, and gathers what is wrong with it."""

    def __init__(self, file: str, text: str) -> None:
        self._file = file
        self._text = text
        self._options: set[str] = set()  # fields that the command line gives
        self.found: dict[str, Any] = {}  # by Policy's fields
        self.faults: list[Fault] = []

    def take(self, document: Mapping[str, Any]) -> None:
        """Take what a file says."""
        for table, content in document.items():
            if table not in _TABLES:
                self._fault((table,), _unknown_table(table, content))
            elif not isinstance(content, dict):
                text = f"wanted a table, found {describe(content)}; allowed: [{table}]."
                self._fault((table,), text)
            else:
                for name, value in content.items():
                    self._take_key((table, name), value)

    def _take_key(self, place: tuple[str, str], value: object) -> None:
        own = _FIELDS.get(place)
        if own is None:
            self._fault(place, _unknown_key(*place))
            return
        try:
            self.found[own] = KEYS[own].kind.read(value)
        except ValueError as error:
            self._fault(place, str(error))

    def override(self, overrides: Mapping[str, object]) -> None:
        """Take what the command line says."""
        for own, value in overrides.items():
            self._options.add(own)
            try:
                self.found[own] = KEYS[own].kind.read(value)
            except ValueError as error:
                self._fault_of(own, str(error))

    def check(self, policy: Policy) -> None:
        """Check what several rules say together."""
        for own, mine in (("ciphers12", _ciphers12()), ("ciphers13", _ciphers13())):
            for name in filter(None, str(getattr(policy, own)).split(":")):
                if name not in mine:
                    self._fault_of(own, _unusable_cipher(own, name, mine))
        if policy.version_min > policy.version_max:
            low, high = (
                KEYS[own].kind.write(getattr(policy, own)) for own in ("version_min", "version_max")
            )
            self._fault_of(
                "version_max" if "version_max" in self.found else "version_min",
                f"wanted a range of versions, found {low} as the lowest and {high} as the highest; "
                "allowed: tls.version_min up to tls.version_max.",
            )
        for own, version in (("ciphers12", TLS_1_2), ("ciphers13", TLS_1_3)):
            if policy.version_min <= version <= policy.version_max and not getattr(policy, own):
                name = "1.2" if version == TLS_1_2 else "1.3"
                self._fault_of(
                    own,
                    f"wanted a cipher, found none; allowed: none only if tls.version_min and "
                    f"tls.version_max leave out TLS {name}.",
                )

    def check_usable(self, policy: Policy) -> None:
        """Check what a policy needs of this machine."""
        # Here and below: `ssad status` starts fast where there is no file to check.
        from ssad.context import client_context
        from ssad.settings import Settings

        try:
            client_context(Settings(), policy)
        except Refused as refused:
            allowed = f"Allowed: a file of PEM certificates that user {_user()} can read."
            self._fault_of("trust_store", f"{refused.text} {allowed}")

    def _fault(self, place: _Place, text: str) -> None:
        self.faults.append(Fault(self._file, self._line(place), ".".join(place), text))

    def _fault_of(self, own: str, text: str) -> None:
        """Something is wrong with a field of Policy, which may not be in the file."""
        key = KEYS[own]
        if own in self._options:
            self.faults.append(Fault(f"--{own.replace('_', '-')}", None, "", text))
        else:
            self._fault((key.table, key.name), text)

    def _line(self, place: _Place) -> int | None:
        return self._lines.get(place)

    @functools.cached_property
    def _lines(self) -> Mapping[_Place, int]:
        """Only if there is a fault to tell: it takes a while where a list has many lines."""
        return dict(_places(self._text))


def _unknown_table(table: str, content: object) -> str:
    if not isinstance(content, dict):
        homes = [str(key) for key in KEYS.values() if key.name == table]
        hint = f" It belongs into its table: {homes[0]}." if homes else ""
        return f"wanted a table, found a key outside of any.{hint} Allowed: {_tables()}."
    return f"unknown table.{_meant(table, _TABLES)} Allowed: {_tables()}."


def _tables() -> str:
    return ", ".join(f"[{table}]" for table in _TABLES)


def _unknown_key(table: str, name: str) -> str:
    names = [key.name for key in _TABLES[table]]
    homes = [f" It belongs into [{key.table}]." for key in KEYS.values() if key.name == name]
    hint = homes[0] if homes else _meant(name, names)
    return f"unknown key.{hint} Allowed in [{table}]: {', '.join(names)}."


def _meant(name: str, names: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(names), 1)
    return f" Did you mean {close[0]}?" if close else ""


def _unusable_cipher(own: str, name: str, allowed: frozenset[str]) -> str:
    from ssad.settings import known_ciphers

    if name in _ciphers12() | _ciphers13():
        reason = "which is one of the other version of TLS"
    elif name in known_ciphers():
        reason = "which does without encryption, or without certificates"
    else:
        reason = "which OpenSSL does not know"
    names = ", ".join(sorted(allowed))
    if own == "ciphers12":
        names = f"what \"openssl ciphers -s -tls1_2 '{_CIPHERS12}'\" lists"
    return f"wanted a cipher, found {toml_string(name)}, {reason}; allowed: {names}."


@functools.cache
def _ciphers12() -> frozenset[str]:
    """Names of OpenSSL's ciphers of TLS 1.2 that encrypt, and authenticate by certificates. How
    weak they may be otherwise is for the administrator to decide."""
    from OpenSSL import SSL

    context = SSL.Context(SSL.TLS_METHOD)
    context.set_cipher_list(_CIPHERS12.encode("ascii"))
    return frozenset(SSL.Connection(context, None).get_cipher_list()) - _ciphers13()


@functools.cache
def _ciphers13() -> frozenset[str]:
    from ssad.settings import known_ciphers

    return frozenset(name for name in known_ciphers() if name.startswith("TLS_"))


def dump(policy: Policy) -> str:
    """Return a policy as TOML, each key with what it means and its default; `parse` takes it."""
    default = Policy()
    parts = [_HEAD]
    for table, keys in _TABLES.items():
        parts.append(f"[{table}]")
        for key in keys:
            own = _FIELDS[key.table, key.name]
            comment = f"{key.doc} Allowed: {key.kind.allowed}."
            lines = textwrap.wrap(comment, _WIDTH, break_long_words=False, break_on_hyphens=False)
            lines.append(_default(key, getattr(default, own)))
            text = "".join(f"# {line}\n" for line in lines)
            parts.append(f"{text}{key.name} = {key.kind.write(getattr(policy, own))}")
    return "\n\n".join(parts) + "\n"


def _default(key: Key, value: object) -> str:
    return "Default: " + key.kind.write(value).replace("\n", "\n# ")
