# SPDX-License-Identifier: BSD-3-Clause
"""Which places of the module were reached, on a kernel with KCOV: Documentation/dev-tools/kcov.rst.

In the debug kernel only the module is instrumented.
"""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import subprocess
from pathlib import Path

_FILE = Path("/sys/kernel/debug/kcov")

# <linux/kcov.h>
_INIT_TRACE = 0x80086301
_ENABLE = 0x6364
_DISABLE = 0x6365
_TRACE_PC = 0

_WORDS = 1 << 18
_BYTES = 8 * _WORDS

# Not Python's, which maps no more of a file than its size, and that of this one is 0.
_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_long,
]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_MAP_FAILED = ctypes.c_void_p(-1).value


class Kcov:
    """The places that system calls of one thread, which makes and closes this, have reached."""

    def __init__(self) -> None:
        self.reached: set[int] = set()
        self._file = -1
        if not _FILE.exists():
            return  # nothing is counted on this kernel
        self._file = os.open(_FILE, os.O_RDWR | os.O_CLOEXEC)
        fcntl.ioctl(self._file, _INIT_TRACE, _WORDS)
        protection = mmap.PROT_READ | mmap.PROT_WRITE
        self._memory = _libc.mmap(None, _BYTES, protection, mmap.MAP_SHARED, self._file, 0)
        if self._memory == _MAP_FAILED:
            error = ctypes.get_errno()
            raise OSError(error, f"mmap of {_FILE}: {os.strerror(error)}")
        self._words = (ctypes.c_uint64 * _WORDS).from_address(self._memory)
        fcntl.ioctl(self._file, _ENABLE, _TRACE_PC)

    def take(self) -> None:
        """Add what was reached since the last time."""
        if self._file >= 0:
            count = self._words[0]
            self.reached.update(self._words[1 : count + 1])
            self._words[0] = 0

    def close(self) -> None:
        """Count no more."""
        if self._file >= 0:
            self.take()
            fcntl.ioctl(self._file, _DISABLE, 0)
            _libc.munmap(self._memory, _BYTES)
            os.close(self._file)


def instrumented() -> int:
    """Count the places of the module that KCOV sees, without what runs only at its beginning and
    end."""
    module = subprocess.check_output(["modinfo", "-n", "ssa"], text=True).strip()
    sections = ("-j", ".text", "-j", ".text.unlikely")
    code = subprocess.check_output(["objdump", "-dr", *sections, module], text=True)
    return code.count("__sanitizer_cov_trace_pc")


def share(reached: set[int]) -> str:
    """Say how much of the module that is."""
    total = instrumented()
    return f"{len(reached)} of {total}, {100 * len(reached) / total:.1f} %"
