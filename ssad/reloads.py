# SPDX-License-Identifier: BSD-3-Clause
"""What became of reloads, and of restarts: told by the daemon's main process, read by commands.

The main process listens to signals and to nobody else, so it does not answer: it writes into a
file without a name, which root finds among its descriptors. No other process can take the file's
place, nothing has to be cleaned up, and it ends with the process.
"""

from __future__ import annotations

import json
import logging
import os
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

log = logging.getLogger(__name__)

_NAME = "ssad-reloads"
_LINK = f"/memfd:{_NAME} (deleted)"
_FAULTS_MAX = 100  # of one reload, that are told


@dataclass(frozen=True, slots=True)
class Reloads:
    """What a daemon has read so far."""

    config: str | None  # the policy file, which may be missing; None: there is no way to reload
    loaded: str  # when the policy in force was read, as in RFC 3339
    started: int = 0  # reloads that have begun, before the file is read
    finished: int = 0  # how many of them are over
    restarting: bool = False  # the one that has begun is a restart
    faults: tuple[str, ...] = ()  # why the last one kept the policy; empty if it did not


class Ledger:
    """Where the main process writes."""

    def __init__(self, now: Reloads) -> None:
        self.now = now
        self._file = os.memfd_create(_NAME)
        self._write()

    def close(self) -> None:
        """Close it, in a process that is not the main one."""
        os.close(self._file)

    def begin(self, *, restarting: bool = False) -> None:
        """A reload begins, or a restart."""
        self.now = replace(self.now, started=self.now.started + 1, restarting=restarting)
        self._write()

    def end(self, faults: tuple[str, ...], loaded: str | None = None) -> None:
        """It is over. `loaded`: when, if it went well."""
        if len(faults) > _FAULTS_MAX:
            faults = (*faults[:_FAULTS_MAX], f"and {len(faults) - _FAULTS_MAX} more.")
        self.now = replace(
            self.now,
            finished=self.now.started,
            restarting=False,
            faults=faults,
            loaded=loaded or self.now.loaded,
        )
        self._write()

    def _write(self) -> None:
        # Into another file that takes the place of this one, so that nobody reads half of it.
        try:
            file = os.memfd_create(_NAME)
            try:
                os.write(file, json.dumps(asdict(self.now)).encode())
                os.dup2(file, self._file, inheritable=False)
            finally:
                os.close(file)
        except OSError as error:
            log.error("What became of the reload can't be told: %s.", error.strerror)


def read(pid: int) -> Reloads | None:
    """Return what the main process with this pid has told; None if it tells nothing.

    Raises PermissionError for whoever must not look into the process, ProcessLookupError or
    FileNotFoundError if it is gone.
    """
    found: list[Reloads] = []
    known = {field.name for field in fields(Reloads)}
    for link in Path(f"/proc/{pid}/fd").iterdir():
        # While it changes files, one may be gone already, or not be full yet.
        with suppress(FileNotFoundError, ValueError):
            if str(link.readlink()) == _LINK:
                # In an upgrade it is another version's, which may know more, or less.
                told = {k: v for k, v in json.loads(link.read_bytes()).items() if k in known}
                told["faults"] = tuple(told.get("faults", ()))
                found.append(Reloads(**told))
    return max(found, key=lambda one: (one.started, one.finished), default=None)
