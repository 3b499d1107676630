# SPDX-License-Identifier: BSD-3-Clause
"""The public C headers: the wire, and what programs include."""

from __future__ import annotations

from typing import TYPE_CHECKING

from c_text import PUBLIC_LICENCE, Names, comment, define, head, kernel_doc, lower, text, upper

if TYPE_CHECKING:
    from collections.abc import Iterator

    from spec import Attribute, Enum, Spec

PUBLIC_HEADER = "in_tls.h"


class Headers:
    """Renders the public headers of one specification."""

    def __init__(self, spec: Spec) -> None:
        self._spec = spec
        self._names = Names(spec)

    def wire(self) -> str:
        """ssa_netlink.h: everything that both ends of the netlink socket name."""
        return text(self._wire())

    def _wire(self) -> Iterator[str]:
        spec = self._spec
        guard = upper("", "uapi", spec.name, "netlink-h")
        yield from head(PUBLIC_LICENCE)
        yield from (f"#ifndef {guard}", f"#define {guard}", "")
        yield define(upper(spec.name, "family-name"), f'"{spec.name}"')
        yield define(upper(spec.name, "family-version"), spec.version)
        yield ""
        for const in spec.consts:
            if const.header is None:
                yield from comment(const.doc)
                yield define(upper(spec.name, const.name), const.value)
        for enum in spec.enums:
            if enum.header is None:
                yield ""
                yield from self._enum(enum)
        yield ""
        yield from self._numbered(
            lower(spec.name, spec.attribute_set),
            "Attributes of every message.",
            [(self._names.attribute(a), self._attribute_doc(a)) for a in spec.attributes],
            upper(self._names.prefix, "max"),
        )
        yield ""
        yield from self._numbered(
            lower(spec.name, "cmd"),
            "Commands.",
            [(self._names.command(o), o.doc) for o in spec.operations],
            upper(spec.name, "cmd-max"),
        )
        yield ""
        for group in spec.groups:
            yield define(upper(spec.name, "mcgrp", group.name), f'"{group.name}"')
        yield ""
        yield f"#endif /* {guard} */"

    def _enum(self, enum: Enum) -> Iterator[str]:
        name = lower(self._spec.name, enum.name)
        members = [(self._names.entry(enum, e), e) for e in enum.entries]
        yield from kernel_doc(f"enum {name}", enum.doc, [(n, e.doc) for n, e in members])
        yield f"enum {name} {{"
        expected = 0
        for member, entry in members:
            yield f"\t{member}," if entry.value == expected else f"\t{member} = {entry.value},"
            expected = entry.value + 1
        yield "};"

    def _attribute_doc(self, attribute: Attribute) -> str:
        if attribute.enum is None:
            return attribute.doc
        if attribute.enum.header is not None:
            return f"{attribute.doc} See {attribute.enum.header}."
        return f"{attribute.doc} &enum {lower(self._spec.name, attribute.enum.name)}."

    @staticmethod
    def _numbered(name: str, doc: str, members: list[tuple[str, str]], last: str) -> Iterator[str]:
        """An enum that counts from 1 and ends with its greatest number."""
        yield from kernel_doc(f"enum {name}", doc, members)
        yield f"enum {name} {{"
        for index, (member, _) in enumerate(members):
            yield f"\t{member}," if index else f"\t{member} = 1,"
        yield ""
        yield "\t/* private: */"
        yield f"\t__{last},"
        yield f"\t{last} = (__{last} - 1)"
        yield "};"

    def public(self) -> str:
        """in_tls.h: all that a program needs besides <sys/socket.h>."""
        return text(self._public())

    def _public(self) -> Iterator[str]:
        guard = "_UAPI_IN_TLS_H"
        yield from head(PUBLIC_LICENCE)
        yield from comment(
            "TLS sockets for programs: socket(AF_INET, SOCK_STREAM, IPPROTO_TLS) is a TLS "
            "connection that is used like a TCP one. There is nothing to link with."
        )
        yield from (f"#ifndef {guard}", f"#define {guard}", "")
        # Both are fit for the kernel and for userland, C and C++, any libc.
        yield from ("#include <linux/socket.h>", "#include <linux/types.h>", "")
        for const in self._spec.consts:
            if const.header == PUBLIC_HEADER:
                name = upper(const.name)
                yield from comment(const.doc)
                # A libc or a kernel header may come to know the name.
                yield from (f"#ifndef {name}", define(name, const.value), "#endif", "")
        for enum in self._spec.enums:
            if enum.header == PUBLIC_HEADER:
                yield from comment(enum.doc)
                for entry in enum.entries:
                    yield ""
                    yield from comment(entry.doc)
                    yield define(self._names.entry(enum, entry), entry.value)
                yield ""
        yield from _SOCKADDR_HOST
        yield f"#endif /* {guard} */"


_SOCKADDR_HOST = """\
/* The name of TLS_HOSTNAME in other versions of the Secure Socket API. */
#define TLS_REMOTE_HOSTNAME		TLS_HOSTNAME

/**
 * struct host_addr - A host name in place of an address.
 * @name: The name, NUL-terminated.
 */
struct host_addr {
	unsigned char name[TLS_HOST_ADDR_SIZE];
};

/**
 * struct sockaddr_host - What connect() takes instead of an address.
 * @sh_family: AF_HOSTNAME.
 * @sh_port: Port, in network byte order.
 * @sh_addr: The host; its name is also the one that the certificate must carry.
 */
struct sockaddr_host {
	__kernel_sa_family_t sh_family;
	__be16 sh_port;
	struct host_addr sh_addr;
};

""".splitlines()
