# SPDX-License-Identifier: BSD-3-Clause
"""Which certificate a server shows to whom, the protocol it agrees to, and what is wrong with what
a program gave it."""

from __future__ import annotations

import errno
import socket
import ssl
import threading
from typing import TYPE_CHECKING

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from ssad.wire import TlsOption
from tests.peers import clients
from tests.peers.clients import Target
from tests.peers.pki import ALIAS, HOST, SITE
from tests.system.program import (
    NOBODY,
    get_text,
    in_child,
    refused,
    set_bytes,
    set_text,
    tls_error,
    tls_socket,
)
from tests.system.server import Events, check_served, listening, set_identity, text_or_none

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.peers.pki import Identity, Pki
    from tests.peers.servers import Version
    from tests.system.daemon import Daemon
    from tests.system.server import TlsListener

pytestmark = pytest.mark.usefixtures("daemon")

CHAIN, KEY = TlsOption.TLS_CERTIFICATE_CHAIN, TlsOption.TLS_PRIVATE_KEY


def certificate_of(identity: Identity) -> bytes:
    """Return the own certificate of an identity as DER."""
    certificate = x509.load_pem_x509_certificate(identity.chain.read_bytes())
    return certificate.public_bytes(serialization.Encoding.DER)


def shown(
    listener: TlsListener,
    name: str | None,
    version: Version = "TLSv1.3",
    ciphers: str | None = None,
) -> tuple[bytes, str]:
    """Return what certificate a client is shown that asks for `name`, and the name as the accepted
    socket has it."""
    trust = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    trust.check_hostname = False
    trust.verify_mode = ssl.CERT_NONE  # whatever is shown
    trust.minimum_version = trust.maximum_version = {
        "TLSv1.2": ssl.TLSVersion.TLSv1_2,
        "TLSv1.3": ssl.TLSVersion.TLSv1_3,
    }[version]
    if ciphers is not None:
        trust.set_ciphers(ciphers)
    with (
        socket.create_connection(("127.0.0.1", listener.port), 60) as raw,
        trust.wrap_socket(raw, server_hostname=name) as client,
        listener.accept() as accepted,
    ):
        return client.getpeercert(binary_form=True) or b"", text_or_none(
            accepted, TlsOption.TLS_HOSTNAME
        )


class TestNames:
    """One listener, several names."""

    @pytest.fixture
    def listener(self, pki: Pki) -> Iterator[TlsListener]:
        """Give a listener with three names, the first one's in both kinds."""
        with listening(pki.ecdsa, pki.rsa, pki.site, pki.wild) as made:
            yield made

    def test_each_gets_its_own(self, listener: TlsListener, pki: Pki) -> None:
        wanted = {
            HOST: pki.ecdsa,
            ALIAS: pki.ecdsa,
            SITE: pki.site,
            "any.wild.test": pki.wild,
            "ANY.Wild.Test": pki.wild,
        }
        for name, identity in wanted.items():
            certificate, asked = shown(listener, name)
            assert certificate == certificate_of(identity), name
            assert asked.lower() == name.lower()

    def test_who_is_unknown_or_gives_no_name_gets_the_first(
        self, listener: TlsListener, pki: Pki
    ) -> None:
        first = certificate_of(pki.ecdsa)
        for name in ("unknown.test", "wild.test", "two.labels.wild.test"):
            certificate, asked = shown(listener, name)
            assert certificate == first, name
            assert asked == name
        assert shown(listener, None) == (first, "")

    def test_a_client_that_verifies_is_content(self, listener: TlsListener, pki: Pki) -> None:
        trust = clients.context(pki.root)
        for name in (HOST, SITE, "any.wild.test"):
            target = Target(listener.port, pki.root, name=name)
            with clients.connect(trust, target) as client, listener.accept() as accepted:
                accepted.send(b"hello")
                assert client.recv(5) == b"hello"

    def test_the_first_may_be_a_wildcard(self, pki: Pki) -> None:
        with listening(pki.wild, pki.site) as listener:
            assert shown(listener, SITE)[0] == certificate_of(pki.site)
            assert shown(listener, "x.wild.test")[0] == certificate_of(pki.wild)
            assert shown(listener, HOST)[0] == certificate_of(pki.wild)


class TestKinds:
    """RSA and ECDSA side by side."""

    @pytest.mark.parametrize("first", ["rsa", "ecdsa"])
    def test_tls_1_2_has_what_the_cipher_needs(self, pki: Pki, first: str) -> None:
        pair = [pki.rsa, pki.ecdsa]
        with listening(*(pair if first == "rsa" else reversed(pair))) as listener:
            for kind, identity in (("RSA", pki.rsa), ("ECDSA", pki.ecdsa)):
                cipher = f"ECDHE-{kind}-AES128-GCM-SHA256"
                certificate, _ = shown(listener, HOST, "TLSv1.2", cipher)
                assert certificate == certificate_of(identity), kind

    def test_tls_1_3_has_what_the_signature_needs(self, pki: Pki) -> None:
        with listening(pki.ecdsa, pki.rsa) as listener:
            target = Target(listener.port, pki.root)
            for algorithm, words in (
                ("rsa_pss_rsae_sha256", b"Peer signature type: RSA-PSS"),
                ("ecdsa_secp256r1_sha256", b"Peer signature type: ECDSA"),
            ):
                with Visit(listener):
                    said = clients.openssl(target, "-sigalgs", algorithm)
                assert words in said

    def test_of_a_name_that_is_not_the_first(self, pki: Pki) -> None:
        with listening(pki.ecdsa, pki.site, pki.site_rsa) as listener:
            for kind, identity in (("RSA", pki.site_rsa), ("ECDSA", pki.site)):
                cipher = f"ECDHE-{kind}-AES128-GCM-SHA256"
                certificate, _ = shown(listener, SITE, "TLSv1.2", cipher)
                assert certificate == certificate_of(identity), kind

    def test_without_the_kind_that_is_needed_it_is_refused_with_words(self, pki: Pki) -> None:
        with Events() as events, listening(pki.ecdsa) as listener:
            with pytest.raises(ssl.SSLError, match=r"(?i)handshake.failure"):
                shown(listener, HOST, "TLSv1.2", "ECDHE-RSA-AES128-GCM-SHA256")
            assert "cipher" in events.refusal()["text"]
            check_served(listener, pki.root)


class Visit:
    """Accepts one connection in the background and closes it, for a client that waits for that."""

    def __init__(self, listener: TlsListener) -> None:
        self._listener = listener

    def __enter__(self) -> None:
        self._thread = threading.Thread(target=lambda: self._listener.accept().close())
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._thread.join()


class TestForms:
    """A path, or the thing itself."""

    @pytest.mark.parametrize("form", ["path", "PEM", "DER", "both in one file"])
    def test_of_a_chain_and_its_key(self, pki: Pki, form: str, tmp_path: Path) -> None:
        def give(sock: socket.socket) -> None:
            identity = pki.ecdsa
            if form == "path":
                set_identity(sock, identity)
            elif form == "PEM":
                set_bytes(sock, CHAIN, identity.chain.read_bytes())
                set_bytes(sock, KEY, identity.key.read_bytes())
            elif form == "DER":
                key = serialization.load_pem_private_key(identity.key.read_bytes(), None)
                files = {
                    CHAIN: certificate_of(identity),
                    KEY: key.private_bytes(
                        serialization.Encoding.DER,
                        serialization.PrivateFormat.PKCS8,
                        serialization.NoEncryption(),
                    ),
                }
                for option, data in files.items():
                    path = tmp_path / option.name
                    path.write_bytes(data)
                    set_text(sock, option, str(path))
            else:
                path = tmp_path / "both.pem"
                path.write_bytes(identity.key.read_bytes() + identity.chain.read_bytes())
                set_text(sock, CHAIN, str(path))
                set_text(sock, KEY, str(path))

        with listening(prepare=give) as listener:
            assert shown(listener, HOST)[0] == certificate_of(pki.ecdsa)

    def test_the_file_may_be_gone_afterwards(self, pki: Pki, tmp_path: Path) -> None:
        def give(sock: socket.socket) -> None:
            for option, source in ((CHAIN, pki.ecdsa.chain), (KEY, pki.ecdsa.key)):
                path = tmp_path / option.name
                path.write_bytes(source.read_bytes())
                set_text(sock, option, str(path))
                path.unlink()

        with listening(prepare=give) as listener:
            check_served(listener, pki.root)

    def test_a_key_is_read_with_the_rights_of_the_caller(self, pki: Pki) -> None:
        def give() -> None:
            with tls_socket(host=None) as sock:
                set_text(sock, CHAIN, str(pki.ecdsa.chain))
                refused(errno.EACCES, lambda: set_text(sock, KEY, str(pki.ecdsa.key)))

        assert in_child(give, user=NOBODY) == 0


class TestMistakes:
    """What is wrong is said in words, at once or at listen()."""

    def complaint(self, sock: socket.socket, identity: Identity) -> str:
        """Give a socket an identity that is wrong and have it listen; return the sentence."""

        def give_and_listen() -> None:
            set_identity(sock, identity)
            sock.listen()

        refused(errno.EINVAL, give_and_listen)
        text = tls_error(sock)
        assert text.endswith("."), text
        return text

    def test_an_encrypted_key(self, pki: Pki) -> None:
        with tls_socket(host=None) as sock:
            text = self.complaint(sock, pki.encrypted_key)
        assert "encrypted" in text
        assert "openssl pkey" in text

    def test_a_key_of_another_certificate(self, pki: Pki) -> None:
        with tls_socket(host=None) as sock:
            text = self.complaint(sock, pki.mismatching_key)
        assert f"CN={HOST}" in text
        assert "TLS_PRIVATE_KEY" in text

    def test_a_chain_in_the_wrong_order(self, pki: Pki) -> None:
        with tls_socket(host=None) as sock:
            text = self.complaint(sock, pki.wrong_order)
        assert "order" in text or "first" in text, text

    def test_a_key_before_its_chain(self, pki: Pki) -> None:
        with tls_socket(host=None) as sock:
            refused(errno.EINVAL, lambda: set_text(sock, KEY, str(pki.ecdsa.key)))
            assert "TLS_CERTIFICATE_CHAIN first" in tls_error(sock)

    @pytest.mark.parametrize("pairs", ["the only one", "the second one"])
    def test_a_chain_without_its_key(self, pki: Pki, pairs: str) -> None:
        with tls_socket(host=None) as sock:
            if pairs == "the second one":
                set_identity(sock, pki.rsa)
            set_text(sock, CHAIN, str(pki.ecdsa.chain))
            refused(errno.EINVAL, sock.listen)
            assert "TLS_PRIVATE_KEY" in tls_error(sock)
            set_text(sock, KEY, str(pki.ecdsa.key))
            sock.listen()

    def test_what_is_no_certificate(self, pki: Pki, tmp_path: Path) -> None:
        path = tmp_path / "text"
        path.write_text("no certificate")
        with tls_socket(host=None) as sock:
            refused(errno.EINVAL, lambda: set_text(sock, CHAIN, str(path)))
            assert "certificate" in tls_error(sock)
            refused(errno.ENOENT, lambda: set_text(sock, CHAIN, str(tmp_path / "none")))
            # And it is none the worse for it.
            set_identity(sock, pki.ecdsa)
            sock.listen()

    @pytest.mark.parametrize(
        ("name", "words"),
        [
            ("expired", ["expired"]),
            ("not_yet_valid", ["not valid before"]),
            ("missing_intermediate", ["CN=Test Intermediate"]),
        ],
    )
    def test_what_clients_will_refuse_is_a_warning(
        self, pki: Pki, daemon: Daemon, name: str, words: list[str]
    ) -> None:
        start = len(daemon.said())
        with listening(getattr(pki, name)) as listener:
            warned = tls_error(listener.sock) + daemon.said()[start:]
            assert all(word in warned for word in words), warned
            with pytest.raises(ssl.SSLCertVerificationError):
                check_served(listener, pki.root)


class TestAlpn:
    """TLS_ALPN on both sides."""

    @pytest.mark.parametrize(
        ("offered", "wanted"),
        [
            (["h2", "http/1.1"], "h2"),
            (["http/1.1", "h2"], "h2"),  # the server's order decides
            (["http/1.1"], "http/1.1"),
            (["other", "http/1.1"], "http/1.1"),
            ([], ""),
        ],
        ids=lambda value: "+".join(value) or "none" if isinstance(value, list) else "",
    )
    def test_the_best_of_both_is_chosen(self, pki: Pki, offered: list[str], wanted: str) -> None:
        def choose(sock: socket.socket) -> None:
            set_text(sock, TlsOption.TLS_ALPN, "h2,http/1.1")

        with listening(pki.ecdsa, prepare=choose) as listener:
            trust = clients.context(pki.root, alpn=offered)
            target = Target(listener.port, pki.root)
            with clients.connect(trust, target) as client, listener.accept() as accepted:
                assert (client.selected_alpn_protocol() or "") == wanted
                assert text_or_none(accepted, TlsOption.TLS_ALPN) == wanted

    def test_without_a_common_one_there_is_no_connection(self, pki: Pki) -> None:
        def choose(sock: socket.socket) -> None:
            set_text(sock, TlsOption.TLS_ALPN, "h2")

        with Events() as events, listening(pki.ecdsa, prepare=choose) as listener:
            trust = clients.context(pki.root, alpn=["other"])
            with pytest.raises(ssl.SSLError, match=r"(?i)no.application.protocol"):
                clients.connect(trust, Target(listener.port, pki.root))
            text = events.refusal()["text"]
            assert "h2" in text or "ALPN" in text, text
            assert not listener.readable()

    def test_a_server_that_has_none_ignores_the_offer(self, pki: Pki) -> None:
        with listening(pki.ecdsa) as listener:
            trust = clients.context(pki.root, alpn=["h2"])
            with (
                clients.connect(trust, Target(listener.port, pki.root)) as client,
                listener.accept() as accepted,
            ):
                assert client.selected_alpn_protocol() is None
                assert text_or_none(accepted, TlsOption.TLS_ALPN) == ""

    def test_between_two_tls_sockets(self, pki: Pki) -> None:
        def choose(sock: socket.socket) -> None:
            set_text(sock, TlsOption.TLS_ALPN, "two,one")

        with listening(pki.ecdsa, prepare=choose) as listener, tls_socket() as client:
            set_text(client, TlsOption.TLS_ALPN, "one,three")
            client.connect(("127.0.0.1", listener.port))
            with listener.accept() as accepted:
                assert get_text(client, TlsOption.TLS_ALPN) == "one"
                assert get_text(accepted, TlsOption.TLS_ALPN) == "one"
                assert get_text(accepted, TlsOption.TLS_HOSTNAME) == HOST
                client.sendall(b"mirrored")
                assert accepted.recv(8, socket.MSG_WAITALL) == b"mirrored"


class TestVersionsAndCiphers:
    """A server is as strict as its program wants it."""

    def test_the_lowest_version(self, pki: Pki) -> None:
        def strict(sock: socket.socket) -> None:
            set_bytes(sock, TlsOption.TLS_VERSION_MIN, (0x0304).to_bytes(4, "little"))

        with Events() as events, listening(pki.ecdsa, prepare=strict) as listener:
            with pytest.raises(ssl.SSLError, match=r"(?i)protocol.version"):
                shown(listener, HOST, "TLSv1.2")
            assert "version" in events.refusal()["text"]
            assert shown(listener, HOST, "TLSv1.3")[1] == HOST

    def test_a_cipher_that_is_disabled(self, pki: Pki) -> None:
        def strict(sock: socket.socket) -> None:
            set_text(sock, TlsOption.TLS_DISABLE_CIPHER, "ECDHE-ECDSA-AES128-GCM-SHA256")

        with listening(pki.ecdsa, prepare=strict) as listener:
            with pytest.raises(ssl.SSLError, match=r"(?i)handshake.failure"):
                shown(listener, HOST, "TLSv1.2", "ECDHE-ECDSA-AES128-GCM-SHA256")
            assert shown(listener, HOST, "TLSv1.2", "ECDHE-ECDSA-AES256-GCM-SHA384")[1] == HOST
