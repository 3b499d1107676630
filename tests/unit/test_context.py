# SPDX-License-Identifier: BSD-3-Clause
"""Where trust comes from, and what happens when there is none."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from ssad.context import client_context
from ssad.errors import HandshakeError, Refused
from ssad.policy import TLS_1_2, Policy
from ssad.settings import Settings
from tests.peers.pki import HOST, Pki
from tests.unit.memory_client import settings_of
from tests.unit.memory_server import MemoryServer, context, shake_hands, start


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "No such file or directory"),
        (b"", "it holds no readable PEM certificate"),
        (b"# nothing here\n", "it holds no readable PEM certificate"),
        (
            b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
            "it holds no readable PEM certificate",
        ),
    ],
    ids=["missing", "empty", "no PEM", "broken"],
)
def test_without_a_usable_trust_store_nothing_is_connected(
    tmp_path: Path, content: bytes | None, words: str
) -> None:
    store = tmp_path / "store.pem"
    if content is not None:
        store.write_bytes(content)

    with pytest.raises(HandshakeError) as caught:
        client_context(Settings(host_name=HOST), Policy(trust_store=store))

    assert caught.value.errno == errno.EPROTO
    assert caught.value.text.startswith(f"The trust store {store} can't be used: {words}.")


def test_a_directory_is_no_trust_store(tmp_path: Path) -> None:
    with pytest.raises(HandshakeError, match="can't be used: Is a directory"):
        client_context(Settings(host_name=HOST), Policy(trust_store=tmp_path))


def test_sockets_with_the_same_settings_share_a_context(pki: Pki) -> None:
    policy = Policy(trust_store=pki.root)

    one = client_context(Settings(host_name="a.example", alpn=("h2",)), policy)
    same = client_context(Settings(host_name="b.example"), policy)
    other = client_context(Settings(version_max=TLS_1_2), policy)

    assert one is same
    assert one is not other


def test_a_context_with_a_private_key_is_shared_with_none(pki: Pki) -> None:
    settings = settings_of(pki.ecdsa)
    policy = Policy(trust_store=pki.root)

    assert client_context(settings, policy) is not client_context(settings, policy)


def test_a_trust_store_that_changes_is_read_again(pki: Pki, tmp_path: Path) -> None:
    store = tmp_path / "store.pem"
    store.write_bytes(pki.unknown_root.read_bytes())
    policy = Policy(trust_store=store)
    with pytest.raises(HandshakeError):
        shake_hands(start(pki, policy=policy), MemoryServer(context(pki.ecdsa)))

    renewed = tmp_path / "renewed.pem"
    renewed.write_bytes(pki.root.read_bytes())
    renewed.rename(store)

    shake_hands(start(pki, policy=policy), MemoryServer(context(pki.ecdsa)))


def test_a_programs_trust_is_refused_if_the_policy_has_the_say(pki: Pki) -> None:
    settings = Settings(host_name=HOST, trusted=pki.root.read_bytes())
    policy = Policy(trust_store=pki.root, program_trust=False)

    with pytest.raises(HandshakeError, match="does not let programs choose") as caught:
        client_context(settings, policy)

    assert caught.value.errno == errno.EPROTO


def test_settings_that_contradict_each_other_are_refused(pki: Pki) -> None:
    settings = Settings(version_max=TLS_1_2, trusted_ciphers=("TLS_AES_128_GCM_SHA256",))

    with pytest.raises(Refused) as caught:
        client_context(settings, Policy(trust_store=pki.root))

    assert caught.value.errno == errno.EINVAL


def test_a_trust_store_that_can_not_be_read_is_named(tmp_path: Path) -> None:
    loop = tmp_path / "loop.pem"
    loop.symlink_to(loop)  # root may read anything else

    with pytest.raises(HandshakeError, match="Too many levels of symbolic links"):
        client_context(Settings(), Policy(trust_store=loop))
