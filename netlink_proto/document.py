# SPDX-License-Identifier: BSD-3-Clause
"""Reading a YAML document strictly.

Every key must be asked for and be of the right type, and none may be written
twice; the error names the place.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterable
from typing import TYPE_CHECKING

import yaml

if TYPE_CHECKING:
    from pathlib import Path

_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")


class SpecError(Exception):
    """The specification can't be used; the text names the place and the reason."""


class _Loader(yaml.SafeLoader):
    """SafeLoader that refuses a key written twice instead of dropping the first."""

    def construct_mapping(
        self,
        node: yaml.MappingNode,
        deep: bool = False,  # noqa: FBT001, FBT002 -- PyYAML calls it so
    ) -> dict[Hashable, object]:
        seen: set[Hashable] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                raise SpecError(f"line {key_node.start_mark.line + 1}: a key must be a name")
            if key in seen:
                raise SpecError(f"line {key_node.start_mark.line + 1}: key {key!r} is given twice")
            seen.add(key)
        return super().construct_mapping(node, deep)


class Node:
    """A mapping of the document that knows where it is, and what was not read yet."""

    def __init__(self, value: object, where: str) -> None:
        if not isinstance(value, dict):
            raise SpecError(f"{where}: expected a mapping, found {describe(value)}")
        self._left: dict[object, object] = dict(value)
        self._where = where
        self._known: list[str] = []

    def error(self, text: str) -> SpecError:
        return SpecError(f"{self._where}: {text}")

    def take(self, key: str) -> object:
        self._known.append(key)
        return self._left.pop(key, None)

    def name(self, seen: set[str]) -> str:
        """Take the name, which must differ from those in ``seen``, and be placed by it."""
        value = self.text("name")
        if not _NAME.fullmatch(value):
            raise self.error(f"name {value!r} is not in kebab-case (as in peer-chain)")
        if value in seen:
            raise self.error(f"name {value!r} is used twice")
        seen.add(value)
        self._where = re.sub(r"\[\d+\]$", f"[{value}]", self._where)
        return value

    def text(self, key: str, default: str | None = None) -> str:
        value = self.take(key)
        if value is None and default is not None:
            return default
        if not isinstance(value, str) or not value:
            raise self.error(f"{key} must be a text, found {describe(value)}")
        return value

    def number(self, key: str) -> int | None:
        value = self.take(key)
        if value is not None and type(value) is not int:
            raise self.error(f"{key} must be an integer, found {describe(value)}")
        return value

    def flag(self, key: str) -> bool:
        value = self.take(key)
        if value is not None and not isinstance(value, bool):
            raise self.error(f"{key} must be true or false, found {describe(value)}")
        return bool(value)

    def choice(self, key: str, choices: Iterable[str]) -> str:
        value = self.text(key)
        if value not in choices:
            raise self.error(f"{key} {value!r} is not one of {', '.join(choices)}")
        return value

    def admin_perm(self) -> bool:
        flags = self.take("flags")
        if flags not in (None, [], ["admin-perm"]):
            raise self.error(f"flags must be [admin-perm] or left out, found {describe(flags)}")
        return flags == ["admin-perm"]

    def child(self, key: str) -> Node | None:
        value = self.take(key)
        return None if value is None else Node(value, f"{self._where}/{key}")

    def children(self, key: str) -> list[Node]:
        value = self.take(key)
        if not isinstance(value, list):
            raise self.error(f"{key} must be a list, found {describe(value)}")
        return [Node(item, f"{self._where}/{key}[{i}]") for i, item in enumerate(value)]

    def names(self, key: str) -> list[str]:
        value = self.take(key)
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise self.error(f"{key} must be a list of names, found {describe(value)}")
        return value

    def finish(self) -> None:
        """Refuse keys that nothing has asked for."""
        if self._left:
            unknown = ", ".join(sorted(str(key) for key in self._left))
            known = ", ".join(sorted(self._known))
            raise self.error(f"unknown key {unknown}; known here: {known}")


def describe(value: object) -> str:
    return "nothing" if value is None else repr(value)


def read(path: Path) -> Node:
    """Return the document at ``path``; raises SpecError if it can't be read or is not YAML."""
    try:
        text = path.read_text(encoding="utf-8")
        document = yaml.load(text, Loader=_Loader)  # noqa: S506 -- it is a SafeLoader
        return Node(document, "top level")
    except OSError as error:
        raise SpecError(f"it can't be read: {error.strerror}") from error
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise SpecError(f"it is not YAML: {error}") from error
