# SPDX-License-Identifier: BSD-3-Clause
"""The daemon's codec says what the specification says, and survives any bytes."""

from __future__ import annotations

import struct
from contextlib import suppress
from typing import Any, cast

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from ssad import wire, wire_pyroute2
from ssad.wire import Attributes, Command, WireError, clip, decode, encode
from tests.contract.conftest import SPEC

# Read without the generator, which would repeat its own mistakes here.
DOCUMENT = yaml.safe_load(SPEC.read_text(encoding="utf-8"))
DEFINITIONS = {item["name"]: item for item in DOCUMENT["definitions"]}
ATTRIBUTES = {item["name"]: item for item in DOCUMENT["attribute-sets"][0]["attributes"]}
NLA_PAYLOAD_MAX = 65531

SsaMessage: Any = wire_pyroute2.SsaMessage  # pyroute2 has no types


def key(name: str) -> str:
    return name.replace("-", "_")


def limit(attribute: dict[str, Any], check: str, default: int) -> int:
    value = attribute.get("checks", {}).get(check, default)
    return value if isinstance(value, int) else int(DEFINITIONS[value]["value"])


def one_value(attribute: dict[str, Any]) -> st.SearchStrategy[object]:
    match attribute["type"]:
        case "string":
            most = limit(attribute, "max-len", NLA_PAYLOAD_MAX - 1)
            letters = st.characters(exclude_characters="\0", exclude_categories=["Cs"])
            # A letter has at most four bytes.
            return st.text(letters, max_size=min(most // 4, 200))
        case "binary":
            return st.binary(max_size=min(limit(attribute, "max-len", NLA_PAYLOAD_MAX), 500))
        case "s32":
            return st.integers(
                limit(attribute, "min", -(2**31)), limit(attribute, "max", 2**31 - 1)
            )
    if "enum" in attribute:
        enum = getattr(wire, attribute["enum"].title().replace("-", ""))
        return st.sampled_from(list(enum))
    most = 2**32 - 1 if attribute["type"] == "u32" else 2**64 - 1
    return st.integers(limit(attribute, "min", 0), limit(attribute, "max", most))


def value(attribute: dict[str, Any]) -> st.SearchStrategy[object]:
    one = one_value(attribute)
    return st.lists(one, min_size=1, max_size=4) if attribute.get("multi-attr") else one


def carried(operation: dict[str, Any]) -> set[str]:
    lists = [operation.get("event", {})]
    lists += [
        operation.get(verb, {}).get(way, {})
        for verb in ("do", "dump")
        for way in ("request", "reply")
    ]
    return {name for item in lists for name in item.get("attributes", [])}


def messages() -> st.SearchStrategy[tuple[Command, Attributes]]:
    """Any message of any command, with any of its attributes."""

    def one(operation: dict[str, Any]) -> st.SearchStrategy[tuple[Command, Attributes]]:
        optional = {key(name): value(ATTRIBUTES[name]) for name in sorted(carried(operation))}
        attributes = st.fixed_dictionaries({}, optional=optional)
        command = Command[key(operation["name"]).upper()]
        return attributes.map(lambda found: (command, cast("Attributes", found)))

    return st.one_of([one(operation) for operation in DOCUMENT["operations"]["list"]])


def pyroute2_attributes(attributes: Attributes) -> list[tuple[str, object]]:
    return [
        (f"SSA_A_{name.upper()}", item)
        for name, found in attributes.items()
        for item in (found if isinstance(found, list) else [found])
    ]


@given(messages())
def test_a_message_comes_back_as_it_was(message: tuple[Command, Attributes]) -> None:
    command, attributes = message
    assert decode(encode(command, attributes)) == (command, attributes)


@given(messages())
def test_pyroute2_writes_the_same_bytes(message: tuple[Command, Attributes]) -> None:
    command, attributes = message
    theirs = SsaMessage()
    theirs["cmd"] = int(command)
    theirs["version"] = wire.FAMILY_VERSION
    theirs["attrs"] = pyroute2_attributes(attributes)
    theirs.encode()
    assert bytes(theirs.data)[16:] == encode(command, attributes)


@given(messages())
def test_pyroute2_reads_what_we_write(message: tuple[Command, Attributes]) -> None:
    command, attributes = message
    payload = encode(command, attributes)
    theirs = SsaMessage(struct.pack("=IHHII", 16 + len(payload), 30, 0, 0, 0) + payload)
    theirs.decode()
    assert theirs["cmd"] == command
    assert [(name, found) for name, found in theirs["attrs"]] == pyroute2_attributes(attributes)


@given(st.binary(max_size=300))
def test_any_bytes_are_a_message_or_a_wire_error(junk: bytes) -> None:
    with suppress(WireError):
        decode(junk)


@given(messages(), st.data())
def test_a_damaged_message_is_a_message_or_a_wire_error(
    message: tuple[Command, Attributes], data: st.DataObject
) -> None:
    raw = bytearray(encode(*message))
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    with suppress(WireError):
        decode(bytes(raw[: data.draw(st.integers(0, len(raw)))]))


def attribute(number: int, payload: bytes) -> bytes:
    raw = struct.pack("=HH", 4 + len(payload), number) + payload
    return raw + b"\0" * (-len(raw) % 4)


def number(found: int) -> bytes:
    return struct.pack("=I", found)


CLOSE, SOCKET, NOTIFY = (
    struct.pack("=BBH", command, wire.FAMILY_VERSION, 0)
    for command in (Command.CLOSE, Command.SOCKET, Command.NOTIFY)
)

REFUSED_BYTES = {
    "cut off": (b"\x01\x01", "the message is cut off: 2 bytes"),
    "other version": (b"\x01\x02\0\0", "the message has version 2, expected 1"),
    "unknown command": (b"\xc8\x01\0\0", "the message has the unknown command 200"),
    "unknown attribute": (CLOSE + attribute(999, b""), "CLOSE does not carry an attribute 999"),
    "attribute of another command": (
        CLOSE + attribute(wire.Attribute.PID, number(1)),
        "CLOSE does not carry an attribute 7",
    ),
    "header cut off": (CLOSE + b"\x08\0", "CLOSE ends within the header of an attribute"),
    "payload cut off": (
        CLOSE + struct.pack("=HH", 12, wire.Attribute.SOCKET) + b"\0\0",
        "CLOSE ends within its attribute socket",
    ),
    "length less than the header's": (
        CLOSE + struct.pack("=HH", 3, wire.Attribute.SOCKET),
        "CLOSE ends within its attribute socket",
    ),
    "twice": (
        SOCKET + 2 * attribute(wire.Attribute.PID, number(1)),
        "SOCKET carries pid twice",
    ),
    "wrong size": (
        SOCKET + attribute(wire.Attribute.PID, b"\0\0"),
        "pid must be 4 bytes long, found 2",
    ),
    "string without NUL": (
        SOCKET + attribute(wire.Attribute.COMM, b"curl"),
        "comm has no terminating NUL",
    ),
    "string too long": (
        SOCKET + attribute(wire.Attribute.COMM, b"c" * 16 + b"\0"),
        "comm is 16 bytes long, at most 15 are allowed",
    ),
    "value too great": (
        NOTIFY + attribute(wire.Attribute.ERROR, number(512)),
        "error must be 0 to 511, found 512",
    ),
    "not in the enum": (
        NOTIFY + attribute(wire.Attribute.STATE, number(6)),
        "state 6 is not one of SocketState",
    ),
}


@pytest.mark.parametrize(("raw", "reason"), REFUSED_BYTES.values(), ids=REFUSED_BYTES.keys())
def test_bytes_that_break_the_contract_are_refused(raw: bytes, reason: str) -> None:
    with pytest.raises(WireError) as caught:
        decode(raw)
    assert str(caught.value) == reason


REFUSED_ATTRIBUTES: dict[str, tuple[dict[str, object], str]] = {
    "unknown": ({"shoe_size": 44}, "COMPLETE does not carry an attribute shoe_size"),
    "another command's": ({"pid": 1}, "COMPLETE does not carry an attribute pid"),
    "str for int": ({"error": "5"}, "error must be an int, found str"),
    "int for str": ({"text": 5}, "text must be a str, found int"),
    "str for bytes": ({"value": "x"}, "value must be bytes, found str"),
    "bytes for a list": ({"peer_chain": b"x"}, "peer_chain must be a list, found bytes"),
    "too long": ({"text": "x" * 512}, "text is 512 bytes long, at most 511 are allowed"),
    "too long in bytes": ({"text": "ä" * 256}, "text is 512 bytes long, at most 511 are allowed"),
    "too great": ({"resumed": 2}, "resumed must be 0 to 1, found 2"),
    "negative descriptor": ({"fd": -1}, "fd must be 0 to 2147483647, found -1"),
    "not in the enum": ({"transport": 3}, "transport 3 is not one of Transport"),
    "NUL": ({"text": "a\0b"}, "text has a NUL in it"),
    "lone surrogate": (
        {"text": "\ud800"},
        "text can't be written as UTF-8: surrogates not allowed",
    ),
}


@pytest.mark.parametrize(
    ("attributes", "reason"), REFUSED_ATTRIBUTES.values(), ids=REFUSED_ATTRIBUTES.keys()
)
def test_attributes_that_break_the_contract_are_refused(
    attributes: dict[str, object], reason: str
) -> None:
    with pytest.raises(WireError) as caught:
        encode(Command.COMPLETE, cast("Attributes", attributes))
    assert str(caught.value) == reason


def test_a_program_name_that_is_not_utf8_becomes_printable() -> None:
    raw = SOCKET + attribute(wire.Attribute.COMM, b"\xff\xfecurl\0")
    _, attributes = decode(raw)
    assert attributes["comm"] == "\\xff\\xfecurl"


def test_a_missing_padding_at_the_end_is_accepted() -> None:
    raw = SOCKET + attribute(wire.Attribute.COMM, b"a\0")
    assert decode(raw[:-2]) == decode(raw) == (Command.SOCKET, {"comm": "a"})


def test_a_chain_goes_in_pieces() -> None:
    pieces = [b"a" * wire.CHAIN_PIECE_MAX, b"b" * wire.CHAIN_PIECE_MAX, b"c"]
    assert decode(encode(Command.COMPLETE, {"peer_chain": pieces})) == (
        Command.COMPLETE,
        {"peer_chain": pieces},
    )


@given(st.text(), st.integers(0, 40))
def test_clipped_text_always_fits(text: str, size: int) -> None:
    clipped = clip(text, size)
    assert len(clipped.encode()) <= size
    assert "\0" not in clipped


@given(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])))
def test_text_that_fits_is_not_clipped(text: str) -> None:
    assert clip(text, len(text.encode())) == text


def test_clipping_does_not_cut_a_letter_in_two() -> None:
    assert clip("aäb", 2) == "a"
