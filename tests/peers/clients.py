# SPDX-License-Identifier: BSD-3-Clause
"""TLS clients that others wrote. Each fetches one page by HTTP and verifies the server."""

from __future__ import annotations

import os
import re
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import httpx

from tests.peers.pki import HOST

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from tests.peers.pki import Identity
    from tests.peers.servers import Version

# A guest without KVM needs seconds for starting a program.
DEADLINE = 60.0

REQUEST = f"GET / HTTP/1.0\r\nHost: {HOST}\r\n\r\n".encode()

_VERSIONS = {"TLSv1.2": ssl.TLSVersion.TLSv1_2, "TLSv1.3": ssl.TLSVersion.TLSv1_3}


@dataclass(frozen=True, slots=True)
class Target:
    """Whom to ask, and how."""

    port: int
    root: Path  # trust store
    version: Version = "TLSv1.3"
    name: str = HOST
    identity: Identity | None = None  # to show to the server


# Fetches a page and returns what the client printed, the page among it.
Client = Callable[[Target], bytes]


def run(command: Sequence[str | Path], *, environment: dict[str, str] | None = None) -> bytes:
    """Run a client to its end. Raises AssertionError, with what it said, if it fails."""
    done = subprocess.run(
        [str(part) for part in command],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
        timeout=DEADLINE,
        env={**os.environ, **(environment or {})},
    )
    said = (done.stdout + done.stderr).decode(errors="replace")
    assert done.returncode == 0, f"{command[0]} ended with {done.returncode} and said:\n{said}"
    return done.stdout


def converse(command: Sequence[str | Path], request: bytes = REQUEST) -> bytes:
    """Run a client that sends what it is given and prints what comes, until the server ends it.

    Returns all that it printed, errors too. They take the end of their input for a wish to leave,
    so it comes last.
    """
    process = subprocess.Popen(
        [str(part) for part in command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    killer = threading.Timer(DEADLINE, process.kill)
    killer.start()
    with process:
        assert process.stdin is not None
        assert process.stdout is not None
        with suppress(BrokenPipeError):  # refused by the server: it has said so
            process.stdin.write(request)
            process.stdin.flush()
        said = process.stdout.read()
        with suppress(BrokenPipeError):
            process.stdin.close()
    killer.cancel()
    return said


def curl(target: Target, *options: str | Path) -> bytes:
    """curl, HTTP/1.1 unless the options say otherwise."""
    number = target.version.removeprefix("TLSv")
    return run(
        [
            *("curl", "-sS", "--max-time", f"{DEADLINE:.0f}", "--cacert", target.root),
            *("--http1.1", f"--tlsv{number}", "--tls-max", number),
            *("--resolve", f"{target.name}:{target.port}:127.0.0.1"),
            *_shown(target, "--cert", "--key"),
            *options,
            f"https://{target.name}:{target.port}/",
        ]
    )


def curl_http2(target: Target) -> bytes:
    """curl, HTTP/2 by ALPN."""
    return curl(target, "--http2")


def wget(target: Target) -> bytes:
    """GNU Wget (GnuTLS), by address: it can't be told one for a name."""
    return run(
        [
            *("wget", "-q", "-O", "-", "--tries=1", "--ca-certificate", target.root),
            f"--ciphers={_gnutls_priority(target)}",
            *_shown(target, "--certificate", "--private-key"),
            f"https://127.0.0.1:{target.port}/",
        ]
    )


def openssl(target: Target, *options: str | Path, request: bytes = REQUEST) -> bytes:
    """openssl s_client; returns what it says of the session, too."""
    return converse(
        [
            *("openssl", "s_client", "-connect", f"127.0.0.1:{target.port}"),
            *("-servername", target.name, "-verify_hostname", target.name),
            *("-CAfile", target.root, "-verify_return_error"),
            "-" + target.version.lower().replace("v", "").replace(".", "_"),
            *_shown(target, "-cert_chain", "-key"),
            *_shown(target, "-cert", "-key"),
            *options,
        ],
        request,
    )


def gnutls(target: Target, *options: str, request: bytes = REQUEST) -> bytes:
    """gnutls-cli; returns what it says of the session, too."""
    return converse(
        [
            *("gnutls-cli", "--port", str(target.port), "--x509cafile", target.root),
            *("--sni-hostname", target.name, "--verify-hostname", target.name),
            *("--priority", _gnutls_priority(target)),
            *_shown(target, "--x509certfile", "--x509keyfile"),
            *options,
            "127.0.0.1",
        ],
        request,
    )


_NODE = """
const fs = require('fs'), tls = require('tls'), e = process.env;
const read = (name) => name && fs.readFileSync(name);
const s = tls.connect({
  host: '127.0.0.1', port: e.PORT, servername: e.NAME, ca: read(e.ROOT),
  minVersion: e.VERSION, maxVersion: e.VERSION, cert: read(e.CERT), key: read(e.KEY),
}, () => s.write('GET / HTTP/1.0\\r\\n\\r\\n'));
s.on('data', (data) => process.stdout.write(data));
s.on('error', (error) => { console.error(error); process.exit(1); });
"""


def node(target: Target) -> bytes:
    """Node's TLS client."""
    environment = {
        "PORT": str(target.port),
        "NAME": target.name,
        "ROOT": str(target.root),
        "VERSION": target.version,
    }
    if target.identity is not None:
        environment["CERT"] = str(target.identity.chain)
        environment["KEY"] = str(target.identity.key)
    return run(["node", "-e", _NODE], environment=environment)


def python_ssl(target: Target) -> bytes:
    """Python's ssl module."""
    with connect(context(target.root, target.version, target.identity), target) as tls:
        tls.sendall(REQUEST)
        return receive_all(tls)


def python_httpx(target: Target) -> bytes:
    """Ask twice on one connection, over HTTP/2 if the server has it."""
    trust = context(target.root, target.version, target.identity)
    url = f"https://{target.name}:{target.port}/"
    # It has no way to be given the address of a name: ask by address, with the name as SNI.
    address = url.replace(target.name, "127.0.0.1")
    extensions = {"sni_hostname": target.name}
    with httpx.Client(verify=trust, http2=True, timeout=DEADLINE, trust_env=False) as client:
        answers = [client.get(address, extensions=extensions) for _ in range(2)]
    assert answers[0].content == answers[1].content
    return answers[1].content


def _gnutls_priority(target: Target) -> str:
    version = target.version.replace("v", "").replace("TLS", "VERS-TLS")
    return f"NORMAL:-VERS-ALL:+{version}"


def _shown(target: Target, chain: str, key: str) -> list[str | Path]:
    if target.identity is None:
        return []
    return [chain, target.identity.chain, key, target.identity.key]


# --- Python's ssl module, in pieces -------------------------------------------------------------


def context(
    root: Path,
    version: Version | None = None,
    identity: Identity | None = None,
    *,
    alpn: Sequence[str] = (),
    ciphers: str | None = None,
) -> ssl.SSLContext:
    """Make a context that trusts `root`."""
    made = ssl.create_default_context(cafile=str(root))
    made.options &= ~ssl.OP_IGNORE_UNEXPECTED_EOF  # which takes a cut for the end
    if version is not None:
        made.minimum_version = made.maximum_version = _VERSIONS[version]
    if identity is not None:
        made.load_cert_chain(identity.chain, identity.key)
    if alpn:
        made.set_alpn_protocols(list(alpn))
    if ciphers is not None:
        made.set_ciphers(ciphers)
    return made


def connect(
    trust: ssl.SSLContext,
    target: Target,
    *,
    session: ssl.SSLSession | None = None,
    address: str = "127.0.0.1",
) -> ssl.SSLSocket:
    """Connect; a stream without close_notify at its end is an error."""
    raw = socket.create_connection((address, target.port), DEADLINE)
    try:
        return trust.wrap_socket(
            raw, server_hostname=target.name, suppress_ragged_eofs=False, session=session
        )
    except BaseException:
        raw.close()
        raise


def receive_all(tls: ssl.SSLSocket) -> bytes:
    """Receive until close_notify."""
    data = b""
    while piece := tls.recv(1 << 16):
        data += piece
    return data


Name = Literal["curl", "curl_http2", "wget", "openssl", "gnutls", "node", "ssl", "httpx"]

ALL: dict[Name, Client] = {
    "curl": curl,
    "curl_http2": curl_http2,
    "wget": wget,
    "openssl": openssl,
    "gnutls": gnutls,
    "node": node,
    "ssl": python_ssl,
    "httpx": python_httpx,
}


def line_in(said: bytes, beginning: bytes) -> bytes:
    """Return the one line, of all that a client printed, that begins so."""
    found = re.findall(rb"^" + re.escape(beginning) + rb".*$", said, re.MULTILINE)
    assert len(set(found)) == 1, f"one line should begin with {beginning!r}:\n{said!r}"
    return bytes(found[0])
