# SPDX-License-Identifier: BSD-3-Clause
"""A specification with a mistake is refused with a sentence that names the place."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.contract.conftest import Generator

LAST_ATTRIBUTE = "        doc: Number of requests that wait for a completion.\n"

MISTAKES = {
    "unknown attribute of an operation": (
        "reply: {attributes: [pid, pending, daemon, sockets, leaving]}",
        "reply: {attributes: [pid, pendign, daemon, sockets, leaving]}",
        "operations/list[worker-get]/dump/reply: attribute 'pendign' is not defined",
    ),
    "attribute listed twice": (
        "reply: {attributes: [pid, pending, daemon, sockets, leaving]}",
        "reply: {attributes: [pid, pid, daemon, sockets, leaving]}",
        "attribute 'pid' is listed twice",
    ),
    "attribute name used twice": (
        LAST_ATTRIBUTE,
        LAST_ATTRIBUTE + "      - {name: pid, type: u32, doc: Again.}\n",
        "attribute-sets[a]/attributes[33]: name 'pid' is used twice",
    ),
    "operation name used twice": (
        "    - name: worker-get\n",
        "    - name: module-get\n",
        "name 'module-get' is used twice",
    ),
    "constant name used twice": (
        "- name: alpn-max",
        "- name: cipher-max",
        "name 'cipher-max' is used twice",
    ),
    "option number used twice": (
        "{name: tls-private-key, value: 89,",
        "{name: tls-private-key, value: 88,",
        "entries[tls-private-key]: value 88 must be greater than that of the entry before it",
    ),
    "name that is not kebab-case": (
        "- name: peer-chain",
        "- name: peer_chain",
        "name 'peer_chain' is not in kebab-case (as in peer-chain)",
    ),
    "unknown key": (
        "multi-attr: true",
        "multi-attribute: true",
        "attributes[peer-chain]: unknown key multi-attribute; known here: checks, doc, enum",
    ),
    "unknown check": (
        "checks: {min: 0}\n        doc: File descriptor in the daemon.",
        "checks: {minimum: 0}\n        doc: File descriptor in the daemon.",
        "attributes[fd]/checks: unknown key minimum; known here: max, min",
    ),
    "key written twice": (
        "multi-attr: true",
        "multi-attr: true\n        multi-attr: false",
        "key 'multi-attr' is given twice",
    ),
    "unknown type": (
        LAST_ATTRIBUTE,
        LAST_ATTRIBUTE + "      - {name: flags, type: u8, doc: Bits.}\n",
        "attributes[flags]: type 'u8' is not one of u32, u64, s32, string, binary",
    ),
    "unknown enum": (
        "enum: event-kind",
        "enum: event",
        "attributes[event]: enum 'event' is not defined",
    ),
    "limit that is not defined": (
        "checks: {max-len: text-max}",
        "checks: {max-len: text-maximum}",
        "max-len must be an integer or a const's name, found 'text-maximum'",
    ),
    "length that no attribute can have": (
        "checks: {max-len: text-max}",
        "checks: {max-len: value-max}",
        "attributes[text]/checks: max-len must be 1 to 65530",
    ),
    "limit that the type can't hold": (
        "checks: {max: 511}",
        "checks: {max: 4294967296}",
        "4294967296 does not fit into a u32",
    ),
    "least value above the greatest": (
        "checks: {max: 511}",
        "checks: {min: 512, max: 511}",
        "min 512 is greater than max 511",
    ),
    "operation that is neither asked nor told": (
        "request: {attributes: []}\n        reply: {attributes: [pending]}\n\nmcast-groups:",
        "\nmcast-groups:",
        "operations/list[leave]: do, dump or event is missing",
    ),
    "unknown flag": (
        "flags: [admin-perm]\n      do:",
        "flags: [admin]\n      do:",
        "flags must be [admin-perm] or left out, found ['admin']",
    ),
    "version that the header can't hold": (
        "version: 1\n",
        "version: 256\n",
        "version must be 1 to 255, found 256",
    ),
    "number in quotes": (
        "value: 16384",
        "value: '16384'",
        "definitions[value-piece-max]: value must be an integer, found '16384'",
    ),
    "not YAML": (
        "definitions:\n",
        "definitions: [\n",
        "it is not YAML",
    ),
    "missing part": (
        "protocol: genetlink\n",
        "",
        "protocol must be a text, found nothing",
    ),
}


@pytest.mark.parametrize(("old", "new", "reason"), MISTAKES.values(), ids=MISTAKES.keys())
def test_a_mistake_is_refused(generator: Generator, old: str, new: str, reason: str) -> None:
    generator.replace(old, new)
    result = generator.run()
    assert result.returncode == 1
    assert result.stderr.startswith(f"{generator.spec}: ")
    assert reason in result.stderr
    assert not generator.root.exists()


def test_a_missing_specification_is_named(generator: Generator) -> None:
    generator.spec.unlink()
    result = generator.run()
    assert result.returncode == 1
    assert result.stderr == f"{generator.spec}: it can't be read: No such file or directory\n"
