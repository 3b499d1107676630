# SPDX-License-Identifier: BSD-3-Clause
"""The kernel modules: ours, and the kernel's own tls for the ktls transport."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from ssad.link import FamilyMissing, Link

MODULE = "ssa"
KTLS_MODULE = "tls"

HOW_TO_LOAD = (
    "The kernel module ssa is not loaded; load it with 'modprobe ssa' as root. If it is not "
    "installed, build it with 'make -C kmod' and load it with 'insmod kmod/ssa.ko'."
)

_ULPS = Path("/proc/sys/net/ipv4/tcp_available_ulp")


def connect() -> Link:
    """Connect to the module, loading it first if need be. Raises FamilyMissing or OSError."""
    try:
        return Link()
    except FamilyMissing:
        load(MODULE)
        return Link()


def load(name: str) -> None:
    """Let modprobe load a module; what it could not do shows when the module is used."""
    modprobe = shutil.which("modprobe", path="/usr/sbin:/sbin:/usr/bin:/bin")
    if modprobe is not None:
        subprocess.run([modprobe, "--quiet", name], check=False, stderr=subprocess.DEVNULL)


def ktls_loaded() -> bool:
    """Tell whether TCP can be given TLS right now."""
    try:
        return KTLS_MODULE in _ULPS.read_text().split()
    except OSError:
        return False
