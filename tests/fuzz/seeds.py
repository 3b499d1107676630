# SPDX-License-Identifier: BSD-3-Clause
"""Where the fuzzers' randomness comes from."""

from __future__ import annotations

import os
import random


def seed_of_run() -> int:
    """Return FUZZ_SEED from the environment, or one that has not been before."""
    given = os.environ.get("FUZZ_SEED")
    return int(given) if given else random.SystemRandom().getrandbits(32)


def seconds_of_run() -> int:
    """Return FUZZ_SECONDS from the environment: how long a fuzzer goes on that counts no steps."""
    return int(os.environ.get("FUZZ_SECONDS", "60"))
