# SPDX-License-Identifier: BSD-3-Clause
"""ssa.yaml as typed, checked data.

The specification has the form of the kernel's netlink specs; this module reads
the part of that form that we use and refuses everything else, so that a
misspelt key can't silently change the contract.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from document import Node, SpecError, describe, read

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

# nla_len is 16 bits wide and counts the four bytes of the attribute's header.
ATTRIBUTE_PAYLOAD_MAX = 0xFFFF - 4


class Kind(StrEnum):
    """Types of attributes, by the specification's names."""

    U32 = "u32"
    U64 = "u64"
    S32 = "s32"
    STRING = "string"
    BINARY = "binary"

    @property
    def is_integer(self) -> bool:
        return self in INTEGER_RANGE


# Netlink specs ask for integers of at least 32 bits: smaller ones save nothing.
INTEGER_RANGE: Mapping[Kind, tuple[int, int]] = {
    Kind.U32: (0, 2**32 - 1),
    Kind.U64: (0, 2**64 - 1),
    Kind.S32: (-(2**31), 2**31 - 1),
}


@dataclass(frozen=True, slots=True)
class Const:
    """A number with a name; ``header`` names the public header that defines it."""

    name: str
    value: int
    doc: str
    header: str | None


@dataclass(frozen=True, slots=True)
class Entry:
    """One value of an enum."""

    name: str
    value: int
    doc: str


@dataclass(frozen=True, slots=True)
class Enum:
    """Values with names; ``header`` as in Const."""

    name: str
    entries: tuple[Entry, ...]
    doc: str
    header: str | None


@dataclass(frozen=True, slots=True)
class Limit:
    """A bound of an attribute, and the constant it was written as, if any."""

    value: int
    const: Const | None


@dataclass(frozen=True, slots=True)
class Attribute:
    """One attribute; ``multi`` ones may be in a message several times."""

    name: str
    number: int
    kind: Kind
    doc: str
    enum: Enum | None
    minimum: Limit | None
    maximum: Limit | None
    max_length: Limit | None
    multi: bool


@dataclass(frozen=True, slots=True)
class Exchange:
    """A request and what comes back; None means that nothing but an ack does."""

    request: tuple[Attribute, ...]
    reply: tuple[Attribute, ...] | None


@dataclass(frozen=True, slots=True)
class Operation:
    """One command: asked of the kernel (``do``, ``dump``) or told by it (``event``)."""

    name: str
    number: int
    doc: str
    admin: bool
    do: Exchange | None
    dump: Exchange | None
    event: tuple[Attribute, ...] | None

    @property
    def request(self) -> tuple[Attribute, ...]:
        """What may be asked; do and dump have the same."""
        exchange = self.do or self.dump
        return exchange.request if exchange else ()


@dataclass(frozen=True, slots=True)
class Group:
    """A multicast group."""

    name: str
    admin: bool


@dataclass(frozen=True, slots=True)
class Spec:
    """The whole contract."""

    name: str
    version: int
    doc: str
    consts: tuple[Const, ...]
    enums: tuple[Enum, ...]
    attribute_set: str
    attributes: tuple[Attribute, ...]
    operations: tuple[Operation, ...]
    groups: tuple[Group, ...]


def load(path: Path) -> Spec:
    """Read and check the specification at ``path``.

    Raises SpecError with the path, the place in it and the reason.
    """
    try:
        return _spec(read(path))
    except SpecError as error:
        raise SpecError(f"{path}: {error}") from error


def _spec(top: Node) -> Spec:
    name = top.name(set())
    top.choice("protocol", ["genetlink"])
    version = top.number("version")
    if version is None or not 1 <= version <= 255:
        raise top.error(f"version must be 1 to 255, found {describe(version)}")
    doc = top.text("doc")
    consts, enums = _definitions(top.children("definitions"))
    sets = top.children("attribute-sets")
    if len(sets) != 1:
        raise top.error(f"attribute-sets must hold exactly one set, found {len(sets)}")
    set_name = sets[0].name(set())
    sets[0].text("doc", "")
    attributes = _attributes(sets[0].children("attributes"), consts, enums)
    sets[0].finish()
    operations = _operations(top.child("operations"), set_name, attributes)
    groups = _groups(top.child("mcast-groups"))
    top.finish()
    return Spec(
        name=name,
        version=version,
        doc=doc,
        consts=tuple(consts.values()),
        enums=tuple(enums.values()),
        attribute_set=set_name,
        attributes=tuple(attributes.values()),
        operations=operations,
        groups=groups,
    )


def _definitions(nodes: list[Node]) -> tuple[dict[str, Const], dict[str, Enum]]:
    consts: dict[str, Const] = {}
    enums: dict[str, Enum] = {}
    seen: set[str] = set()
    for node in nodes:
        name = node.name(seen)
        kind = node.choice("type", ["const", "enum"])
        header = node.text("header", "") or None
        if kind == "const":
            value = node.number("value")
            if value is None or not 0 <= value < 2**31:
                raise node.error(f"value must be 0 to 2^31-1, found {describe(value)}")
            consts[name] = Const(name, value, node.text("doc"), header)
        else:
            entries = _entries(node.children("entries"))
            if not entries:
                raise node.error("entries must hold at least one entry")
            enums[name] = Enum(name, entries, node.text("doc"), header)
        node.finish()
    return consts, enums


def _entries(nodes: list[Node]) -> tuple[Entry, ...]:
    entries: list[Entry] = []
    seen: set[str] = set()
    for node in nodes:
        name = node.name(seen)
        value = node.number("value")
        if value is None:
            value = entries[-1].value + 1 if entries else 0
        # Ascending, so that the last entry is the greatest and additions are at the end.
        if value < 0 or (entries and value <= entries[-1].value):
            raise node.error(f"value {value} must be greater than that of the entry before it")
        entries.append(Entry(name, value, node.text("doc")))
        node.finish()
    return tuple(entries)


def _attributes(
    nodes: list[Node], consts: Mapping[str, Const], enums: Mapping[str, Enum]
) -> dict[str, Attribute]:
    attributes: dict[str, Attribute] = {}
    seen: set[str] = set()
    for number, node in enumerate(nodes, start=1):
        name = node.name(seen)
        kind = Kind(node.choice("type", list(Kind)))
        enum_name = node.text("enum", "")
        if enum_name and enum_name not in enums:
            raise node.error(f"enum {enum_name!r} is not defined")
        if enum_name and kind is not Kind.U32:
            raise node.error(f"enum needs type u32, found {kind}")
        minimum, maximum, max_length = _checks(node, kind, consts)
        if enum_name and (minimum or maximum):
            raise node.error("an enum brings its own range; checks can't be given as well")
        attributes[name] = Attribute(
            name=name,
            number=number,
            kind=kind,
            doc=node.text("doc"),
            enum=enums.get(enum_name),
            minimum=minimum,
            maximum=maximum,
            max_length=max_length,
            multi=node.flag("multi-attr"),
        )
        node.finish()
    return attributes


def _checks(
    attribute: Node, kind: Kind, consts: Mapping[str, Const]
) -> tuple[Limit | None, Limit | None, Limit | None]:
    node = attribute.child("checks")
    if node is None:
        return None, None, None
    if not kind.is_integer:
        length = _limit(node, "max-len", consts)
        if length is not None and not 1 <= length.value <= ATTRIBUTE_PAYLOAD_MAX - 1:
            raise node.error(
                f"max-len must be 1 to {ATTRIBUTE_PAYLOAD_MAX - 1}, the most that an attribute "
                f"and a terminating NUL hold, found {length.value}"
            )
        node.finish()
        return None, None, length
    minimum, maximum = _limit(node, "min", consts), _limit(node, "max", consts)
    low, high = INTEGER_RANGE[kind]
    for limit in (minimum, maximum):
        if limit is not None and not low <= limit.value <= high:
            raise node.error(f"{limit.value} does not fit into a {kind}")
    if minimum and maximum and minimum.value > maximum.value:
        raise node.error(f"min {minimum.value} is greater than max {maximum.value}")
    node.finish()
    return minimum, maximum, None


def _limit(node: Node, key: str, consts: Mapping[str, Const]) -> Limit | None:
    value = node.take(key)
    if value is None:
        return None
    if type(value) is int:
        return Limit(value, None)
    if not isinstance(value, str) or value not in consts:
        raise node.error(f"{key} must be an integer or a const's name, found {describe(value)}")
    return Limit(consts[value].value, consts[value])


def _operations(
    node: Node | None, set_name: str, attributes: Mapping[str, Attribute]
) -> tuple[Operation, ...]:
    if node is None:
        raise SpecError("top level: operations is missing")
    node.choice("enum-model", ["unified"])
    operations: list[Operation] = []
    seen: set[str] = set()
    for number, item in enumerate(node.children("list"), start=1):
        name = item.name(seen)
        item.choice("attribute-set", [set_name])
        doc = item.text("doc")
        admin = item.admin_perm()
        do = _exchange(item, "do", attributes)
        dump = _exchange(item, "dump", attributes)
        event = item.child("event")
        if (do or dump) and event:
            raise item.error("a command is asked of the kernel or told by it, not both")
        if not (do or dump or event):
            raise item.error("do, dump or event is missing")
        if do and dump and do.request != dump.request:
            raise item.error("do and dump share one policy, so their requests must be the same")
        told = _list(event, attributes) if event else None
        item.finish()
        operations.append(Operation(name, number, doc, admin, do, dump, told))
    node.finish()
    return tuple(operations)


def _exchange(operation: Node, key: str, attributes: Mapping[str, Attribute]) -> Exchange | None:
    node = operation.child(key)
    if node is None:
        return None
    request, reply = node.child("request"), node.child("reply")
    node.finish()
    return Exchange(
        request=_list(request, attributes) if request else (),
        reply=_list(reply, attributes) if reply else None,
    )


def _list(node: Node, attributes: Mapping[str, Attribute]) -> tuple[Attribute, ...]:
    names = node.names("attributes")
    for name in names:
        if name not in attributes:
            raise node.error(f"attribute {name!r} is not defined")
        if names.count(name) > 1:
            raise node.error(f"attribute {name!r} is listed twice")
    node.finish()
    return tuple(attributes[name] for name in names)


def _groups(node: Node | None) -> tuple[Group, ...]:
    if node is None:
        return ()
    seen: set[str] = set()
    groups: list[Group] = []
    for item in node.children("list"):
        groups.append(Group(item.name(seen), item.admin_perm()))
        item.finish()
    node.finish()
    return tuple(groups)
