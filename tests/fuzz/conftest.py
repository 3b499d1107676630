# SPDX-License-Identifier: BSD-3-Clause
"""The fuzzers stand on what the system tests stand on."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.system.conftest import (
    any_daemon,
    clients,
    directory,
    echo_server,
    module,
    no_daemon,
    nothing_is_left,
    pki,
    pytest_collection_modifyitems,
    stack,
    transport,
)
from tests.system.server import Measured

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = (
    "any_daemon",
    "clients",
    "directory",
    "echo_server",
    "module",
    "no_daemon",
    "nothing_is_left",
    "pki",
    "pytest_collection_modifyitems",
    "stack",
    "transport",
)


@pytest.fixture
def measured(
    capsys: pytest.CaptureFixture[str], record_testsuite_property: Callable[[str, object], None]
) -> Measured:
    """Print and record what is measured."""
    return Measured(capsys, record_testsuite_property)
