# SPDX-License-Identifier: BSD-3-Clause
"""The Python module of the contract: constants, enums, tables and the codec."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

from c_text import MADE_BY, lower, upper
from spec import ATTRIBUTE_PAYLOAD_MAX, INTEGER_RANGE, Attribute, Enum, Kind, Limit, Operation, Spec

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

_HERE = Path(__file__).parent

_PYTHON_TYPE = {
    Kind.U32: "int",
    Kind.U64: "int",
    Kind.S32: "int",
    Kind.STRING: "str",
    Kind.BINARY: "bytes",
}

_PYROUTE2_TYPE = {
    Kind.U32: "uint32",
    Kind.U64: "uint64",
    Kind.S32: "int32",
    Kind.STRING: "asciiz",
    Kind.BINARY: "cdata",
}


def wire_module(spec: Spec) -> str:
    """ssad/wire.py, from the template beside this file."""
    return _fill(
        "wire.py.in",
        {
            "definitions": _definitions(spec),
            "rules": map(_rule, spec.attributes),
            "carried": _carried(spec.operations),
        },
    )


def pyroute2_module(spec: Spec) -> str:
    """ssad/wire_pyroute2.py, likewise."""
    prefix = upper(spec.name, spec.attribute_set, "")
    return _fill("pyroute2.py.in", {"prefix": [prefix], "nla-map": _nla_map(spec, prefix)})


def _fill(template: str, places: Mapping[str, Iterable[str]]) -> str:
    text = (_HERE / template).read_text(encoding="utf-8").replace("@made-by@", MADE_BY)
    for place, lines in places.items():
        text = text.replace(f"@{place}@", "\n".join(lines))
    return text


def _class_name(enum: Enum) -> str:
    return enum.name.title().replace("-", "")


def _definitions(spec: Spec) -> Iterator[str]:
    yield f'FAMILY_NAME: Final = "{spec.name}"'
    yield f"FAMILY_VERSION: Final = {spec.version}"
    for group in spec.groups:
        yield f'{upper("group", group.name)}: Final = "{group.name}"'
    yield ""
    for const in spec.consts:
        yield f"{upper(const.name)}: Final = {const.value}"
    commands = [(upper(o.name), o.number) for o in spec.operations]
    yield from _enum("Command", "Commands of the family.", commands)
    attributes = [(upper(a.name), a.number) for a in spec.attributes]
    yield from _enum("Attribute", "Numbers of the attributes.", attributes)
    for enum in spec.enums:
        entries = [(upper(e.name), e.value) for e in enum.entries]
        yield from _enum(_class_name(enum), enum.doc, entries)
    yield from ("", "", "class Attributes(TypedDict, total=False):")
    yield from ('    """Attributes of a message, by name."""', "")
    for attribute in spec.attributes:
        yield f"    {lower(attribute.name)}: {_python_type(attribute)}"


def _enum(name: str, doc: str, members: Iterable[tuple[str, int]]) -> Iterator[str]:
    yield from ("", "", f"class {name}(IntEnum):")
    lines = textwrap.wrap(doc, 90)
    yield f'    """{lines[0]}' + ('"""' if len(lines) == 1 else "")
    if len(lines) > 1:
        yield from (f"    {line}" for line in lines[1:])
        yield '    """'
    yield ""
    for member, value in members:
        yield f"    {member} = {value}"


def _python_type(attribute: Attribute) -> str:
    plain = _class_name(attribute.enum) if attribute.enum else _PYTHON_TYPE[attribute.kind]
    return f"list[{plain}]" if attribute.multi else plain


def _rule(attribute: Attribute) -> str:
    if attribute.kind.is_integer:
        least, greatest = INTEGER_RANGE[attribute.kind]
        low, high = _value(attribute.minimum, least), _value(attribute.maximum, greatest)
    else:
        nul = 1 if attribute.kind is Kind.STRING else 0
        low, high = "0", _value(attribute.max_length, ATTRIBUTE_PAYLOAD_MAX - nul)
    rest = f", {_class_name(attribute.enum)}" if attribute.enum else ""
    rest += ", multi=True" if attribute.multi else ""
    name, kind = lower(attribute.name), attribute.kind
    return f'    _Rule({attribute.number}, "{name}", "{kind}", {low}, {high}{rest}),'


def _value(limit: Limit | None, default: int) -> str:
    if limit is None:
        return str(default)
    return upper(limit.const.name) if limit.const else str(limit.value)


def _carried(operations: Iterable[Operation]) -> Iterator[str]:
    for operation in operations:
        lists = [operation.event or ()]
        for exchange in (operation.do, operation.dump):
            if exchange:
                lists += [exchange.request, exchange.reply or ()]
        names = list(dict.fromkeys(lower(a.name) for attributes in lists for a in attributes))
        start = f"    Command.{upper(operation.name)}: frozenset("
        quoted = ", ".join(f'"{name}"' for name in names)
        if not names:
            yield f"{start}),"
        elif len(start) + len(quoted) + 4 <= 100:
            yield f"{start}{{{quoted}}}),"
        elif len(quoted) + 10 <= 100:
            yield from (start, f"        {{{quoted}}}", "    ),")
        else:
            yield from (start, "        {")
            yield from (f'            "{name}",' for name in names)
            yield from ("        }", "    ),")


def _nla_map(spec: Spec, prefix: str) -> Iterator[str]:
    yield f'        ("{prefix}UNSPEC", "none"),'
    for attribute in spec.attributes:
        yield f'        ("{prefix}{upper(attribute.name)}", "{_PYROUTE2_TYPE[attribute.kind]}"),'
