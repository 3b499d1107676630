# SPDX-License-Identifier: BSD-3-Clause
"""The kernels that a guest can boot: what Debian has installed in /boot."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from vm.errors import RunnerError

# Debian 12's own kernel, which is the oldest that the module supports, and the newest that
# Debian 12 has as well.
TESTED = ("6.1", "6.12")


@dataclass(frozen=True)
class Kernel:
    """An installed kernel with the headers to build modules for it."""

    release: str  # as uname -r prints it
    image: Path
    modules: Path
    debug: bool = False  # with everything that reports what a module does wrong, and slow

    @property
    def build(self) -> Path:
        """The folder that KDIR names."""
        return self.modules / "build"


def find(name: str, boot: Path = Path("/boot"), modules: Path = Path("/lib/modules")) -> Kernel:
    """The newest installed kernel of a series ("6.12") or the one of that release.

    Raises RunnerError if there is none, or none with its headers.
    """
    found = [
        Kernel(release, image, modules / release)
        for image in boot.glob("vmlinuz-*")
        if _is_of(release := image.name.removeprefix("vmlinuz-"), name)
    ]
    if not found:
        raise RunnerError(f"No kernel {name} is installed in {boot}: run `make setup`.")
    usable = [kernel for kernel in found if kernel.build.exists()]
    if not usable:
        releases = ", ".join(kernel.release for kernel in found)
        raise RunnerError(
            f"The kernel {releases} has no headers ({modules}/*/build): run `make setup`."
        )
    return max(usable, key=lambda kernel: _version(kernel.release))


def _is_of(release: str, name: str) -> bool:
    # The -cloud- and -rt- flavours have no 9p, which the guest's root is shared over.
    series = re.escape(name)
    whole = rf"{series}[.][0-9][^-]*(-[0-9]+)?-amd64"
    return release == name or re.fullmatch(whole, release) is not None


def _version(release: str) -> list[int]:
    return [int(number) for number in re.findall(r"[0-9]+", release)]
