# SPDX-License-Identifier: BSD-3-Clause
"""The daemon as processes: how they start, register as workers, give up rights and end."""

from __future__ import annotations

import asyncio
import encodings.punycode  # noqa: F401 - see import_all
import errno
import importlib
import logging
import os
import pkgutil
import signal
import socket
import stat
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

import cryptography.hazmat
import cryptography.x509
import idna

from ssad import log, module, privileges
from ssad.config import Faulty, Source, parse
from ssad.context import TicketContexts, client_context
from ssad.errors import Refused
from ssad.exits import CommandError, Exit
from ssad.link import FamilyMissing, Link, LinkError
from ssad.policy import Policy
from ssad.reload import Follower, Keeper, now
from ssad.restart import Legacy, Restarter, Start, execute
from ssad.server import Server
from ssad.settings import Settings
from ssad.supervisor import (
    HURRY,
    Supervisor,
    await_ready,
    tell_failure,
    tell_ready,
    unblock_signals,
)
from ssad.wire import Command

logger = logging.getLogger(__name__)

_STDIN, _STDOUT, _STDERR = range(3)


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line says about a start."""

    policy: Policy
    workers: int = 1
    user: str | None = None
    log_level: str = "info"
    background: bool = True
    source: Source | None = None  # where the policy comes from; None: it stays what it is


def run(
    options: Options,
    ready: Callable[[], None],
    private: Iterable[int] = (),
    legacy: Legacy | None = None,
) -> None:
    """Be the daemon's main process until SIGTERM or SIGINT.

    ready: called once all workers are registered.
    private: file descriptors that workers are to close.
    legacy: of the program that was there before, if there was one.

    Raises CommandError.
    """
    try:
        give_up_root(options)
        in_journal = log.configure(options.log_level, background=options.background)
        policy = load(options) if legacy is None else options.policy
        tickets = TicketContexts(policy)
        begun = 0 if legacy is None else legacy.begun
        keeper = Keeper(options.source, policy, tickets.apply, begun)
        one_worker = partial(
            work,
            options=options,
            keeper=keeper,
            tickets=tickets,
            in_journal=in_journal,
            main=os.getpid(),
        )
        supervisor = Supervisor(
            options.workers,
            one_worker,
            keeper.reload,
            _restarter(options, keeper),
            None if legacy is None else legacy.old(),
        )
        if legacy is None:
            supervisor.start(private)
        else:
            _succeed(supervisor, keeper, private)
    except privileges.NotPermitted as error:
        raise CommandError(Exit.NOT_PERMITTED, str(error)) from error
    except Faulty as error:
        raise CommandError(Exit.FAILED, f"The policy can't be used.\n{error}") from error
    except Refused as error:
        raise CommandError(Exit.FAILED, error.text) from error
    except OSError as error:
        raise CommandError(Exit.FAILED, f"ssad could not start: {error}.") from error
    if options.background:
        _leave_terminal(in_journal=in_journal)
    logger.info("TLS sockets can be used now; workers: %d.", options.workers)
    ready()
    supervisor.run()
    logger.info("Stopped.")


def _restarter(options: Options, keeper: Keeper) -> Restarter | None:
    source = options.source
    if source is None:
        return None
    start = Start(
        options.workers,
        options.user,
        options.log_level,
        options.background,
        str(source.path),
        source.required,
        source.overrides,
    )
    return Restarter(start, keeper, execute)


def _succeed(supervisor: Supervisor, keeper: Keeper, private: Iterable[int]) -> None:
    """Start workers, and have those of the program before leave; or go on with those."""
    try:
        supervisor.start(private)
    except (CommandError, OSError) as error:
        logger.error("New workers could not be started; the old ones go on: %s", error)
        supervisor.keep_old(keeper.policy.leave_timeout)
        keeper.ledger.end((f"New workers could not be started: {error}",))
    else:
        supervisor.retire_old(keeper.policy.leave_timeout)
        keeper.ledger.end((), now())


def options_of(legacy: Legacy) -> Options:
    """Return how a daemon was started, with the policy that it is to begin with, if it is known."""
    start = legacy.start
    return Options(
        parse(legacy.policy, "the policy in force"),
        start.workers,
        start.user,
        start.log_level,
        start.background,
        start.source,
    )


def take_over(legacy: Legacy) -> None:
    """Be the main process in the place of the program before, until SIGTERM or SIGINT. Raises
    CommandError."""
    run(options_of(legacy), lambda: None, legacy=legacy)


def load(options: Options) -> Policy:
    """Read the policy as the user that will have to read it again. Raises Faulty or Refused.

    The trust store is loaded now, so that the first connect does not wait for it, and that a
    missing one is noticed before any program relies on it.
    """
    if options.source is not None:
        return options.source.load()
    client_context(Settings(), options.policy)
    return options.policy


def work(
    ready: Callable[[], None],
    control: socket.socket,
    *,
    options: Options,
    keeper: Keeper,
    tickets: TicketContexts,
    in_journal: bool,
    main: int,
) -> None:
    """Be a worker until SIGTERM. `control` comes from the main process. Raises CommandError."""
    keeper.ledger.close()
    try:
        link = _register(main)
        privileges.drop_all()
    except OSError as error:
        raise CommandError(Exit.FAILED, f"A worker of ssad could not start: {error}.") from error
    if options.background:
        _leave_terminal(in_journal=in_journal)
    with link:
        asyncio.run(_serve(Server(link, keeper.policy, tickets), control, ready))


async def _serve(server: Server, control: socket.socket, ready: Callable[[], None]) -> None:
    loop = asyncio.get_running_loop()

    def stop() -> None:
        server.stop()
        # A service manager sends it to all processes, and the main process passes it on: that is
        # once, not twice, which would mean haste.
        loop.add_signal_handler(signal.SIGTERM, lambda: None)

    loop.add_signal_handler(signal.SIGTERM, stop)
    loop.add_signal_handler(HURRY, server.stop)
    loop.add_reader(control, Follower(control, server).read)
    unblock_signals()
    logger.debug("Registered with the kernel module.")
    ready()
    await server.run()


def import_all() -> None:
    """Import what libraries would import when they first need it: who the daemon is later may not
    be able to read them, say under /root."""
    for package in (cryptography.hazmat, cryptography.x509, idna):
        for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if not found.name.endswith(".__main__"):
                importlib.import_module(found.name)


def give_up_root(options: Options) -> None:
    """Do all that needs root, or a right to read code, and give that up. Raises CommandError, or
    privileges.NotPermitted."""
    import_all()
    privileges.raise_file_limit()
    # Root's last act: the kernel loads modules by itself only for those who may administer it.
    if os.geteuid() == 0:
        try:
            module.connect().close()
        except FamilyMissing as error:
            raise CommandError(Exit.NO_MODULE, module.HOW_TO_LOAD) from error
        if options.policy.transport != "channel" and not module.ktls_loaded():
            module.load(module.KTLS_MODULE)
    privileges.keep_only_net_admin(options.user)


def _register(main: int) -> Link:
    """Become a worker of the daemon that has this main process."""
    try:
        link = Link()
    except FamilyMissing as error:
        raise CommandError(Exit.NO_MODULE, module.HOW_TO_LOAD) from error
    try:
        link.request(Command.REGISTER, {"daemon": main})
    except LinkError as error:
        text, code = (
            f"The kernel module did not take ssad as a worker: {error.strerror}.",
            Exit.FAILED,
        )
        if error.errno == errno.EBUSY:
            code, text = Exit.RUNNING_ALREADY, _running_already(link)
        link.close()
        raise CommandError(code, text) from error
    return link


def _running_already(link: Link) -> str:
    found = {worker.get("daemon", 0) for worker in link.dump(Command.WORKER_GET)}
    pids = ", ".join(map(str, sorted(found)))
    return f"ssad is already running (pid {pids}); stop it with 'ssad stop'."


def start_in_background(options: Options) -> int:
    """Start the daemon as a process of its own; return its pid once its workers are registered.

    Raises CommandError.
    """
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(read_end)
        _be_background(options, write_end)
    os.close(write_end)
    with os.fdopen(read_end, "rb") as pipe:
        await_ready(pipe, pid)
    return pid


def _be_background(options: Options, write_end: int) -> None:
    """Carry on as the child: never returns."""
    code = Exit.DONE
    try:
        os.setsid()
        os.chdir("/")
        os.umask(0o077)
        run(options, lambda: tell_ready(write_end), private=[write_end])
    except CommandError as error:
        code = error.code
        tell_failure(write_end, error)
    except BaseException:
        code = Exit.FAILED
        logger.exception("ssad failed.")
    finally:
        logging.shutdown()
        os._exit(code)


def _leave_terminal(*, in_journal: bool) -> None:
    """Give back the caller's standard input and output, and its error unless the log needs it."""
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, _STDIN)
    os.dup2(null, _STDOUT)
    # Who reads the other end of a pipe waits until the last writer is gone.
    if in_journal or stat.S_ISFIFO(os.fstat(_STDERR).st_mode):
        os.dup2(null, _STDERR)
    os.close(null)
