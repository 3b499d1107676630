# SPDX-License-Identifier: BSD-3-Clause
"""What one program leaves to the next, and how that is tried before it takes over."""

from __future__ import annotations

import errno
import os
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

import pytest

from ssad import config, privileges, restart
from ssad.config import Source
from ssad.policy import Policy
from ssad.reload import Keeper
from ssad.reloads import Reloads
from ssad.restart import TRY, Legacy, Restarter, Start
from ssad.supervisor import Old
from tests.peers.pki import Pki
from tests.unit.child import in_child

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning"),
    pytest.mark.root,
]

Execute = Callable[[str, int, int], NoReturn]

WORKER, LEAVING = 7, 8  # their pids


@pytest.fixture
def start(pki: Pki) -> Iterator[Start]:
    # The daemon reads it as another user, to whom pytest's own directory is closed.
    with tempfile.TemporaryDirectory() as directory:
        Path(directory).chmod(0o755)
        store = shutil.copy(pki.root, Path(directory) / "root.pem")
        file = Path(directory) / "ssad.toml"
        file.write_text(f'[trust]\nstore = "{store}"\ndepth = 3\n')
        yield Start(
            workers=3,
            user=None,
            log_level="debug",
            background=True,
            config=str(file),
            required=True,
            overrides={"transport": "channel"},
        )


class Executed(BaseException):
    """The new program takes over with this legacy."""

    def __init__(self, legacy: Legacy) -> None:
        super().__init__(legacy)
        self.legacy = legacy


def take_over(what: str, legacy: int, answer: int) -> NoReturn:
    """Execute the real program in a trial, and end after it."""
    if what == TRY:
        restart.execute(what, legacy, answer)
    raise Executed(Legacy.read(legacy))


def open_files() -> set[str]:
    return {one.name for one in Path("/proc/self/fd").iterdir()}


def inherited_files() -> set[str]:
    """Return those that a program would have that is executed now."""
    found = set()
    for one in open_files():
        with suppress(OSError):  # it was that of the folder itself
            if os.get_inheritable(int(one)):
                found.add(one)
    return found


def attempt(start: Start, execute: Execute = take_over) -> tuple[Legacy | None, Reloads, bool]:
    """Restart a daemon that has one worker, and one that leaves. Return what the new program gets,
    what is told of it, and whether the new program would have the sockets to them."""

    def be_main() -> tuple[Legacy | None, Reloads, bool]:
        privileges.keep_only_net_admin(None)
        keeper = Keeper(start.source, Policy(), lambda _: None)
        restarter = Restarter(start, keeper, execute)
        ours, theirs = socket.socketpair()
        legacy = None
        with ours, theirs:
            files, inherited_before = open_files(), inherited_files()
            restarter.begin()
            assert keeper.ledger.now.restarting
            assert restarter.trial is not None
            _, status = os.waitpid(restarter.trial, 0)
            try:
                restarter.end(status, Old({WORKER: ours}, {LEAVING: theirs}))
                assert open_files() == files
            except Executed as executed:
                legacy = executed.legacy
                # But for those to the workers.
                links = {str(end.fileno()) for end in (ours, theirs)}
                assert inherited_files() - links == inherited_before
                assert legacy.workers == {WORKER: ours.fileno()}
                assert legacy.leaving == {LEAVING: theirs.fileno()}
            inherited = {os.get_inheritable(one.fileno()) for one in (ours, theirs)}
            return legacy, keeper.ledger.now, inherited == {True}

    return in_child(be_main)


def test_the_new_program_gets_the_options_the_policy_and_the_workers(start: Start) -> None:
    legacy, told, inherited = attempt(start)
    assert legacy is not None, told
    assert legacy.start == start
    assert legacy.start.source == Source(
        Path(start.config), required=True, overrides={"transport": "channel"}
    )
    assert config.parse(legacy.policy, "it") == Policy(
        trust_store=Path(start.config).parent / "root.pem", verify_depth=3, transport="channel"
    )
    assert legacy.begun == 1
    assert inherited
    assert told.restarting  # until the new program says what became of it


def faults(start: Start, execute: Execute = take_over) -> str:
    """Return why a restart failed."""
    legacy, told, inherited = attempt(start, execute)
    assert (legacy, inherited) == (None, False)
    assert (told.started, told.finished, told.restarting) == (1, 1, False)
    return "\n".join(told.faults)


def test_a_faulty_policy_is_told(start: Start) -> None:
    Path(start.config).write_text("depth = 3\n")
    said = faults(start)
    assert said.startswith(f"The policy can't be used.\n{start.config}:1: depth: wanted a table")


def test_a_user_who_can_not_be_is_told(start: Start) -> None:
    other = Start(2, "root", "info", True, start.config, True, {})  # noqa: FBT003
    assert "Only root can start ssad as user 'root'" in faults(other)


def test_a_program_that_breaks_is_told(start: Start) -> None:
    def execute(*_: object) -> NoReturn:
        os.execv(sys.executable, [sys.executable, "-c", "import no_such_module"])  # noqa: S606

    assert faults(start, execute) == (
        "The new program failed (exit code 1): "
        "ModuleNotFoundError: No module named 'no_such_module'"
    )


def test_a_program_that_can_not_be_read_is_told(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    said = faults(start, restart.execute)
    assert said.startswith("/no/such/python can't be executed by the user that ssad runs as: No")


def test_one_that_can_not_take_over_is_told(start: Start) -> None:
    def execute(what: str, legacy: int, answer: int) -> NoReturn:
        if what == TRY:
            restart.execute(what, legacy, answer)
        raise FileNotFoundError(2, "No such file or directory")

    assert "No such file or directory" in faults(start, execute)


def test_without_descriptors_there_is_no_restart(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_more(*_: object) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    keeper = Keeper(start.source, Policy(), lambda _: None)
    restarter = Restarter(start, keeper, take_over)
    monkeypatch.setattr(os, "memfd_create", no_more)
    restarter.begin()
    assert restarter.trial is None
    assert keeper.ledger.now.faults == (
        "No process can be started to try it: Too many open files.",
    )
    keeper.ledger.close()


def test_a_legacy_of_another_version_is_refused(start: Start) -> None:
    def execute(what: str, _: int, answer: int) -> NoReturn:
        file = os.memfd_create("legacy", 0)
        os.write(file, b'{"start": {"moons": 2}, "workers": {}}')
        restart.execute(what, file, answer)

    said = faults(start, execute)
    assert "does not understand what the old one leaves to it" in said
    assert "'ssad stop'" in said
