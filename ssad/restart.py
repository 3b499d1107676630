# SPDX-License-Identifier: BSD-3-Clause
"""Another program in place of the one that runs, without a moment in which nobody serves.

    main process (stays what it is: pid, parent, rights, files)
      │ RESTART
      ├── trial: executes the new program, which loads its code and the policy, and ends
      │ all is well: executes the new program itself
      ├── new workers register with the module
      │ the old workers are told to leave
      ├── old workers finish what they have begun, and end

The old workers serve all the while: they remain children of the same process. If the trial fails
nothing has happened, and if new workers can't be started the old ones go on, under the new program.

Whatever supervises the daemon (systemd, a container) sees one process that goes on. But that has
given up root, so the new program has to be readable for the user that ssad runs as.

What one program leaves to the next is in a file without a name, as JSON; a program that finds there
what it does not know fails the trial.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import NoReturn

from ssad import privileges
from ssad.config import Source
from ssad.reload import Keeper
from ssad.supervisor import Old, fate

log = logging.getLogger(__name__)

# Seconds. Its code may have to be read from a slow disk.
_TRIAL_TIMEOUT = 120
_FAULT_MAX = 4096
_STDERR = 2

TRY = "try"
TAKE_OVER = "take-over"


@dataclass(frozen=True, slots=True)
class Start:
    """What the command line said about the start."""

    workers: int
    user: str | None
    log_level: str
    background: bool
    config: str
    required: bool
    overrides: Mapping[str, object]

    @property
    def source(self) -> Source:
        """Where the policy comes from."""
        return Source(Path(self.config), self.required, self.overrides)


@dataclass(frozen=True, slots=True)
class Legacy:
    """What one program leaves to the next."""

    start: Start
    policy: str = ""  # as TOML; empty for a trial, which reads it
    begun: int = 0  # reloads and restarts so far, this one included
    # By their pids, the descriptors of the sockets to them.
    workers: Mapping[int, int] = field(default_factory=dict)
    leaving: Mapping[int, int] = field(default_factory=dict)  # since an earlier restart

    def write(self) -> int:
        """Return the descriptor of a file that a new program can read."""
        file = os.memfd_create("ssad-legacy", 0)
        try:
            os.write(file, json.dumps(asdict(self)).encode())
        except OSError:
            os.close(file)
            raise
        return file

    @classmethod
    def read(cls, file: int) -> Legacy:
        """Read the file, and close it. Raises ValueError, TypeError or KeyError for what another
        version may have written."""
        found = json.loads(_content(file))
        os.close(file)
        start = Start(**found.pop("start"))
        workers, leaving = (
            {int(pid): control for pid, control in found.pop(name, {}).items()}
            for name in ("workers", "leaving")
        )
        return cls(start, workers=workers, leaving=leaving, **found)

    def old(self) -> Old:
        """Return the old workers, with the sockets to them; nonblocking."""
        return Old(_links(self.workers), _links(self.leaving))


def _links(descriptors: Mapping[int, int]) -> dict[int, socket.socket]:
    links = {pid: socket.socket(fileno=control) for pid, control in descriptors.items()}
    for link in links.values():
        link.set_inheritable(False)
        link.settimeout(0)
    return links


class Restarter:
    """The main process's part before the new program is there."""

    def __init__(
        self, start: Start, keeper: Keeper, execute: Callable[[str, int, int], NoReturn]
    ) -> None:
        """`execute` is as that of this file."""
        self.trial: int | None = None
        self._start = start
        self._keeper = keeper
        self._execute = execute
        self._answer = -1
        self._said = -1

    def begin(self) -> None:
        """As supervisor.Restart has it."""
        self._keeper.ledger.begin(restarting=True)
        log.info("A restart begins: the program that is installed now is tried.")
        main = os.getpid()
        legacy = -1
        try:
            self._answer = os.memfd_create("ssad-answer")
            self._said = os.memfd_create("ssad-said")
            legacy = Legacy(self._start).write()
            self.trial = os.fork()
        except OSError as error:
            self._fail(f"No process can be started to try it: {error.strerror}.")
            return
        finally:
            if self.trial != 0 and legacy != -1:
                os.close(legacy)
        if self.trial == 0:
            self._be_trial(main, legacy)

    def _be_trial(self, main: int, legacy: int) -> NoReturn:
        try:
            privileges.die_with(main)
            os.dup2(self._said, _STDERR)
            os.set_inheritable(self._answer, True)  # noqa: FBT003 -- takes no keyword
            privileges.pass_on()
            signal.alarm(_TRIAL_TIMEOUT)  # it goes on to run in the program
            self._execute(TRY, legacy, self._answer)
        except OSError as error:
            os.write(self._answer, cannot_execute(error).encode())
        finally:
            os._exit(1)

    def end(self, status: int, old: Old) -> None:
        """As supervisor.Restart has it."""
        self.trial = None
        answer, said = _text(self._answer), _text(self._said)
        if status != 0:
            reason = said.strip().rpartition("\n")[2]
            self._fail(answer or f"The new program failed ({fate(status)}): {reason or 'silently'}")
            return
        log.info("The new program takes over.")
        links = [*old.workers.values(), *old.leaving.values()]
        begun = self._keeper.ledger.now.started
        workers, leaving = (
            {pid: link.fileno() for pid, link in them.items()}
            for them in (old.workers, old.leaving)
        )
        try:
            legacy = Legacy(self._start, answer, begun, workers, leaving).write()
        except OSError as error:
            self._fail(f"Nothing can be left to the new program: {error.strerror}.")
            return
        try:
            for link in links:
                link.set_inheritable(True)
            privileges.pass_on()
            self._execute(TAKE_OVER, legacy, -1)
        except OSError as error:
            os.close(legacy)
            for link in links:
                link.set_inheritable(False)
            self._fail(cannot_execute(error))

    def _fail(self, reason: str) -> None:
        for file in (self._answer, self._said):
            if file != -1:
                os.close(file)
        self._answer = self._said = -1
        log.error("There is no restart; all stays as it is.\n%s", reason)
        self._keeper.ledger.end(tuple(reason[:_FAULT_MAX].splitlines()))


def execute(what: str, legacy: int, answer: int) -> NoReturn:
    """Have this process execute the program that is installed now. Raises OSError.

    Not by the name that it was started by, which may be relative to another directory.
    """
    os.execv(  # noqa: S606 - it is the interpreter that runs now
        sys.executable,
        [sys.executable, "-P", "-m", "ssad.successor", what, str(legacy), str(answer)],
    )


def cannot_execute(error: OSError) -> str:
    """Say why the new program can't be executed."""
    return (
        f"{sys.executable} can't be executed by the user that ssad runs as: {error.strerror}. "
        "Let this user read it, or use 'ssad stop' and 'ssad start'."
    )


def _content(file: int) -> bytes:
    return os.pread(file, os.fstat(file).st_size, 0)


def _text(file: int) -> str:
    return _content(file).decode(errors="replace")  # a program that breaks may say anything
