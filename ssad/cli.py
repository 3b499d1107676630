# SPDX-License-Identifier: BSD-3-Clause
"""The command line: ssad start, stop, status, ls, monitor.

What takes long to load is imported by the command that needs it.
"""

from __future__ import annotations

import json
import os
import select
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from ssad import __version__
from ssad.exits import CommandError, Exit
from ssad.policy import Policy

if TYPE_CHECKING:
    from ssad.link import Link

# Seconds. Workers take no more than 2 for their connections, and the main process kills those that
# do not end within 10.
_STOP_TIMEOUT = 15.0
_DEFAULT = Policy()

_EPILOG = """\b
Exit codes:
  0  done; for status: everything is in order
  1  failed, for the reason given
  2  wrong usage
  3  the daemon is not running
  4  not permitted; try again as root
  5  the kernel module is not loaded
  6  for status: it works, but something is missing
  7  for start: the daemon is running already
"""


class _Group(click.Group):
    """Turns failures of commands into a sentence and an exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except CommandError as error:
            click.echo(f"ssad: {error}", err=True)
            ctx.exit(error.code)
        except BrokenPipeError:
            # Whoever read our output has seen enough. Nothing may be flushed to it at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            ctx.exit(Exit.DONE)


json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.group(cls=_Group, epilog=_EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="ssad")
def main() -> None:
    """TLS sockets: socket(AF_INET, SOCK_STREAM, IPPROTO_TLS).

    ssad does the TLS handshakes for the kernel module ssa.
    """


def connect() -> Link:
    """Connect to the module. Raises CommandError if it is not loaded."""
    from ssad.link import FamilyMissing, Link
    from ssad.module import HOW_TO_LOAD

    try:
        return Link()
    except FamilyMissing as error:
        raise CommandError(Exit.NO_MODULE, HOW_TO_LOAD) from error


@main.command()
@click.option("--foreground", is_flag=True, help="Stay in the foreground; log to standard error.")
@click.option("--user", help="User to run as when started by root.  [default: ssad, else nobody]")
@click.option(
    "--trust-store",
    type=click.Path(path_type=Path),
    default=_DEFAULT.trust_store,
    show_default=True,
    help="PEM file with the certificates to trust.",
)
@click.option(
    "--transport",
    type=click.Choice(["auto", "ktls", "channel"]),
    default=_DEFAULT.transport,
    show_default=True,
    help="auto: kernel TLS where it works, else a relay in the daemon. Or always the one named.",
)
@click.option(
    "--handshake-timeout",
    type=click.FloatRange(0, 3600, min_open=True),
    default=_DEFAULT.handshake_timeout,
    show_default=True,
    metavar="SECONDS",
    help="How long a handshake may take once TCP is connected.",
)
@click.option(
    "--workers",
    type=click.IntRange(1, 1024),
    show_default="one per core",
    help="How many processes do handshakes and relay connections.",
)
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    default="info",
    show_default=True,
)
@json_option
def start(
    *,
    foreground: bool,
    user: str | None,
    trust_store: Path,
    transport: str,
    handshake_timeout: float,
    workers: int | None,
    log_level: str,
    as_json: bool,
) -> None:
    """Start the daemon; return when TLS sockets can be used.

    In the background it logs to the journal, or to standard error if there is no journal and
    standard error is not a pipe.
    """
    from ssad import daemon

    policy = Policy(
        trust_store=trust_store.absolute(),
        transport=transport,  # type: ignore[arg-type]  # click has checked it
        handshake_timeout=handshake_timeout,
    )
    if workers is None:
        workers = len(os.sched_getaffinity(0))
    options = daemon.Options(policy, workers, user, log_level, background=not foreground)
    if foreground:
        daemon.run(options, lambda: None)
        return
    pid = daemon.start_in_background(options)
    if as_json:
        _print_json({"pid": pid})


@main.command()
@json_option
def stop(*, as_json: bool) -> None:
    """Stop the daemon; return when it has ended.

    Connections over kernel TLS go on; those that its workers relay have two seconds to end.
    """
    from ssad.wire import Command

    def find_main() -> int | None:
        workers = link.dump(Command.WORKER_GET)
        return workers[0]["daemon"] if workers else None

    with connect() as link:
        pid = find_main()
        if pid is None:
            _not_running()
        try:
            process = os.pidfd_open(pid)
        except ProcessLookupError:
            _not_running()
        with os.fdopen(process):
            # Now its number can't be given to another process any more. Was it, before?
            if find_main() != pid:
                _not_running()
            _end(pid, process)
    if as_json:
        _print_json({"pid": pid})


def _end(pid: int, process: int) -> None:
    """Send SIGTERM to the process that a pidfd refers to, and wait for its end."""
    try:
        signal.pidfd_send_signal(process, signal.SIGTERM)
    except ProcessLookupError:
        return
    except PermissionError as error:
        raise CommandError(
            Exit.NOT_PERMITTED, f"ssad (pid {pid}) belongs to another user; stop it as root."
        ) from error
    if not select.select([process], [], [], _STOP_TIMEOUT)[0]:
        raise CommandError(
            Exit.FAILED,
            f"ssad (pid {pid}) did not end within {_STOP_TIMEOUT:g} s; "
            f"'kill -KILL {pid}' ends it for sure.",
        )


def _not_running() -> NoReturn:
    raise CommandError(Exit.NOT_RUNNING, "ssad is not running; start it with 'ssad start'.")


@main.command()
@click.option(
    "--trust-store",
    type=click.Path(path_type=Path),
    default=_DEFAULT.trust_store,
    show_default=True,
    help="The file that the daemon was started with.",
)
@json_option
@click.pass_context
def status(ctx: click.Context, *, trust_store: Path, as_json: bool) -> None:
    """Say whether TLS sockets can be used; if not, what is missing and how to mend it."""
    from ssad.status import inspect

    report = inspect(trust_store)
    if as_json:
        _print_json(report.as_dict())
    else:
        click.echo(report.as_text())
    ctx.exit(report.exit_code)


@main.command("ls")
@json_option
def list_sockets(*, as_json: bool) -> None:
    """List the TLS sockets: of all users for root, else your own."""
    from ssad.watch import as_record, table
    from ssad.wire import Command

    with connect() as link:
        found = link.dump(Command.SOCKET_GET)
    found.sort(key=lambda attributes: attributes["socket"])
    if as_json:
        _print_json([as_record(attributes) for attributes in found])
    else:
        click.echo(table(found))


@main.command()
@json_option
def monitor(*, as_json: bool) -> None:
    """Show what happens to TLS sockets as it happens: opened, connected, refused, closed.

    On a terminal it is a table that is kept up to date; in a pipe, one line an event.
    """
    from ssad.watch import show_json, show_lines, show_table

    try:
        with connect() as link:
            link.subscribe()
            if as_json:
                show_json(link)
            elif sys.stdout.isatty():
                show_table(link)
            else:
                show_lines(link)
    except PermissionError as error:
        raise CommandError(
            Exit.NOT_PERMITTED, "Events of all users are shown to root only."
        ) from error
    except KeyboardInterrupt:
        pass


def _print_json(found: object) -> None:
    click.echo(json.dumps(found, indent=2))
