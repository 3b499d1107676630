# SPDX-License-Identifier: BSD-3-Clause
"""Runs part of a test in a child process that may do what it likes with its rights."""

from __future__ import annotations

import ctypes
import os
import pickle
import sys
from collections.abc import Callable
from typing import TypeVar

_CLONE_NEWUSER = 0x10000000  # <linux/sched.h>

T = TypeVar("T")


def in_child(function: Callable[[], T]) -> T:
    """Return what a function returns, or raise what it raises, when a child process calls it.

    The child has all capabilities: root's, or those in a user namespace of its own.
    """
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(read_end)
            os.write(write_end, pickle.dumps(_attempt(function)))
        finally:
            os._exit(0)
    os.close(write_end)
    with os.fdopen(read_end, "rb") as pipe:
        report = pipe.read()
    os.waitpid(pid, 0)
    result, error = pickle.loads(report)  # noqa: S301 - our own child wrote it
    if error is not None:
        raise error
    value: T = result
    return value


def _attempt(function: Callable[[], T]) -> tuple[T | None, Exception | None]:
    try:
        if os.geteuid() != 0 and ctypes.CDLL(None).unshare(_CLONE_NEWUSER) != 0:
            sys.exit("this needs root, or unprivileged user namespaces")
        return function(), None
    except Exception as error:  # noqa: BLE001 - for the parent to raise
        return None, error
