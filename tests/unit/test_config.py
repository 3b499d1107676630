# SPDX-License-Identifier: BSD-3-Clause
"""The policy file: what is wrong with it is told with its line, and nothing is passed over."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from dataclasses import fields, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssad import config
from ssad.config import Faulty, Source, dump, parse
from ssad.policy import KEYS, TLS_1_2, TLS_1_3, Policy
from ssad.values import Choice, Count, File, Flag, Names, Seconds
from tests.peers.pki import Pki
from tests.unit.child import in_child

ROOT = Path(__file__).parents[2]
TABLES = "[tls], [trust], [sessions], [revocation], [hosts], [transport], [deadlines], [limits]"
OF_TLS = "Allowed in [tls]: version_min, version_max, ciphers_tls12, ciphers_tls13."
CIPHERS13 = (
    "TLS_AES_128_CCM_8_SHA256, TLS_AES_128_CCM_SHA256, TLS_AES_128_GCM_SHA256, "
    "TLS_AES_256_GCM_SHA384, TLS_CHACHA20_POLY1305_SHA256."
)
CIPHERS12 = "what \"openssl ciphers -s -tls1_2 'ALL:!aNULL:!eNULL:!PSK:!SRP'\" lists."


def faults(text: str, **overrides: object) -> list[str]:
    with pytest.raises(Faulty) as caught:
        parse(text, "f", overrides)
    assert str(caught.value) == "\n".join(map(str, caught.value.faults))
    return [str(fault) for fault in caught.value.faults]


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        # no TOML
        ("[tls]\nversion_min = \n", "f:2: This is not TOML: Invalid value in column 15."),
        ("\n\n[tls", "f:3: This is not TOML: Expected ']' at the end of a table declaration."),
        ("[tls]\n[tls]\n", "f:2: This is not TOML: Cannot declare ('tls',) twice in column 5."),
        (
            "[deadlines]\nclose = 1\nclose = 2\n",
            "f:3: This is not TOML: Cannot overwrite a value in column 10.",
        ),
        # not known
        ("x = 1", f"f:1: x: wanted a table, found a key outside of any. Allowed: {TABLES}."),
        (
            '# A comment.\nversion_min = "1.3"',
            (
                "f:2: version_min: wanted a table, found a key outside of any. It belongs into its "
                f"table: tls.version_min. Allowed: {TABLES}."
            ),
        ),
        ("[session]\n", f"f:1: session: unknown table. Did you mean sessions? Allowed: {TABLES}."),
        (
            "[tls.version_min]",
            'f:1: tls.version_min: wanted a string, found a table; allowed: "1.2", "1.3".',
        ),
        ("[[tls]]", "f:1: tls: wanted a table, found an array; allowed: [tls]."),
        (
            '[tls]\n\nversion_mim = "1.3"',
            f"f:3: tls.version_mim: unknown key. Did you mean version_min? {OF_TLS}",
        ),
        (
            "[tls]\ndepth = 3",
            f"f:2: tls.depth: unknown key. It belongs into [trust]. {OF_TLS}",
        ),
        ('[tls]\nVERSION_MIN = "1.3"', f"f:2: tls.VERSION_MIN: unknown key. {OF_TLS}"),
        # wrong types and values
        (
            "[tls]\r\nversion_min = 1.3\r\n",
            'f:2: tls.version_min: wanted a string, found the float 1.3; allowed: "1.2", "1.3".',
        ),
        (
            '[tls]\nversion_min = "1.1"',
            (
                "f:2: tls.version_min: wanted a string, "
                'found the string "1.1"; allowed: "1.2", "1.3".'
            ),
        ),
        (
            "trust = { depth = true }",
            "f:1: trust.depth: wanted an integer, found the boolean true; allowed: 0 to 100.",
        ),
        (
            "trust.depth = -1",
            "f:1: trust.depth: wanted an integer, found the integer -1; allowed: 0 to 100.",
        ),
        (
            "[trust]\ndepth = 1.0",
            "f:2: trust.depth: wanted an integer, found the float 1.0; allowed: 0 to 100.",
        ),
        (
            "[trust]\nprograms_may_choose = 1",
            (
                "f:2: trust.programs_may_choose: wanted a boolean, found the integer 1; "
                "allowed: true, false."
            ),
        ),
        (
            '[trust]\nstore = "certificates.pem"',
            (
                'f:2: trust.store: wanted a string, found the string "certificates.pem"; '
                "allowed: the absolute path of a file, in characters that can be printed."
            ),
        ),
        *(
            (
                f"[deadlines]\nhandshake = {value}",
                (
                    "f:2: deadlines.handshake: wanted a number of seconds, "
                    f"found {shown}; allowed: 0.01 to 3600."
                ),
            )
            for value, shown in (
                ("nan", "the float nan"),
                ("inf", "the float inf"),
                ("-inf", "the float -inf"),
                ("-1", "the integer -1"),
                ("0", "the integer 0"),
                ("false", "the boolean false"),
                ('"30 s"', 'the string "30 s"'),
                ("2026-01-01", "a date"),
                ("[30]", "an array"),
                ("3601.0", "the float 3601.0"),
            )
        ),
        (
            '[transport]\nmode = """\nktls\n"""',
            (
                "f:2: transport.mode: wanted a string, "
                'found the string "ktls\\n"; allowed: "auto", "ktls", "channel".'
            ),
        ),
        (
            '[tls]\nciphers_tls13 = "TLS_AES_128_GCM_SHA256"',
            (
                "f:2: tls.ciphers_tls13: wanted an array of strings, found the string "
                '"TLS_AES_128_GCM_SHA256"; allowed: names in quotation marks, each once.'
            ),
        ),
        (
            "[tls]\nciphers_tls13 = [\n  1,\n]",
            (
                "f:2: tls.ciphers_tls13: wanted an array of strings, found in it the integer 1; "
                "allowed: names in quotation marks, each once."
            ),
        ),
        # ciphers
        (
            '[tls]\nciphers_tls13 = ["TLS_AES_128_GCM_SHA265"]',
            (
                'f:2: tls.ciphers_tls13: wanted a cipher, found "TLS_AES_128_GCM_SHA265", which '
                "OpenSSL does not know; allowed: " + CIPHERS13
            ),
        ),
        (
            '[tls]\nciphers_tls12 = ["NULL-SHA256"]',
            (
                'f:2: tls.ciphers_tls12: wanted a cipher, found "NULL-SHA256", which does without '
                f"encryption, or without certificates; allowed: {CIPHERS12}"
            ),
        ),
        (
            '[tls]\nciphers_tls12 = ["ADH-AES128-GCM-SHA256"]',
            (
                'f:2: tls.ciphers_tls12: wanted a cipher, found "ADH-AES128-GCM-SHA256", which '
                f"does without encryption, or without certificates; allowed: {CIPHERS12}"
            ),
        ),
        (
            '[tls]\nciphers_tls12 = ["TLS_AES_128_GCM_SHA256"]',
            (
                'f:2: tls.ciphers_tls12: wanted a cipher, found "TLS_AES_128_GCM_SHA256", which '
                f"is one of the other version of TLS; allowed: {CIPHERS12}"
            ),
        ),
        # what does not go together
        (
            '[tls]\nversion_min = "1.3"\nversion_max = "1.2"',
            (
                'f:3: tls.version_max: wanted a range of versions, found "1.3" as the lowest and '
                '"1.2" as the highest; allowed: tls.version_min up to tls.version_max.'
            ),
        ),
        (
            "[tls]\nciphers_tls12 = []",
            (
                "f:2: tls.ciphers_tls12: wanted a cipher, found none; allowed: none only if "
                "tls.version_min and tls.version_max leave out TLS 1.2."
            ),
        ),
    ],
)
def test_each_fault_is_told_with_its_line_and_what_is_allowed(text: str, fault: str) -> None:
    assert faults(text) == [fault]


def test_what_is_nested_too_deeply_is_told() -> None:
    (fault,) = faults("x = " + "[" * 5000)
    assert fault.startswith("f: No policy is nested that deeply")
    (fault,) = faults("\n" + ".".join("a" * 5000) + " = 1")
    assert fault.startswith("f:2: a: unknown table")


def test_all_faults_are_told_in_the_order_of_their_lines() -> None:
    text = """\
x = 1
[tls]
ciphers_tls12 = [
    "eins",  # no
    "zwei",
]
version_min = 3
[nonsense]
[trust]
depth = 1000
"""
    found = [re.split("[: ]+", fault)[1:3] for fault in faults(text)]
    assert found == [
        ["1", "x"],
        ["3", "tls.ciphers_tls12"],
        ["3", "tls.ciphers_tls12"],
        ["7", "tls.version_min"],
        ["8", "nonsense"],
        ["10", "trust.depth"],
    ]


def test_nothing_said_is_the_default() -> None:
    assert parse("", "f") == Policy()
    assert parse("# A comment.\n[tls]\n", "f") == Policy()


def test_an_integer_will_do_for_seconds() -> None:
    found = parse("[deadlines]\nhandshake = 5", "f").handshake_timeout
    assert (found, type(found)) == (5.0, float)


def test_a_version_without_ciphers_may_be_left_out() -> None:
    policy = parse('[tls]\nversion_min = "1.3"\nciphers_tls12 = []', "f")
    assert policy.cipher_names() == Policy().cipher_names()[:3]


def test_the_command_line_wins_and_its_faults_are_its_own() -> None:
    text = '[transport]\nmode = "ktls"\n'
    assert parse(text, "f", {"transport": "channel"}).transport == "channel"
    assert faults(text, trust_store="here") == [
        (
            '--trust-store: wanted a string, found the string "here"; '
            "allowed: the absolute path of a file, in characters that can be printed."
        )
    ]
    # Another fault of the file is one, even if the command line has the last word.
    assert faults("[transport]\nmode = 3\n", transport="channel")


def values() -> st.SearchStrategy[Policy]:
    """Policies with any values that are allowed."""
    drawn: dict[str, st.SearchStrategy[object]] = {}
    path = st.text(st.characters(exclude_categories=("C", "Z"), exclude_characters="/"), min_size=1)
    for name, key in KEYS.items():
        match key.kind:
            case Flag():
                drawn[name] = st.booleans()
            case Count(low, high):
                drawn[name] = st.integers(low, high)
            case Seconds(low, high):
                drawn[name] = st.floats(low, high)
            case Choice(values):
                drawn[name] = st.sampled_from(list(values.values()))
            case File():
                drawn[name] = path.map(lambda text: Path("/", text))
            case Names():
                names = str(getattr(Policy(), name)).split(":")
                drawn[name] = st.lists(st.sampled_from(names), min_size=1, unique=True).map(
                    ":".join
                )
            case _:
                raise AssertionError(f"{name} is of a new kind: say what values it has")
    return st.builds(Policy, **drawn).map(
        lambda policy: replace(policy, version_max=max(policy.version_min, policy.version_max))
    )


@given(values())
def test_what_is_shown_can_be_read_again(policy: Policy) -> None:
    assert parse(dump(policy), "f") == policy


@given(st.text())
def test_any_text_is_a_policy_or_a_fault(text: str) -> None:
    with suppress(Faulty):
        assert isinstance(parse(text, "f"), Policy)


def test_every_rule_is_declared_with_an_allowed_default() -> None:
    assert list(KEYS) == [one.name for one in fields(Policy)]
    assert len({key.path for key in KEYS.values()}) == len(KEYS)
    for key in KEYS.values():
        assert key.doc[0].isupper()
        assert key.doc.endswith(".")
    assert (Policy().version_min, Policy().version_max) == (TLS_1_2, TLS_1_3)


class TestSource:
    """Where a policy comes from."""

    def test_a_missing_file_means_the_defaults_unless_it_was_named(self, tmp_path: Path) -> None:
        path = tmp_path / "none.toml"
        assert Source(path).text() is None
        assert Source(path).load(usable=False) == Policy()
        with pytest.raises(Faulty, match=r"none.toml: The policy file can't be read: No such file"):
            Source(path, required=True).load()

    @pytest.mark.parametrize(
        ("content", "reason"),
        [
            (b"\n\xff", "line 2 is not UTF-8 text"),
            (b"#" * 65537, "it has more than 65536 bytes"),
            (None, "Is a directory"),
        ],
    )
    def test_what_is_no_text_can_not_be_read(
        self, tmp_path: Path, content: bytes | None, reason: str
    ) -> None:
        path = tmp_path / "policy"
        if content is None:
            path.mkdir()
        else:
            path.write_bytes(content)
        with pytest.raises(Faulty) as caught:
            Source(path).load()
        assert str(caught.value) == f"{path}: The policy file can't be read: {reason}."

    def test_a_fifo_does_not_hold_up(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "fifo")
        with pytest.raises(Faulty, match="no regular file"):
            Source(tmp_path / "fifo").load()

    @pytest.mark.root
    def test_who_may_not_read_it_is_named(self, tmp_path: Path) -> None:
        path = tmp_path / "policy"
        path.touch(0o600)

        def as_nobody() -> str:
            os.setresuid(65534, 65534, 65534)
            with pytest.raises(Faulty) as caught:
                Source(path).load()
            return str(caught.value)

        assert in_child(as_nobody) == (
            f"{path}: The policy file can't be read: Permission denied for user nobody; "
            "let this user read it."
        )

    def test_an_unusable_trust_store_is_told_where_it_is_named(
        self, tmp_path: Path, pki: Pki
    ) -> None:
        path, store = tmp_path / "policy", tmp_path / "store.pem"
        path.write_text(f'# Whom to trust.\n[trust]\nstore = "{store}"\n')
        for content, reason in ((None, "No such file or directory"), (b"", "it holds no readable")):
            if content is not None:
                store.write_bytes(content)
            with pytest.raises(Faulty) as caught:
                Source(path).load()
            said = f"{path}:3: trust.store: The trust store {store} can't be used: {reason}"
            assert str(caught.value).startswith(said)
            assert "Allowed: a file of PEM certificates that user" in str(caught.value)
        with pytest.raises(Faulty, match=r"^--trust-store: The trust store .* can't be used"):
            Source(tmp_path / "none", overrides={"trust_store": str(store)}).load()
        store.write_bytes(pki.root.read_bytes())
        assert Source(path).load() == Policy(trust_store=store)


def test_the_packaged_file_has_the_defaults() -> None:
    packaged = (ROOT / "packaging/ssad.toml").read_text()
    assert packaged == dump(Policy()), "make it anew: ssad config show > packaging/ssad.toml"


def test_the_manual_page_has_every_key_with_its_values_default_and_meaning() -> None:
    page = (ROOT / "man/ssad.toml.5").read_text()
    # As it is read, without the markup.
    lines = [line for line in page.splitlines() if not line.startswith('.\\"')]
    plain = re.sub(r"\s+", " ", " ".join(re.sub(r"^\.\w+ ", "", line) for line in lines))
    plain = plain.replace("\\&", "").replace("\\-", "-").replace("\\(aq", "'").replace("\\(dq", '"')
    for name, key in KEYS.items():
        default = key.kind.write(getattr(Policy(), name)).replace("\n", " ")
        default = re.sub(r"\s+", " ", default)
        entry = f"{key.path} {key.doc} Allowed: {key.kind.allowed}. Default: {default}"
        assert entry in plain, (
            f"{key} is missing, or is documented otherwise than in ssad/policy.py"
        )
    assert str(config.DEFAULT_FILE) in plain
