# SPDX-License-Identifier: BSD-3-Clause
"""TLS servers that others wrote, each on free ports of the loopback interface.

Every function is a context manager: inside it the server listens, after it the server is gone.
"""

from __future__ import annotations

import itertools
import os
import signal
import socket
import subprocess
import time
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tests.peers.pki import Identity

Version = Literal["TLSv1.2", "TLSv1.3"]
Cipher = Literal["AES-128-GCM", "AES-256-GCM", "CHACHA20-POLY1305"]

VERSIONS: tuple[Version, ...] = ("TLSv1.2", "TLSv1.3")
CIPHERS: tuple[Cipher, ...] = ("AES-128-GCM", "AES-256-GCM", "CHACHA20-POLY1305")

SUITES13: dict[Cipher, str] = {
    "AES-128-GCM": "TLS_AES_128_GCM_SHA256",
    "AES-256-GCM": "TLS_AES_256_GCM_SHA384",
    "CHACHA20-POLY1305": "TLS_CHACHA20_POLY1305_SHA256",
}
_SUFFIXES12: dict[Cipher, str] = {
    "AES-128-GCM": "AES128-GCM-SHA256",
    "AES-256-GCM": "AES256-GCM-SHA384",
    "CHACHA20-POLY1305": "CHACHA20-POLY1305",
}

# A guest without KVM needs many times as long as a host for starting a program.
START_DEADLINE = 60.0


@dataclass(frozen=True, slots=True)
class Offer:
    """The one version and cipher that a server agrees to."""

    version: Version
    cipher: Cipher

    def suite(self, key: str) -> str:
        """OpenSSL's name of the cipher suite; `key` is rsa or ecdsa, as the server's key."""
        if self.version == "TLSv1.3":
            return SUITES13[self.cipher]
        return f"ECDHE-{key.upper()}-{_SUFFIXES12[self.cipher]}"


@dataclass(frozen=True, slots=True)
class Server:
    """A server that listens."""

    address: str
    port: int
    process: subprocess.Popen[bytes]


def free_ports(count: int, address: str = "127.0.0.1") -> list[int]:
    """Return TCP ports that nothing uses at the moment."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with ExitStack() as stack:  # all are held until the last is found, so that none comes twice
        probes = [stack.enter_context(socket.socket(family)) for _ in range(count)]
        for probe in probes:
            probe.bind((address, 0))
        return [int(probe.getsockname()[1]) for probe in probes]


def free_port(address: str = "127.0.0.1") -> int:
    """Return a TCP port that nothing uses at the moment."""
    return free_ports(1, address)[0]


def listens(port: int) -> bool:
    """Tell whether some socket listens on `port`, without connecting to it."""
    wanted = f"{port:04X}"
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            local, _remote, state = line.split()[1:4]
            if local.endswith(f":{wanted}") and state == "0A":
                return True
    return False


@contextmanager
def running(
    command: Sequence[str | Path],
    ports: Sequence[int],
    log: Path,
    *,
    cwd: Path | None = None,
    stdin: int | IO[bytes] = subprocess.DEVNULL,
    stdout: int | IO[bytes] | None = None,
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server from the moment when it listens on all `ports`.

    What it says goes to the file `log`, standard output only if `stdout` is None. Raises
    RuntimeError, with the log, if it ends before it listens.
    """
    with log.open("ab") as output:
        process = subprocess.Popen(
            [str(part) for part in command],
            cwd=cwd,
            stdin=stdin,
            stdout=output if stdout is None else stdout,
            stderr=output,
        )
    with ExitStack() as stack:
        stack.callback(_stop, process)
        deadline = time.monotonic() + START_DEADLINE
        while not all(listens(port) for port in ports):
            status = process.poll()
            if status is not None or time.monotonic() > deadline:
                found = "does not" if status is None else f"ended with status {status}"
                raise RuntimeError(
                    f"{command[0]} should listen on {ports} but {found}; it said:\n"
                    + log.read_text(errors="replace")
                )
            time.sleep(0.01)  # the kernel has no event for "somebody listens"
        yield process


def _stop(process: subprocess.Popen[bytes]) -> None:
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()
    if process.poll() is None:
        process.send_signal(signal.SIGCONT)
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
    process.wait()


@contextmanager
def openssl(
    identity: Identity,
    log: Path,
    *options: str | Path,
    offer: Offer | None = None,
    address: str = "127.0.0.1",
    cwd: Path | None = None,
    stdin: int | IO[bytes] = subprocess.DEVNULL,
    stdout: int | IO[bytes] | None = None,
) -> Iterator[Server]:
    """Run `openssl s_server`; `options` say what it does, as -rev or -WWW. One client at a time.

    It takes commands on `stdin`, among them k (key update), P (plain text) and q (quit).
    """
    port = free_port(address)
    bracketed = f"[{address}]" if ":" in address else address
    command: list[str | Path] = ["openssl", "s_server", "-accept", f"{bracketed}:{port}"]
    # Only the own certificate is taken from -cert.
    command += ["-cert", identity.chain, "-cert_chain", identity.chain, "-key", identity.key]
    if offer is not None and offer.version == "TLSv1.3":
        command += ["-tls1_3", "-ciphersuites", SUITES13[offer.cipher]]
    elif offer is not None:
        suites = (offer.suite("rsa"), offer.suite("ecdsa"))
        command += ["-tls1_2", "-cipher", ":".join(suites)]
    command += options
    with running(command, [port], log, cwd=cwd, stdin=stdin, stdout=stdout) as process:
        yield Server(address, port, process)


@contextmanager
def gnutls(
    identity: Identity, log: Path, *options: str, offer: Offer | None = None
) -> Iterator[Server]:
    """Run `gnutls-serv`; with the option --echo it sends back every line."""
    port = free_port()
    command: list[str | Path] = ["gnutls-serv", "--port", str(port), *options]
    command += ["--x509certfile", identity.chain, "--x509keyfile", identity.key]
    if offer is not None:
        version = offer.version.replace("v", "").replace("TLS", "VERS-TLS")
        priority = f"NORMAL:-VERS-ALL:+{version}:-CIPHER-ALL:+{offer.cipher}"
        command += ["--priority", priority]
    with running(command, [port], log) as process:
        yield Server("127.0.0.1", port, process)


@contextmanager
def stunnel(
    identity: Identity,
    directory: Path,
    echo: Path,
    *,
    address: str = "127.0.0.1",
    version: Version | None = None,
) -> Iterator[Server]:
    """Run stunnel in front of `echo` (echo.c): it echoes each byte, to many at once."""
    port = free_port(address)
    while (plain_port := free_port()) == port:
        pass
    config = directory / "stunnel.conf"
    log = directory / "stunnel.log"
    accept = f"{address}:{port}"
    config.write_text(
        f"""foreground = yes
        pid =
        debug = notice
        syslog = no
        [echo]
        accept = {accept}
        cert = {identity.chain}
        key = {identity.key}
        connect = 127.0.0.1:{plain_port}
        TIMEOUTclose = 5
        """
        + (f"sslVersion = {version}\n" if version else "")
    )
    with (
        running([echo, str(plain_port)], [plain_port], log),
        running(["stunnel4", config], [port], log) as process,
    ):
        yield Server(address, port, process)


@dataclass(frozen=True, slots=True)
class Nginx:
    """nginx with one port for every identity and offer, and a directory that it serves.

    Files below `root` can be fetched, and written with PUT.
    """

    ports: dict[tuple[str, Offer | None], int]
    plain_port: int
    root: Path


@contextmanager
def nginx(identities: dict[str, Identity], directory: Path) -> Iterator[Nginx]:
    """Run nginx for `identities`: each on a port per Offer, and on one (None) for all offers.

    It also serves plain HTTP, on `plain_port`.
    """
    root = directory / "root"
    root.mkdir(mode=0o777)
    root.chmod(0o777)  # the workers write uploads, and they do not run as root
    offers: list[Offer | None] = [None]
    offers += [Offer(*pair) for pair in itertools.product(VERSIONS, CIPHERS)]
    names = list(itertools.product(identities, offers))
    plain_port, *tls_ports = free_ports(len(names) + 1)
    ports = dict(zip(names, tls_ports, strict=True))
    servers = [f"server {{ listen 127.0.0.1:{plain_port}; }}"]
    for (name, offer), port in ports.items():
        servers.append(_nginx_server(identities[name], name, offer, port))
    rules = f"""
        default_type application/octet-stream;
        client_max_body_size 0;
        root {root};
        dav_methods PUT;
        lingering_close off;
        {os.linesep.join(servers)}
    """
    with _running_nginx("nginx", rules, [plain_port, *ports.values()], directory):
        yield Nginx(ports, plain_port, root)


def _running_nginx(
    name: str, rules: str, ports: list[int], directory: Path
) -> AbstractContextManager[subprocess.Popen[bytes]]:
    """Run nginx with these rules for HTTP; its files are called after `name`."""
    config = directory / f"{name}.conf"
    config.write_text(
        f"""daemon off;
        master_process off;
        pid {directory}/{name}.pid;
        error_log stderr;
        events {{ worker_connections 1000; }}
        http {{
            access_log off;
            client_body_temp_path {directory}/{name}-body;
            proxy_temp_path {directory}/{name}-proxy;
            fastcgi_temp_path {directory}/{name}-fastcgi;
            uwsgi_temp_path {directory}/{name}-uwsgi;
            scgi_temp_path {directory}/{name}-scgi;
            {rules}
        }}
        """
    )
    return running(["nginx", "-c", config], ports, directory / f"{name}.log")


def _nginx_server(identity: Identity, key: str, offer: Offer | None, port: int) -> str:
    match offer:
        case None:
            limits = "ssl_protocols TLSv1.2 TLSv1.3;"
        case Offer("TLSv1.3", cipher):
            limits = f"ssl_protocols TLSv1.3; ssl_conf_command Ciphersuites {SUITES13[cipher]};"
        case _:
            limits = f"ssl_protocols TLSv1.2; ssl_ciphers {offer.suite(key)};"
    return f"""server {{
        listen 127.0.0.1:{port} ssl;
        ssl_certificate {identity.chain};
        ssl_certificate_key {identity.key};
        {limits}
    }}"""


@dataclass(frozen=True, slots=True)
class Site:
    """What one port of `nginx_sites` shows: a chain, and the file of the staple, if any."""

    identity: Identity
    staple: Path | None = None


@contextmanager
def nginx_sites(sites: dict[str, Site], directory: Path) -> Iterator[dict[str, int]]:
    """Run nginx with a port for each site; gives the ports."""
    ports = dict(zip(sites, free_ports(len(sites)), strict=True))
    blocks = [
        f"""server {{
            listen 127.0.0.1:{ports[name]} ssl;
            ssl_certificate {site.identity.chain};
            ssl_certificate_key {site.identity.key};
            {f"ssl_stapling on; ssl_stapling_file {site.staple};" if site.staple else ""}
        }}"""
        for name, site in sites.items()
    ]
    rules = f"""
        ssl_protocols TLSv1.2 TLSv1.3;
        {os.linesep.join(blocks)}
    """
    with _running_nginx("sites", rules, list(ports.values()), directory):
        yield ports


@contextmanager
def openssl_ocsp(index: Path, authority: Identity, log: Path, port: int) -> Iterator[None]:
    """Run `openssl ocsp` as the responder of an authority, whose register is `index`
    (openssl-ca(1))."""
    command: list[str | Path] = ["openssl", "ocsp", "-port", str(port), "-index", index]
    command += ["-CA", authority.chain, "-rsigner", authority.chain, "-rkey", authority.key]
    command += ["-nmin", "60", "-ignore_err"]
    with running(command, [port], log):
        yield
