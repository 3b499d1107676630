# SPDX-License-Identifier: BSD-3-Clause
"""How C text is laid out, and what C calls the things of a specification."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from spec import Attribute, Entry, Enum, Limit, Operation, Spec

MADE_BY = "Made from netlink_proto/ssa.yaml by netlink_proto/generate.py: do not edit."

PUBLIC_LICENCE = (
    "/* SPDX-License-Identifier: ((GPL-2.0 WITH Linux-syscall-note) OR BSD-3-Clause) */"
)
HEADER_LICENCE = "/* SPDX-License-Identifier: GPL-2.0 */"
SOURCE_LICENCE = "// SPDX-License-Identifier: GPL-2.0"


def upper(*parts: str) -> str:
    return "_".join(parts).replace("-", "_").upper()


def lower(*parts: str) -> str:
    return "_".join(parts).replace("-", "_").lower()


def _wrap(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False)


def comment(text: str) -> Iterator[str]:
    """``text`` as a block comment of kernel style."""
    lines = _wrap(text, 76)
    if len(lines) == 1:
        yield f"/* {lines[0]} */"
    else:
        yield from ("/*", *(f" * {line}" for line in lines), " */")


def kernel_doc(title: str, doc: str, members: Iterable[tuple[str, str]]) -> Iterator[str]:
    yield "/**"
    for text in (f"{title} - {doc}", *(f"@{name}: {text}" for name, text in members)):
        first, *more = _wrap(text, 70)
        yield f" * {first}"
        yield from (f" *\t{line}" for line in more)
    yield " */"


def head(licence: str) -> Iterator[str]:
    yield from (licence, f"/* {MADE_BY} */", "")


def define(name: str, value: int | str) -> str:
    """A #define whose value starts at column 40, or after one tab."""
    start = f"#define {name}"
    return start + "\t" * max(1, (47 - len(start)) // 8) + str(value)


def text(lines: Iterable[str]) -> str:
    return "\n".join(lines) + "\n"


class Names:
    """What C calls things.

    A definition with a header is known by its own name, the others are prefixed.
    """

    def __init__(self, spec: Spec) -> None:
        self._spec = spec
        self.prefix = f"{spec.name}-{spec.attribute_set}"

    def entry(self, enum: Enum, entry: Entry) -> str:
        return upper(entry.name if enum.header else f"{self._spec.name}-{enum.name}-{entry.name}")

    def attribute(self, attribute: Attribute) -> str:
        return upper(self.prefix, attribute.name)

    def command(self, operation: Operation) -> str:
        return upper(self._spec.name, "cmd", operation.name)

    def limit(self, limit: Limit) -> str:
        if limit.const is None:
            return str(limit.value)
        if limit.const.header is not None:
            return upper(limit.const.name)
        return upper(self._spec.name, limit.const.name)
