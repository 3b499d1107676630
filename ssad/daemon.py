# SPDX-License-Identifier: BSD-3-Clause
"""The daemon as a process: starting, registering as the worker, ending."""

from __future__ import annotations

import asyncio
import encodings.punycode  # noqa: F401 - see _give_up_root
import errno
import logging
import os
import signal
import stat
from collections.abc import Callable
from dataclasses import dataclass

import idna.uts46data  # noqa: F401 - see _give_up_root

from ssad import log, module, privileges
from ssad.context import client_context
from ssad.errors import Refused
from ssad.exits import CommandError, Exit
from ssad.link import FamilyMissing, Link, LinkError
from ssad.policy import Policy
from ssad.server import Server
from ssad.settings import Settings
from ssad.wire import Command

logger = logging.getLogger(__name__)

_STDIN, _STDOUT, _STDERR = range(3)
_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_READY = "\0ready"  # what the child tells its parent; anything else is the reason why it is not


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line says about a start."""

    policy: Policy
    user: str | None = None
    log_level: str = "info"
    background: bool = True


def run(options: Options, ready: Callable[[], None]) -> None:
    """Be the daemon until SIGTERM or SIGINT. Calls `ready` once registered. Raises CommandError."""
    try:
        _give_up_root(options)
        in_journal = log.configure(options.log_level, background=options.background)
        # Loaded now, so that the first connect does not wait for it, and that a missing one is
        # noticed before any program relies on it.
        client_context(Settings(), options.policy)
        # Whoever sees it registered may want to stop it at once.
        signal.pthread_sigmask(signal.SIG_BLOCK, _STOP_SIGNALS)
        link = _register()
        privileges.drop_all()
    except privileges.NotPermitted as error:
        raise CommandError(Exit.NOT_PERMITTED, str(error)) from error
    except Refused as error:
        raise CommandError(Exit.FAILED, error.text) from error
    except OSError as error:
        raise CommandError(Exit.FAILED, f"ssad could not start: {error}.") from error
    if options.background:
        _leave_terminal(in_journal=in_journal)
    with link:
        asyncio.run(_serve(link, options.policy, ready))
    logger.info("Stopped.")


async def _serve(link: Link, policy: Policy, ready: Callable[[], None]) -> None:
    server = Server(link, policy)
    loop = asyncio.get_running_loop()
    for number in _STOP_SIGNALS:
        loop.add_signal_handler(number, server.stop)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOP_SIGNALS)
    logger.info("Registered with the kernel module; TLS sockets can be used now.")
    ready()
    await server.run()


def _give_up_root(options: Options) -> None:
    # All modules are imported by now, even those that libraries would import when they first need
    # them: who the daemon is from here on may not be able to read them, say under /root.
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


def _register() -> Link:
    try:
        link = Link()
    except FamilyMissing as error:
        raise CommandError(Exit.NO_MODULE, module.HOW_TO_LOAD) from error
    try:
        link.request(Command.REGISTER)
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
    pids = ", ".join(str(worker.get("pid", 0)) for worker in link.dump(Command.WORKER_GET))
    return f"ssad is already running (pid {pids}); stop it with 'ssad stop'."


def start_in_background(options: Options) -> int:
    """Start the daemon as a process of its own; return its pid once it is registered.

    Raises CommandError.
    """
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(read_end)
        _be_background(options, write_end)
    os.close(write_end)
    with os.fdopen(read_end, "rb") as pipe:
        report = pipe.read().decode()
    if report == _READY:
        return pid
    _, status = os.waitpid(pid, 0)
    if report:
        raise CommandError(Exit(os.waitstatus_to_exitcode(status)), report)
    raise CommandError(Exit.FAILED, f"ssad ended before it was ready ({_fate(status)}).")


def _be_background(options: Options, write_end: int) -> None:
    """Carry on as the child: never returns."""
    code = Exit.DONE
    try:
        os.setsid()
        os.chdir("/")
        os.umask(0o077)

        def ready() -> None:
            os.write(write_end, _READY.encode())
            os.close(write_end)

        run(options, ready)
    except CommandError as error:
        code = error.code
        os.write(write_end, str(error).encode())
    except BaseException:
        code = Exit.FAILED
        logger.exception("ssad failed.")
    finally:
        logging.shutdown()
        os._exit(code)


def _fate(status: int) -> str:
    code = os.waitstatus_to_exitcode(status)
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


def _leave_terminal(*, in_journal: bool) -> None:
    """Give back the caller's standard input and output, and its error unless the log needs it."""
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, _STDIN)
    os.dup2(null, _STDOUT)
    # Who reads the other end of a pipe waits until the last writer is gone.
    if in_journal or stat.S_ISFIFO(os.fstat(_STDERR).st_mode):
        os.dup2(null, _STDERR)
    os.close(null)
