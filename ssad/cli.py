# SPDX-License-Identifier: BSD-3-Clause
"""The command line: ssad start, stop, reload, restart, status, ls, monitor, config.

What takes long to load is imported by the command that needs it.
"""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from ssad import __version__
from ssad.exits import CommandError, Exit
from ssad.policy import HANDSHAKE_TIMEOUT, Policy

if TYPE_CHECKING:
    from ssad.config import Faulty, Source
    from ssad.link import Link

# Seconds. Workers take no more than 2 for their connections, and the main process kills those that
# do not end within 10.
_STOP_TIMEOUT = 15.0
# The main process gives the workers 10 in each of two rounds, and checks the policy before.
_RELOAD_TIMEOUT = 40.0
# The new program is tried for 120, and then has to begin.
_RESTART_TIMEOUT = 240.0
_POLL = 0.02  # between looks at what it tells

_EPILOG = """\b
Exit codes:
  0  done; for status: everything is in order
  1  failed, for the reason given
  2  wrong usage
  3  the daemon is not running
  4  not permitted; try again as root
  5  the kernel module is not loaded
  6  for status: it works, but something is missing
  7  for start: the daemon is running already; for restart: another one is under way
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
config_option = click.option(
    "--config",
    "config_file",
    type=click.Path(path_type=Path),
    help="The policy file.  [default: /etc/ssad/ssad.toml; if there is none, secure defaults]",
)


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
@config_option
@click.option(
    "--trust-store",
    type=click.Path(path_type=Path),
    help="PEM file with the certificates to trust. Wins over the policy file.",
)
@click.option(
    "--transport",
    type=click.Choice(["auto", "ktls", "channel"]),
    help="auto: kernel TLS where it works, else a relay in the daemon. Or always the one named. "
    "Wins over the policy file.",
)
@click.option(
    "--handshake-timeout",
    type=click.FloatRange(HANDSHAKE_TIMEOUT.low, HANDSHAKE_TIMEOUT.high),
    metavar="SECONDS",
    help="How long a handshake may take once TCP is connected. Wins over the policy file.",
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
    config_file: Path | None,
    trust_store: Path | None,
    transport: str | None,
    handshake_timeout: float | None,
    workers: int | None,
    log_level: str,
    as_json: bool,
) -> None:
    """Start the daemon; return when TLS sockets can be used.

    The policy comes from the policy file, but for what is said here: that wins, and goes on to do
    so when the file is read again ('ssad reload').

    In the background it logs to the journal, or to standard error if there is no journal and
    standard error is not a pipe.
    """
    from ssad import daemon

    source = _source(
        config_file,
        trust_store=None if trust_store is None else str(trust_store.absolute()),
        transport=transport,
        handshake_timeout=handshake_timeout,
    )
    # What else it needs is checked by the daemon, as the user that it runs as.
    policy = _load(source, usable=False)
    if workers is None:
        workers = len(os.sched_getaffinity(0))
    options = daemon.Options(
        policy, workers, user, log_level, background=not foreground, source=source
    )
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
    with _main_process() as (pid, process):
        _end(pid, process)
    if as_json:
        _print_json({"pid": pid})


@main.command()
@json_option
@click.pass_context
def reload(ctx: click.Context, *, as_json: bool) -> None:
    """Have the daemon read its policy file again; return when all workers go by it.

    All of the new policy is in force then for what begins from now on, or, if anything is wrong
    with it, all of the old one. What is connected stays so.
    """
    with _main_process() as (pid, process):
        faults = _reload(pid, process)
    _tell_faults(ctx, pid, faults, "The policy stays as it was.", as_json=as_json)


@main.command()
@json_option
@click.pass_context
def restart(ctx: click.Context, *, as_json: bool) -> None:
    """Put the program that is installed now in the place of the daemon's, started as it was; return
    when its workers serve.

    No connection fails: the old workers finish what they have begun, and have as long for it as
    the policy says (deadlines.leave). If the new program can't be used, or its policy, nothing
    changes.
    """
    with _main_process() as (pid, process):
        faults = _restart(pid, process)
    _tell_faults(ctx, pid, faults, "The old workers go on.", as_json=as_json)


def _tell_faults(
    ctx: click.Context, pid: int, faults: list[str], kept: str, *, as_json: bool
) -> None:
    """Print what a change of the daemon failed for, and fail if it did; `kept`: what holds then."""
    if as_json:
        _print_json({"pid": pid, "faults": faults})
        ctx.exit(Exit.FAILED if faults else Exit.DONE)
    if faults:
        raise CommandError(Exit.FAILED, "\n".join([kept, *faults]))


def _reload(pid: int, process: int) -> list[str]:
    """Send SIGHUP to the process that a pidfd refers to; return what its reload failed for."""
    return _change(pid, process, signal.SIGHUP, _RELOAD_TIMEOUT)


def _restart(pid: int, process: int) -> list[str]:
    """Have the process that a pidfd refers to restart; return what that failed for."""
    from ssad.supervisor import RESTART

    return _change(pid, process, RESTART, _RESTART_TIMEOUT)


def _change(pid: int, process: int, number: signal.Signals, timeout: float) -> list[str]:
    """Send a signal that asks for a change; return what it failed for."""
    from ssad import reloads

    what = "reload" if number == signal.SIGHUP else "restart"
    ended = CommandError(Exit.NOT_RUNNING, f"ssad (pid {pid}) has ended.")
    end = time.monotonic() + timeout
    before = None
    try:
        while time.monotonic() < end:
            told = reloads.read(pid)
            if before is None and told is not None:
                if what == "restart" and told.restarting:
                    raise CommandError(
                        Exit.RUNNING_ALREADY, f"A restart of ssad (pid {pid}) is under way already."
                    )
                before = told
                signal.pidfd_send_signal(process, number)
            # Not the one that may have been under way: it began before our file was there.
            elif before is not None and told is not None and told.finished > before.started:
                return [*told.faults]
            if select.select([process], [], [], _POLL)[0]:
                raise ended
    except PermissionError as error:
        raise CommandError(
            Exit.NOT_PERMITTED, f"ssad (pid {pid}) belongs to another user; {what} it as root."
        ) from error
    except (FileNotFoundError, ProcessLookupError) as error:
        raise ended from error
    raise CommandError(
        Exit.FAILED,
        f"ssad (pid {pid}) did not say within {timeout:g} s what became of it; its log may tell.",
    )


@contextmanager
def _main_process() -> Iterator[tuple[int, int]]:
    """Give the daemon's pid and a pidfd for it. Raises CommandError if it is not running."""
    from ssad.wire import Command

    def find() -> int | None:
        workers = link.dump(Command.WORKER_GET)
        return workers[0]["daemon"] if workers else None

    with connect() as link:
        pid = find()
        if pid is None:
            _not_running()
        try:
            process = os.pidfd_open(pid)
        except ProcessLookupError:
            _not_running()
        with os.fdopen(process):
            # Now its number can't be given to another process any more. Was it, before?
            if find() != pid:
                _not_running()
            yield pid, process


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
@config_option
@click.option(
    "--trust-store",
    type=click.Path(path_type=Path),
    help="The file that the daemon was started with.  [default: the policy's]",
)
@json_option
@click.pass_context
def status(
    ctx: click.Context, *, config_file: Path | None, trust_store: Path | None, as_json: bool
) -> None:
    """Say whether TLS sockets can be used; if not, what is missing and how to mend it."""
    from ssad.status import inspect

    report = inspect(_source(config_file), trust_store)
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


@main.group()
def config() -> None:
    """Check or show the policy file."""


@config.command("check")
@config_option
@json_option
@click.pass_context
def config_check(ctx: click.Context, *, config_file: Path | None, as_json: bool) -> None:
    """Say everything that is wrong with the policy file, each with its line.

    The file and the trust store are read as the user who asks; the daemon reads them as its own.
    """
    from ssad.config import Faulty

    source = _source(config_file)
    faults: list[dict[str, object]] = []
    try:
        found = source.text() is not None
        source.load()
    except Faulty as faulty:
        if not as_json:
            raise _not_usable(faulty) from faulty
        found = True
        faults = [asdict(fault) for fault in faulty.faults]
    if as_json:
        _print_json({"file": str(source.path), "found": found, "faults": faults})
        ctx.exit(Exit.FAILED if faults else Exit.DONE)
    told = "nothing is wrong with it" if found else "there is none, so the defaults hold"
    click.echo(f"{source.path}: {told}.")


@config.command("show")
@config_option
@json_option
def config_show(*, config_file: Path | None, as_json: bool) -> None:
    """Print the whole policy that the file makes, as TOML with each key explained.

    What it prints can be a policy file itself.
    """
    import tomllib

    from ssad.config import dump

    text = dump(_load(_source(config_file), usable=False))
    if as_json:
        _print_json(tomllib.loads(text))
    else:
        click.echo(text, nl=False)


def _source(config_file: Path | None, **overrides: object) -> Source:
    """Say where the policy comes from; an option that was not given overrides nothing."""
    from ssad.config import DEFAULT_FILE, Source

    return Source(
        DEFAULT_FILE if config_file is None else config_file.absolute(),
        config_file is not None,
        {name: value for name, value in overrides.items() if value is not None},
    )


def _load(source: Source, *, usable: bool) -> Policy:
    """Raises CommandError."""
    from ssad.config import Faulty

    try:
        return source.load(usable=usable)
    except Faulty as faulty:
        raise _not_usable(faulty) from faulty


def _not_usable(faulty: Faulty) -> CommandError:
    return CommandError(Exit.FAILED, f"The policy can't be used.\n{faulty}")


def _print_json(found: object) -> None:
    click.echo(json.dumps(found, indent=2))
