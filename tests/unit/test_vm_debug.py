# SPDX-License-Identifier: BSD-3-Clause
"""What of the debug kernel needs no build: whether Kconfig took its configuration."""

from __future__ import annotations

from vm import debug

WANTED = """\
# Locks.
CONFIG_PROVE_LOCKING=y
# CONFIG_RANDOMIZE_BASE is not set
"""


def test_a_configuration_that_was_taken_has_nothing_to_say() -> None:
    assert debug.not_taken(WANTED, WANTED + "CONFIG_LOCKDEP=y\n") == []


def test_a_symbol_that_was_dropped_is_named() -> None:
    taken = "# CONFIG_PROVE_LOCKING is not set\n# CONFIG_RANDOMIZE_BASE is not set\n"

    assert debug.not_taken(WANTED, taken) == ["CONFIG_PROVE_LOCKING=y"]


def test_a_symbol_that_was_selected_against_our_will_is_named() -> None:
    taken = "CONFIG_PROVE_LOCKING=y\nCONFIG_RANDOMIZE_BASE=y\n"

    assert debug.not_taken(WANTED, taken) == ["# CONFIG_RANDOMIZE_BASE is not set"]
