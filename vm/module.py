# SPDX-License-Identifier: BSD-3-Clause
"""Builds modules for a kernel, and a module tree in which that kernel's modprobe finds them.

Kbuild writes its objects beside the sources, so each kernel gets a copy of them; two kernels can
then be built at once, and neither build makes the other start again.
"""

from __future__ import annotations

import fcntl
import filecmp
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from vm.errors import RunnerError
from vm.kernels import Kernel

NAME = "ssa"

_SBIN = Path("/usr/sbin")  # not on everybody's PATH


def build(
    kernel: Kernel, source: Path, output: Path, arguments: Sequence[str] = (), name: str = NAME
) -> Path:
    """Make a module from the folder `source` in the folder `output`; the path of the .ko file.

    `arguments` go to make. Its output is the caller's; RunnerError if it fails.
    """
    output.mkdir(parents=True, exist_ok=True)
    with _locked(output):
        _copy_changed(source, output)
        command = ["make", "-C", str(output), f"KDIR={kernel.build}", *arguments]
        # What a make above us was told, -j and variables, is not for this one.
        environment = {name: value for name, value in os.environ.items() if name != "MAKEFLAGS"}
        if subprocess.run(command, env=environment, check=False).returncode != 0:
            raise RunnerError(f"{name}.ko could not be built for {kernel.release}: see above.")
    return output / f"{name}.ko"


def tree(kernel: Kernel, modules: Sequence[Path], output: Path) -> Path:
    """Make what is to be laid over /lib/modules/RELEASE so that modprobe knows the modules.

    depmod reads every module of the kernel for that, which takes seconds; so it runs only if what
    the modules say about themselves (their names, aliases, what they depend on) has changed, or
    which modules the kernel has: another of the same release may have others.
    """
    root = output / "lib/modules" / kernel.release
    extra = root / "extra"
    said = output / "modinfo"
    extra.mkdir(parents=True, exist_ok=True)
    with _locked(output):
        for module in modules:
            shutil.copyfile(module, extra / module.name)
        fields = subprocess.check_output([_SBIN / "modinfo", "--null", *modules]).split(b"\0")
        told = (b"name=", b"alias=", b"depends=", b"softdep=")
        now = b"\n".join(
            [
                bytes(kernel.modules),
                (kernel.modules / "modules.order").read_bytes(),
                *(field for field in fields if field.startswith(told)),
            ]
        )
        if not said.exists() or said.read_bytes() != now:
            for name in ("modules.builtin", "modules.builtin.modinfo", "modules.order"):
                shutil.copyfile(kernel.modules / name, root / name)
            # depmod is to see the kernel's own modules; in the guest the link would hide them.
            (root / "kernel").symlink_to(kernel.modules / "kernel")
            try:
                subprocess.run([_SBIN / "depmod", "-b", str(output), kernel.release], check=True)
            finally:
                (root / "kernel").unlink()
            said.write_bytes(now)
    return root


def _copy_changed(source: Path, output: Path) -> None:
    """Copy the sources, leaving equal files as they are, so that make sees what has changed."""
    names = {path.name for path in source.iterdir() if _is_source(path)}
    for name in names:
        ours, theirs = source / name, output / name
        if not theirs.exists() or not filecmp.cmp(ours, theirs, shallow=False):
            shutil.copyfile(ours, theirs)
    for path in output.iterdir():
        if _is_source(path) and path.name not in names:
            path.unlink()


def _is_source(path: Path) -> bool:
    return path.name in {"Kbuild", "Makefile"} or (
        path.suffix in {".c", ".h"} and not path.name.endswith(".mod.c")
    )


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keep other runners out of a folder."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
