# SPDX-License-Identifier: BSD-3-Clause
"""What can go wrong in the runner itself, as opposed to in the command that it runs."""

from __future__ import annotations


class RunnerError(Exception):
    """Its text is a sentence for the person at the terminal."""
