# SPDX-License-Identifier: BSD-3-Clause
"""What the tests of the debug kernel stand on: what the system tests do, and faults."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.debug import faults as fault_injection
from tests.debug.faults import Faults
from tests.debug.worker import Worker
from tests.debug.world import WORLDS, World
from tests.system.conftest import (
    any_daemon,
    clients,
    daemon,
    directory,
    echo_server,
    logs,
    module,
    no_daemon,
    nothing_is_left,
    peers,
    pki,
    pytest_collection_modifyitems,
    stack,
    transport,
    web,
)
from tests.system.daemon import workers

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.system.daemon import Daemon

__all__ = [
    "any_daemon",
    "clients",
    "daemon",
    "directory",
    "echo_server",
    "logs",
    "module",
    "no_daemon",
    "nothing_is_left",
    "peers",
    "pki",
    "pytest_collection_modifyitems",
    "stack",
    "transport",
    "web",
]

_TABLE = pytest.StashKey[Faults]()


@pytest.fixture(scope="session")
def faults(clients: Path, pytestconfig: pytest.Config) -> Iterator[Faults]:
    """Inject faults."""
    if not (fault_injection.DEBUG / "failslab").exists():
        pytest.skip("this kernel injects no faults; the debug kernel does")
    made = Faults(clients / "libfault.so")
    pytestconfig.stash[_TABLE] = made
    with fault_injection.settings():
        yield made


@pytest.fixture
def alone(request: pytest.FixtureRequest) -> None:
    """Have no daemon run."""
    if workers():  # of a test before: else there is no need for what the daemon needs
        held: Daemon = request.getfixturevalue("any_daemon")
        held.stop()


@pytest.fixture
def worker(alone: None) -> Iterator[Worker]:  # noqa: ARG001 -- before it
    """Be the daemon."""
    with Worker() as running:
        yield running


@pytest.fixture
def world(worker: Worker) -> World:
    """Have ktls."""
    return World(worker, *WORLDS["ktls"])


@pytest.fixture(params=["ktls", "channel"])
def either(request: pytest.FixtureRequest, worker: Worker) -> World:
    """Have each transport in turn."""
    return World(worker, *WORLDS[request.param])


@pytest.fixture(params=WORLDS)
def each(request: pytest.FixtureRequest, worker: Worker) -> World:
    """Have each way that the bytes can go in turn."""
    return World(worker, *WORLDS[request.param])


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Print how many faults each call had, and what it returned then."""
    made = config.stash.get(_TABLE, None)
    if made is None:
        return
    terminalreporter.section("faults injected")
    for line in made.report():
        terminalreporter.write_line(line)
