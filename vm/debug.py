# SPDX-License-Identifier: BSD-3-Clause
"""Builds the debug kernel: Debian's source, configured by debug.config.

That takes minutes, so the result is kept in the user's cache, under a name that is made from all
that goes into it. What is kept is laid out as Debian installs a kernel: an image, and modules with
what is needed to build more of them.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from vm.errors import RunnerError
from vm.kernels import Kernel

NAME = "debug"

_PACKAGE = "linux-source-6.12"
_SOURCE = Path(f"/usr/src/{_PACKAGE}.tar.xz")
_CONFIG = Path(__file__).with_name("debug.config")
_LINES = 30  # of the build's output to show if it fails


def kernel() -> Kernel:
    """The debug kernel, built first if it is not in the cache.

    Raises RunnerError if it can't be built, with the end of what the build said.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ssa"
    cache.mkdir(parents=True, exist_ok=True)
    kept = cache / f"kernel-{NAME}-{_key()}"
    with (cache / "kernel.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not kept.exists():
            print(f"vm: building the debug kernel into {kept}", file=sys.stderr, flush=True)
            with tempfile.TemporaryDirectory(dir=cache, prefix="building-") as scratch:
                _build(Path(scratch), Path(scratch) / "kept")
                (Path(scratch) / "kept").rename(kept)
    return _kept(kept)


def not_taken(wanted: str, taken: str) -> list[str]:
    """The lines of one configuration that are not in another; its comments don't count."""
    lines = {line.strip() for line in taken.splitlines()}
    settings = (line.strip() for line in wanted.splitlines())
    return [
        line for line in settings if line.startswith(("CONFIG_", "# CONFIG_")) and line not in lines
    ]


def _key() -> str:
    """A name for all that the kernel is made from: source, configuration, compiler, this file."""
    version = ("dpkg-query", "-W", "-f", "${Version}", _PACKAGE)
    parts = [_output(version).encode(), _output(("gcc", "--version")).encode()]
    parts += [_CONFIG.read_bytes(), Path(__file__).read_bytes()]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]


def _build(scratch: Path, kept: Path) -> None:
    """Build in one folder, and leave in another what is to be kept."""
    log = scratch / "log"
    _run(["tar", "-xJf", str(_SOURCE), "-C", str(scratch)], log)
    output = scratch / "output"
    make = ["make", "-s", "-C", str(scratch / _PACKAGE), f"O={output}", f"-j{os.cpu_count()}"]
    _run([*make, f"KCONFIG_ALLCONFIG={_CONFIG}", "allnoconfig"], log)
    refused = not_taken(_CONFIG.read_text(), (output / ".config").read_text())
    if refused:
        raise RunnerError(
            f"Kconfig of {_PACKAGE} did not take these lines of {_CONFIG}, for what they depend "
            f"on is missing or something selects otherwise: {', '.join(refused)}"
        )
    _run([*make, "all"], log)
    _run([*make, f"INSTALL_MOD_PATH={kept}", "DEPMOD=true", "modules_install"], log)
    modules = next((kept / "lib/modules").iterdir())
    (modules / "build").unlink()
    headers = f"$(srctree)/scripts/package/install-extmod-build {modules / 'build'}"
    _run([*make, f"KBUILD_RUN_COMMAND={headers}", "run-command"], log)
    shutil.copyfile(output / _output([*make, "image_name"]).strip(), kept / "vmlinuz")


def _kept(kept: Path) -> Kernel:
    modules = next((kept / "lib/modules").iterdir())
    return Kernel(modules.name, kept / "vmlinuz", modules, debug=True)


def _environment() -> dict[str, str]:
    # What a make above us was told, -j and variables, is not for this one.
    return {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}


def _run(command: Sequence[str], log: Path) -> None:
    with log.open("ab") as output:
        done = subprocess.run(
            command, stdout=output, stderr=output, env=_environment(), check=False
        )
    if done.returncode != 0:
        end = "\n".join(log.read_text(errors="replace").splitlines()[-_LINES:])
        raise RunnerError(f"The debug kernel could not be built:\n{end}")


def _output(command: Sequence[str]) -> str:
    try:
        return subprocess.check_output(
            command, text=True, stderr=subprocess.DEVNULL, env=_environment()
        )
    except (OSError, subprocess.CalledProcessError) as error:
        raise RunnerError(
            f"The debug kernel could not be built: {error}. Run `make setup`."
        ) from error
