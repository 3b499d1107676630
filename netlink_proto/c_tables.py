# SPDX-License-Identifier: BSD-3-Clause
"""The kernel's generic netlink tables: policies, operations, multicast groups."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from c_text import HEADER_LICENCE, SOURCE_LICENCE, Names, comment, head, lower, text, upper
from spec import Attribute, Kind, Operation, Spec

if TYPE_CHECKING:
    from collections.abc import Iterator

_POLICY_TYPE = {
    Kind.U32: "NLA_U32",
    Kind.U64: "NLA_U64",
    Kind.S32: "NLA_S32",
    Kind.STRING: "NLA_NUL_STRING",
    Kind.BINARY: "NLA_BINARY",
}

_POLICY_ENDS = {
    Kind.U32: ("0", "U32_MAX"),
    Kind.U64: ("0", "U64_MAX"),
    Kind.S32: ("S32_MIN", "S32_MAX"),
}

# struct nla_policy keeps a bound in an s16; a greater one needs a range of its own.
_POLICY_BOUND_MAX = 0x7FFF


class _Bound(NamedTuple):
    """A bound of an attribute, and how C names it."""

    value: int
    text: str

    def __str__(self) -> str:
        return self.text


class Tables:
    """Renders the kernel's tables of one specification."""

    def __init__(self, spec: Spec) -> None:
        self._spec = spec
        self._names = Names(spec)

    def header(self) -> str:
        """genl.h: prototypes of the callbacks, and the tables for struct genl_family."""
        return text(self._header())

    def _asked(self) -> list[Operation]:
        return [o for o in self._spec.operations if o.do or o.dump]

    def _header(self) -> Iterator[str]:
        spec = self._spec
        guard = upper("", spec.name, "genl-h")
        yield from head(HEADER_LICENCE)
        yield from (f"#ifndef {guard}", f"#define {guard}", "")
        yield from ("#include <net/genetlink.h>", "#include <net/netlink.h>", "")
        yield from (f'#include "{spec.name}_netlink.h"', "")
        for operation in self._asked():
            if operation.do:
                name = self._callback(operation, "doit")
                yield f"int {name}(struct sk_buff *skb, struct genl_info *info);"
            if operation.dump:
                name = self._callback(operation, "dumpit")
                yield f"int {name}(struct sk_buff *skb, struct netlink_callback *cb);"
        yield ""
        yield from comment("Indices of the multicast groups, for genlmsg_multicast().")
        yield "enum {"
        yield from (f"\t{upper(spec.name, 'nlgrp', g.name)}," for g in spec.groups)
        yield from ("};", "")
        yield from comment(
            "For the family, whose resv_start_op has to stay 0: then a command without a policy "
            "refuses every attribute, and one with a policy those that it does not list."
        )
        yield f"extern const struct genl_ops {self._table('ops')}[{len(self._asked())}];"
        yield (
            f"extern const struct genl_multicast_group {self._table('mcgrps')}[{len(spec.groups)}];"
        )
        yield ""
        yield f"#endif /* {guard} */"

    def _table(self, name: str) -> str:
        return lower(self._spec.name, "nl", name)

    def source(self) -> str:
        """genl.c: policies, operations and multicast groups.

        struct genl_ops and not the newer struct genl_split_ops, which 6.1 lacks.
        """
        return text(self._source())

    def _source(self) -> Iterator[str]:
        spec = self._spec
        yield from head(SOURCE_LICENCE)
        yield from ('#include "genl.h"', "")
        yield from self._ranges()
        for operation in self._asked():
            yield from self._policy(operation)
        yield f"const struct genl_ops {self._table('ops')}[] = {{"
        for operation in self._asked():
            yield from self._op(operation)
        yield from ("};", "")
        yield f"const struct genl_multicast_group {self._table('mcgrps')}[] = {{"
        for group in spec.groups:
            yield f"\t[{upper(spec.name, 'nlgrp', group.name)}] = {{"
            yield f"\t\t.name = {upper(spec.name, 'mcgrp', group.name)},"
            if group.admin:
                yield "\t\t.flags = GENL_MCAST_CAP_NET_ADMIN,"
            yield "\t},"
        yield "};"

    @staticmethod
    def _request(operation: Operation) -> list[Attribute]:
        return sorted(operation.request, key=lambda a: a.number)

    def _policy_name(self, operation: Operation) -> str:
        return lower(self._spec.name, operation.name, "nl-policy")

    def _policy(self, operation: Operation) -> Iterator[str]:
        request = self._request(operation)
        if not request:
            return
        verbs = " and ".join(v for v, e in (("do", operation.do), ("dump", operation.dump)) if e)
        yield f"/* {self._names.command(operation)} - {verbs} */"
        start = f"static const struct nla_policy {self._policy_name(operation)}"
        yield f"{start}[{self._names.attribute(request[-1])} + 1] = {{"
        for attribute in request:
            yield f"\t[{self._names.attribute(attribute)}] = {self._rule(attribute)},"
        yield from ("};", "")

    def _op(self, operation: Operation) -> Iterator[str]:
        request = self._request(operation)
        yield "\t{"
        yield f"\t\t.cmd = {self._names.command(operation)},"
        if operation.admin:
            yield "\t\t.flags = GENL_ADMIN_PERM,"
        if request:
            yield f"\t\t.policy = {self._policy_name(operation)},"
            yield f"\t\t.maxattr = {self._names.attribute(request[-1])},"
        if operation.do:
            yield f"\t\t.doit = {self._callback(operation, 'doit')},"
        if operation.dump:
            yield f"\t\t.dumpit = {self._callback(operation, 'dumpit')},"
        yield "\t},"

    def _callback(self, operation: Operation, verb: str) -> str:
        return lower(self._spec.name, "nl", operation.name, verb)

    def _bounds(self, attribute: Attribute) -> tuple[_Bound | None, _Bound | None]:
        """The bounds that the type alone does not give."""
        enum = attribute.enum
        if enum is not None:
            ends = (enum.entries[0], enum.entries[-1])
            first, last = (_Bound(entry.value, self._names.entry(enum, entry)) for entry in ends)
            return first if first.value else None, last
        low, high = attribute.minimum, attribute.maximum
        return (
            None if low is None else _Bound(low.value, self._names.limit(low)),
            None if high is None else _Bound(high.value, self._names.limit(high)),
        )

    def _needs_range(self, attribute: Attribute) -> bool:
        return any(
            bound is not None and abs(bound.value) > _POLICY_BOUND_MAX
            for bound in self._bounds(attribute)
        )

    def _range_name(self, attribute: Attribute) -> str:
        return lower(self._names.prefix, attribute.name, "range")

    def _ranges(self) -> Iterator[str]:
        used = {a for operation in self._asked() for a in self._request(operation)}
        for attribute in sorted(used, key=lambda a: a.number):
            if not self._needs_range(attribute):
                continue
            low, high = self._bounds(attribute)
            least, greatest = _POLICY_ENDS[attribute.kind]
            signed = "_signed" if attribute.kind is Kind.S32 else ""
            name = self._range_name(attribute)
            yield f"static const struct netlink_range_validation{signed} {name} = {{"
            yield f"\t.min = {least if low is None else low},"
            yield f"\t.max = {greatest if high is None else high},"
            yield from ("};", "")

    def _rule(self, attribute: Attribute) -> str:
        kind = _POLICY_TYPE[attribute.kind]
        if attribute.kind.is_integer:
            return self._integer_rule(kind, attribute)
        if attribute.max_length is None:
            return f"{{ .type = {kind} }}"
        return f"{{ .type = {kind}, .len = {self._names.limit(attribute.max_length)} }}"

    def _integer_rule(self, kind: str, attribute: Attribute) -> str:
        if self._needs_range(attribute):
            macro = "NLA_POLICY_FULL_RANGE" + ("_SIGNED" if attribute.kind is Kind.S32 else "")
            return f"{macro}({kind}, &{self._range_name(attribute)})"
        match self._bounds(attribute):
            case None, None:
                return f"{{ .type = {kind} }}"
            case None, high:
                return f"NLA_POLICY_MAX({kind}, {high})"
            case low, None:
                return f"NLA_POLICY_MIN({kind}, {low})"
            case low, high:
                return f"NLA_POLICY_RANGE({kind}, {low}, {high})"
