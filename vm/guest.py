# SPDX-License-Identifier: BSD-3-Clause
"""Boots a guest, runs a command in it and finds out how that went."""

from __future__ import annotations

import os
import selectors
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from vm import klog
from vm.errors import RunnerError
from vm.kernels import Kernel

_GUEST = Path(__file__).with_name("guest.sh")
_BOOT = Path(__file__).with_name("boot")
_LINES = 30  # of the kernel log to show

# A guest without KVM is up in 15 seconds on an idle machine, with the debug kernel in 100; the
# machine may be busy.
_BOOT_DEADLINE = 240.0
_DEBUG_BOOT_DEADLINE = 900.0

_KERNEL_OPTIONS = (
    "ignore_loglevel",  # the whole log goes to the console, which is where we read it
    "oops=panic",  # a kernel that has crashed is of no use; virtme-ng makes qemu exit on a panic
    # A busy host may not run a virtual CPU for a long while. What really hangs, hangs for longer.
    "watchdog_thresh=30",
    # Without KVM each takes seconds: tests that the kernel does of its own ciphers, and drivers
    # that udev would load for the CPU.
    "cryptomgr.notests",
    "modprobe.blacklist=kvm_amd,kvm_intel,powernow_k8,acpi_cpufreq,pcc_cpufreq",
    "rcupdate.rcu_cpu_stall_timeout=60",
)
_DEBUG_OPTIONS = ("kasan_multi_shot",)  # a report of every access, not of the first alone


@dataclass(frozen=True)
class Machine:
    """What to boot, and where its results go. All paths are absolute."""

    kernel: Kernel
    kvm: bool
    modules: Path  # the tree that is laid over /lib/modules/RELEASE
    results: Path
    cpus: int = 2
    memory: str = "2G"
    icount: bool = False  # the guest's clock counts instructions, 1 ns each

    @property
    def boot_deadline(self) -> float:
        """Seconds that it may take until it runs a command."""
        return _DEBUG_BOOT_DEADLINE if self.kernel.debug else _BOOT_DEADLINE

    @property
    def kernel_log(self) -> Path:
        """Everything that the kernel printed, from its first line on."""
        return self.results / "kernel.log"


@dataclass(frozen=True)
class Outcome:
    """How a run went."""

    status: int | None  # of the command, if it came to its end
    complaints: tuple[str, ...]  # sentences: what makes the run fail whatever the status says


def run(
    machine: Machine, command: Sequence[str], environment: Mapping[str, str], deadline: int
) -> Outcome:
    """Run a command in a guest, its output going to our own standard output as it comes.

    `deadline` is in seconds, for the command alone; 0 is for none.
    """
    _prepare(machine, command, environment, deadline)
    virtme = [*_virtme(machine), "--verbose", "--show-boot-console"]
    virtme += ["--script-sh", str(_start(machine))]
    left = deadline + machine.boot_deadline if deadline else None
    ended = _pump([*virtme, *_devices(machine)], machine, left)
    return judge(machine, deadline, ended=ended)


def shell(machine: Machine, command: Sequence[str], environment: Mapping[str, str]) -> int:
    """Run an interactive command in a guest, on the terminal that we have."""
    _prepare(machine, command, environment, 0)
    virtme = [*_virtme(machine), "--shell", str(_start(machine)), "--disable-monitor"]
    with machine.kernel_log.open("wb") as log:
        return subprocess.run([*virtme, *_devices(machine)], stderr=log, check=False).returncode


def judge(machine: Machine, deadline: int, *, ended: bool) -> Outcome:
    """Read what a guest has left in its results folder."""
    results = machine.results
    log = machine.kernel_log.read_text(errors="replace")
    bad = klog.problems(log)
    complaints = []
    status = None
    if (results / "status").exists():
        status = int((results / "status").read_text())
    else:
        end = "" if bad else f" The end of its kernel log:\n{_indented(log.splitlines()[-_LINES:])}"
        if not (results / "up").exists():
            how = (
                "ended before"
                if ended
                else f"was given {machine.boot_deadline:.0f} s, but never reached"
            )
            complaints.append(f"The guest {how} the start of the command.{end}")
        elif ended:
            how = "" if bad else ", and not by a panic: qemu was killed or has crashed"
            complaints.append(f"The guest died while the command ran{how}.{end}")
        else:
            complaints.append(f"The guest hung and was stopped.{end}")
    if (results / "late").exists():
        complaints.append(
            f"The command was stopped because it took longer than {deadline} s. "
            f"{machine.kernel_log} says which tasks were blocked."
        )
    if (results / "in-use").exists():
        complaints.append(
            "The module could not be unloaded after the command: a socket was left open or leaked."
        )
    if bad:
        lines = log.splitlines()
        first = next(number for number, line in enumerate(lines) if line.rstrip() == bad[0])
        complaints.append(
            f"The kernel complained in {len(bad)} lines; {machine.kernel_log}, from the first on:\n"
            + _indented(lines[max(0, first - 1) : first + _LINES])
            # Once more, where whoever sees but the end of a long output looks.
            + "\nIn short:\n"
            + _indented([line for line in lines[first:] if line in bad or "RIP: " in line][:5])
        )
    return Outcome(status, tuple(complaints))


def _prepare(
    machine: Machine, command: Sequence[str], environment: Mapping[str, str], deadline: int
) -> None:
    """Make the results folder anew, with what the guest is to do in it."""
    shutil.rmtree(machine.results, ignore_errors=True)
    machine.results.mkdir(parents=True)
    exports = [f"export {name}={shlex.quote(value)}" for name, value in environment.items()]
    # Files, because a kernel's command line has room for 2 KiB only.
    _script(
        machine.results / "command",
        [*exports, f"cd {shlex.quote(str(Path.cwd()))}", f"exec {shlex.join(command)}"],
    )
    modules = f"{machine.modules}:{machine.kernel.modules}"
    arguments = [str(_GUEST), str(machine.results), modules, str(deadline)]
    _script(_start(machine), [f"exec {shlex.join(arguments)}"])


def _start(machine: Machine) -> Path:
    return machine.results / "start"


def _script(path: Path, lines: Sequence[str]) -> None:
    path.write_text("\n".join(["#!/bin/sh", *lines, ""]))
    path.chmod(0o755)


def _virtme(machine: Machine) -> list[str]:
    """The part of the command line that is virtme-ng's own."""
    program = shutil.which("virtme-run", path=_search_path())
    if program is None:
        raise RunnerError("virtme-run is not installed: run `make setup`.")
    arguments = [
        program,
        *("--kimg", str(machine.kernel.image)),
        # The debug kernel has built in what it needs to boot, but for who mounts its root.
        *(("--mods", "none", "--force-initramfs") if machine.kernel.debug else ("--mods", "auto")),
        *("--name", f"ssa-{machine.kernel.release.partition('-')[0]}"),
        *("--memory", machine.memory, "--cpus", str(machine.cpus), "--user", "root"),
        "--force-9p",  # Debian 12's virtiofsd is too old for virtme-ng
    ]
    if not machine.kvm:
        arguments.append("--disable-kvm")
    # The kernel hands PATH on to init, which looks there before it looks in the usual places.
    debug = _DEBUG_OPTIONS if machine.kernel.debug else ()
    for option in (*_KERNEL_OPTIONS, *debug, f"PATH={_BOOT}:/usr/sbin:/usr/bin:/sbin:/bin"):
        arguments += ["--kopt", option]
    # What init wants to write to. The command has another root: see guest.sh.
    for folder in ("/etc", "/var", "/tmp"):  # noqa: S108 - a layer over it
        arguments += ["--overlay-rwdir", folder]
    return arguments


def _devices(machine: Machine) -> list[str]:
    """The part that is qemu's: the folders that guest.sh mounts. virtme-run wants it last."""
    host = "local,id=host,path=/,security_model=none,readonly=on,multidevs=remap"
    # Commas are doubled in qemu's option values.
    path = str(machine.results).replace(",", ",,")
    results = f"local,id=results,path={path},security_model=none"
    options = [
        *("-fsdev", host, "-device", "virtio-9p-pci,fsdev=host,mount_tag=host"),
        *("-fsdev", results, "-device", "virtio-9p-pci,fsdev=results,mount_tag=results"),
    ]
    if machine.icount:
        options += ["-icount", "shift=0,sleep=off"]
    elif not machine.kvm:
        # Programs and kernel take AVX for the fast way if there is one. Emulated, it is the slow
        # way: without it AES-GCM and copying memory take less than half the time.
        options += ["-cpu", "max,-avx,-avx2,-fma,-f16c"]
        # All virtual CPUs in one thread. In a thread each, qemu 7.2 at times goes on with what a
        # kernel has just replaced in its own code, and that dies of "Oops: int3": within seconds if
        # a program turns SO_TIMESTAMP on and off while packets arrive.
        options += ["-accel", "tcg,thread=single"]
    return ["--qemu-opts", *options]


def _search_path() -> str:
    """PATH with our own virtual environment first: that is where virtme-ng is."""
    return os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])


def _pump(command: Sequence[str], machine: Machine, deadline: float | None) -> bool:
    """Run virtme-ng with its output going to where it belongs. False if the deadline was hit.

    Both outputs have to be pipes: qemu opens them anew by /proc/self/fd, and would write over
    what is in a file.
    """
    until = None if deadline is None else time.monotonic() + deadline
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PATH": _search_path()},
        start_new_session=True,
    )
    with (
        process,  # which waits for its end
        machine.kernel_log.open("wb") as log,
        (machine.results / "output.log").open("wb") as output,
        selectors.DefaultSelector() as selector,
    ):
        if process.stdout and process.stderr:  # they are pipes
            selector.register(process.stdout, selectors.EVENT_READ, [sys.stdout.buffer, output])
            selector.register(process.stderr, selectors.EVENT_READ, [log])
        try:
            while selector.get_map():
                left = None if until is None else max(0.0, until - time.monotonic())
                ready = selector.select(left)
                if not ready:
                    _kill(process)
                    return False
                for key, _ in ready:
                    data = os.read(key.fd, 65536)
                    if not data:
                        selector.unregister(key.fileobj)
                    for sink in key.data:
                        sink.write(data)
                        sink.flush()
        except BaseException:
            _kill(process)
            raise
    return True


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End virtme-run and its qemu, which share a session of their own."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    process.wait()


def _indented(lines: Sequence[str]) -> str:
    return "\n".join(f"    {line}" for line in lines)
