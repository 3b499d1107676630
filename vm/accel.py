# SPDX-License-Identifier: BSD-3-Clause
"""Finds out whether KVM really works here.

/dev/kvm may exist and still be of no use: on some hosts every guest hangs in early boot. So a
kernel is booted, without a root, until it panics about that. It takes about a second under a KVM
that works, and a few where it does not exist at all.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from vm.kernels import Kernel

_DEADLINE = 15.0  # seconds


def kvm_works(kernel: Kernel, cache: Path) -> bool:
    """Whether a guest boots under KVM. The answer is kept in the file `cache` until a reboot."""
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    if cache.exists():
        cached_boot, _, answer = cache.read_text().partition(" ")
        if cached_boot == boot_id:
            return answer == "kvm"
    works = os.access("/dev/kvm", os.R_OK | os.W_OK) and _boots(kernel)
    cache.parent.mkdir(parents=True, exist_ok=True)
    cache.write_text(f"{boot_id} {'kvm' if works else 'tcg'}")
    return works


def _boots(kernel: Kernel) -> bool:
    command = [
        "qemu-system-x86_64",
        *("-accel", "kvm", "-cpu", "host", "-m", "512", "-nodefaults", "-display", "none"),
        *("-serial", "stdio", "-no-reboot", "-kernel", str(kernel.image)),
        *("-append", "console=ttyS0 panic=-1"),
    ]
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=_DEADLINE,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return False
    return b"Unable to mount root fs" in done.stdout
