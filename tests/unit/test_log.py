# SPDX-License-Identifier: BSD-3-Clause
"""Where messages go. In a child, for pytest has its own idea of logging."""

from __future__ import annotations

import logging
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from logging_journald import JournaldLogHandler  # type: ignore[import-untyped]

from ssad import log
from tests.unit.child import in_child

pytestmark = pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")


@pytest.fixture
def journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """A socket where journald would have its own."""
    path = tmp_path / "socket"
    monkeypatch.setattr(JournaldLogHandler, "SOCKET_PATH", path)
    monkeypatch.delenv("JOURNAL_STREAM", raising=False)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(path))
        sock.settimeout(20)
        yield sock


def say_so(*, background: bool) -> bool:
    in_journal = log.configure("info", background=background)
    logging.getLogger("ssad.test").debug("This is not interesting.")
    logging.getLogger("ssad.test").warning("Something is %s.", "odd")
    return in_journal


def test_in_the_background_the_journal_gets_it(journal: socket.socket) -> None:
    assert in_child(lambda: say_so(background=True))
    fields = journal.recv(65536).split(b"\n")
    assert b"MESSAGE=Something is odd." in fields
    assert b"PRIORITY=4" in fields
    assert b"SYSLOG_IDENTIFIER=ssad" in fields


@pytest.mark.usefixtures("journal")
def test_in_the_foreground_standard_error_gets_it(capfd: pytest.CaptureFixture[str]) -> None:
    assert not in_child(lambda: say_so(background=False))
    (line,) = capfd.readouterr().err.splitlines()
    assert line.endswith("Something is odd.")


def test_without_a_journal_standard_error_gets_it(
    journal: socket.socket, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    journal.close()
    (tmp_path / "socket").unlink()
    assert not in_child(lambda: say_so(background=True))
    assert capfd.readouterr().err.endswith("Something is odd.\n")
