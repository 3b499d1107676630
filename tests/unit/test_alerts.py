# SPDX-License-Identifier: BSD-3-Clause
"""Alerts have names."""

import pytest

from ssad import alerts


@pytest.mark.parametrize(
    ("number", "name"),
    [(40, "handshake_failure (40)"), (70, "protocol_version (70)"), (99, "number 99")],
)
def test_an_alert_is_called_as_in_the_rfc(number: int, name: str) -> None:
    assert alerts.name(number) == name
