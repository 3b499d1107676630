# SPDX-License-Identifier: BSD-3-Clause
"""What `make demo` shows. Runs in a guest, as root, and fails if anything is not as it says."""

from __future__ import annotations

import os
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.peers import pki, servers

ROOT = Path(__file__).resolve().parent.parent

PORT, WRONG_PORT, SERVER_PORT = 443, 8443, 4443
# More than a pipe and a client's buffer hold: a client whose output is not read stays connected.
PAGE = b"<p>This page came over TLS.</p>\n" * 8192


class NotAsShownError(Exception):
    """Its text says what was to be seen, and what was."""


def main() -> int:
    """Show it all; the exit status."""
    try:
        show(Path("/demo"))
    except NotAsShownError as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    print("\nEverything was as it should be.")
    return 0


def show(directory: Path) -> None:
    """Play the scenes in order."""
    os.chdir(ROOT)
    directory.mkdir()
    certificates = pki.create(directory / "pki")
    with Path("/etc/hosts").open("a") as hosts:
        hosts.write(f"127.0.0.1 {pki.HOST}\n")

    heading("nginx, with a certificate of a private CA")
    with nginx(certificates, directory):
        run("ss -tlnp 'sport = :443 or sport = :8443'", expect="nginx")

        heading("The daemon, trusting that CA")
        run(f"ssad start --trust-store {certificates.root}")
        run(f"ssad status --trust-store {certificates.root}")
        with monitor(directory) as events:
            clients(directory)
            refusal()
            server(certificates, directory / "site")
        heading("What ssad monitor has seen meanwhile")
        show_events(events)
        run("ssad stop")


def clients(directory: Path) -> None:
    """Fetch a page in three ways, all connected at once."""
    heading("A program in C, one in Python, and socat fetch a page; none has a TLS library")
    program = directory / "fetch"
    run(f"cc -I kmod -o {program} examples/client.c")
    run(f"ldd {program}", refuse="ssl")
    address = f"x{PORT:04x}{socket.inet_aton('127.0.0.1').hex()}x{'0' * 16}"
    commands = [
        f"{program} {pki.HOST} {PORT}",
        f"examples/client.py {pki.HOST} {PORT}",
        f"printf 'GET / HTTP/1.0\\r\\n\\r\\n' | socat -,ignoreeof SOCKET-CONNECT:2:205:{address}",
    ]
    say("For socat everything is a number: 2 is AF_INET, 205 IPPROTO_TLS; the address is a")
    say("sockaddr_in after its family: the port (01bb), 127.0.0.1 (7f000001) and 8 unused bytes.")
    running = []
    for command in commands:
        echo(command, in_background=True)
        process = subprocess.Popen(["sh", "-c", command], stdout=subprocess.PIPE, bufsize=0)
        running.append(process)

    heading("ssad ls, while they are connected")
    # A client that has received something is connected; it goes on when its output is read.
    firsts = [process.stdout.read(1) if process.stdout else b"" for process in running]
    shown = run("ssad ls")
    names = ("fetch", "python3", "socat")
    for word in (*names, "ktls"):
        if word not in shown:
            raise NotAsShownError(f"ssad ls was to show {word}.")
    for name, process, first in zip(names, running, firsts, strict=True):
        rest, _ = process.communicate()
        head, _, page = (first + rest).partition(b"\r\n\r\n")
        if process.returncode or page != PAGE:
            raise NotAsShownError(
                f"{name} was to print the page; it ended with status {process.returncode} "
                f"after {len(page)} of {len(PAGE)} bytes."
            )
        status = head.splitlines()[0].decode()
        say(f"{name}: {status}, {len(page)} bytes, as nginx has them")


def refusal() -> None:
    """Meet a server that shows somebody else's certificate."""
    heading("A server with the certificate of another host is refused")
    run(f"examples/client.py {pki.HOST} {WRONG_PORT}", expect=pki.OTHER_HOST, status=1)


def server(certificates: pki.Pki, site: Path) -> None:
    """Serve a page with Python's own server, and have curl fetch it."""
    heading("Python's own http.server serves TLS, with nothing changed but its socket")
    site.mkdir()
    (site / "index.html").write_text("<p>This page was served by a TLS socket.</p>\n")
    run("sed -n '/^class/,$p' examples/server.py")
    identity = certificates.ecdsa
    program = ROOT / "examples/server.py"
    command = [str(program), str(SERVER_PORT), str(identity.chain), str(identity.key)]
    echo(shlex.join(command), in_background=True)
    url = f"https://{pki.HOST}:{SERVER_PORT}/"
    with servers.running(command, [SERVER_PORT], site.parent / "server.log", cwd=site):
        run("ssad ls", expect="listening")
        run(f"curl --silent --show-error --cacert {certificates.root} {url}", expect="TLS socket")
        heading("A client that does not trust the server leaves; http.server never hears of it")
        run(f"curl --silent --show-error {url}", expect="certificate", status=60)


@contextmanager
def nginx(certificates: pki.Pki, directory: Path) -> Iterator[None]:
    """Run nginx: a good server on one port, and one with another host's certificate."""
    (directory / "index.html").write_bytes(PAGE)
    sites = "\n".join(
        f"""    server {{
        listen 127.0.0.1:{port} ssl;
        ssl_protocols TLSv1.2 TLSv1.3;
        ssl_certificate {identity.chain};
        ssl_certificate_key {identity.key};
        root {directory};
    }}"""
        for port, identity in (
            (PORT, certificates.ecdsa),
            (WRONG_PORT, certificates.wrong_host),
        )
    )
    config = directory / "nginx.conf"
    config.write_text(
        f"daemon off; pid {directory}/nginx.pid; error_log stderr; events {{}}\n"
        f"http {{\n    access_log off;\n{sites}\n}}\n"
    )
    log = directory / "nginx.log"
    with servers.running(["nginx", "-c", config], [PORT, WRONG_PORT], log):
        yield


@contextmanager
def monitor(directory: Path) -> Iterator[Path]:
    """Let ssad monitor write to a file, from the moment when it listens to the module."""
    events = directory / "events"
    with events.open("wb") as output:
        process = subprocess.Popen(["ssad", "monitor"], stdout=output)
    try:
        while not events.stat().st_size:
            if process.poll() is not None:
                raise NotAsShownError(f"ssad monitor ended with status {process.returncode}.")
            with socket.socket(socket.AF_INET, socket.SOCK_STREAM, 205):
                pass  # an event, which it prints once it listens; nothing else tells that
            time.sleep(0.2)
        yield events
    finally:
        process.terminate()
        process.wait()


def show_events(events: Path) -> None:
    """Print what ssad monitor has written about the clients."""
    lines = events.read_text().splitlines()
    for word in ("opened", "connected", "refused", "closed", "listening", "accepted"):
        if not any(word in line for line in lines):
            raise NotAsShownError(f"ssad monitor was to print that something was {word}.")
    echo("ssad monitor")
    for line in lines:
        if f"[{os.getpid()}]" not in line:  # monitor() has made sockets
            say(line)


def run(command: str, *, expect: str = "", refuse: str = "\0", status: int = 0) -> str:
    """Echo a command, run it, show its output and check both."""
    echo(command)
    done = subprocess.run(
        shlex.split(command),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    for line in done.stdout.splitlines():
        say(line)
    if done.returncode != status:
        raise NotAsShownError(f"The command was to end with {status}, not {done.returncode}.")
    if expect not in done.stdout or refuse in done.stdout:
        raise NotAsShownError(f"Its output was to have {expect!r} and not {refuse!r}.")
    return done.stdout


def heading(text: str) -> None:
    """Begin a scene."""
    print(f"\n== {text} ==", flush=True)


def echo(command: str, *, in_background: bool = False) -> None:
    """Show a command as a shell would."""
    print(f"$ {command}{' &' if in_background else ''}", flush=True)


def say(text: str) -> None:
    """Print a line of output."""
    print(f"  {text.strip()}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
