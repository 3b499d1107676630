# SPDX-License-Identifier: BSD-3-Clause
"""The command line of the runner: python -m vm build, run, coverage, shell."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import click

from vm import accel, coverage, debug, guest, kernels, module
from vm.errors import RunnerError

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build"

# What `run` exits with if the run failed whatever the command did; docker and timeout do likewise.
FAILED = 125

_kernel = click.option(
    "--kernel",
    "name",
    default=kernels.TESTED[-1],
    show_default=True,
    help=f"A series, as 6.12, a whole release, or {debug.NAME}.",
)
_cpus = click.option("--cpus", default=2, show_default=True, help="Virtual CPUs.")
_memory = click.option(
    "--memory", help="Memory; 2G if not given, and 4G for the debug kernel, which keeps books."
)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Build the module, and run commands in a virtual machine that has it."""


@main.command()
@_kernel
@click.option("--into", type=click.Path(path_type=Path), help="Folder to build in.")
@click.argument("arguments", nargs=-1)
def build(name: str, into: Path | None, arguments: tuple[str, ...]) -> None:
    """Build the module, and the example that uses it, for a kernel. ARGUMENTS go to make."""
    kernel = _find(name)
    output = into or _output(kernel)
    _build(kernel, output.absolute(), arguments)


@main.command(context_settings={"ignore_unknown_options": True})
@_kernel
@_cpus
@_memory
@click.option("--icount", is_flag=True, help="Let the guest's clock count instructions.")
@click.option(
    "--deadline",
    default=1200,
    show_default=True,
    help="Seconds that the command may take; 0 for as long as it likes.",
)
@click.option("--results", type=click.Path(path_type=Path), help="Folder for what comes back.")
@click.option(
    "--env", "passed", multiple=True, metavar="NAME", help="Pass this environment variable."
)
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def run(
    name: str,
    cpus: int,
    memory: str | None,
    icount: bool,  # noqa: FBT001 - click calls this, by name
    deadline: int,
    results: Path | None,
    passed: tuple[str, ...],
    command: tuple[str, ...],
) -> None:
    """Run COMMAND as root in a guest, the module loaded.

    Exits with its status; with 125 if the guest could not run it, it took too long, the module
    could not be unloaded after it, or the kernel complained. In the results folder, which COMMAND
    finds in $RESULTS, are kernel.log, output.log and whatever COMMAND writes there.
    """
    results = (results or BUILD / "results" / f"run-{name}").absolute()
    machine = _machine(name, results, cpus=cpus, memory=memory, icount=icount)
    outcome = guest.run(machine, command, _environment(passed), deadline)
    for complaint in outcome.complaints:
        say(complaint)
    if covered := coverage.table(_output(machine.kernel), results):
        say_covered(covered)
    sys.exit(FAILED if outcome.complaints or outcome.status is None else outcome.status)


@main.command("coverage")
@click.argument("results", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
def coverage_(results: tuple[Path, ...]) -> None:
    """Say which part of the module was executed by runs together, of which RESULTS are left."""
    if not (covered := coverage.merged(results)):
        raise RunnerError(f"nothing was counted in {', '.join(map(str, results))}")
    say_covered(covered)


@main.command()
@_kernel
@_cpus
@_memory
def shell(name: str, cpus: int, memory: str | None) -> None:
    """Open a shell in a guest, module and daemon up. Leave it with exit."""
    machine = _machine(name, BUILD / "results" / f"shell-{name}", cpus=cpus, memory=memory)
    say(f"the kernel's log goes to {machine.kernel_log}; leave the shell with exit")
    command = ["sh", "-c", "ssad start; bash -i; ssad stop"]
    sys.exit(guest.shell(machine, command, _environment(("TERM",))))


def _machine(
    name: str, results: Path, *, cpus: int, memory: str | None, icount: bool = False
) -> guest.Machine:
    kernel = _find(name)
    output = _output(kernel)
    say(f"building the module for {kernel.release}")
    built = _build(kernel, output, ["--silent"])
    modules = module.tree(kernel, built, BUILD / f"modules-{kernel.release}")
    # Instructions can be counted only where they are emulated.
    kvm = not icount and accel.kvm_works(kernel, BUILD / "accel")
    say(f"booting a guest {'under KVM' if kvm else 'without KVM, which takes a while'}")
    return guest.Machine(
        kernel=kernel,
        kvm=kvm,
        modules=modules,
        results=results,
        cpus=1 if icount else cpus,
        memory=memory or ("4G" if kernel.debug else "2G"),
        icount=icount,
    )


def _find(name: str) -> kernels.Kernel:
    return debug.kernel() if name == debug.NAME else kernels.find(name)


def _output(kernel: kernels.Kernel) -> Path:
    """Where the module is built for a kernel."""
    return BUILD / f"kmod-{kernel.release}"


def _build(kernel: kernels.Kernel, output: Path, arguments: Sequence[str]) -> list[Path]:
    """Build all modules there are; the paths of their .ko files."""
    if kernel.debug:
        arguments = ["SSA_DEBUG=y", *arguments]
    headers = ROOT / "kmod"
    example = ROOT / "examples/kernel"
    return [
        module.build(kernel, headers, output, arguments),
        module.build(
            kernel, example, output / "example", [f"IN_TLS={headers}", *arguments], "tls_example"
        ),
    ]


def _environment(passed: tuple[str, ...]) -> dict[str, str]:
    """What the command finds in its environment."""
    # The virtual environment first, and the system's programs as root finds them.
    path = f"{Path(sys.executable).parent}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin"
    kept = {name: os.environ[name] for name in ("CI", *passed) if name in os.environ}
    return {"PATH": path, "HOME": "/root", "LANG": "C.UTF-8"} | kept


def say_covered(covered: str) -> None:
    """Tell what was executed."""
    say(f"the part of the module that was executed:\n{covered}")


def say(text: str) -> None:
    """Tell the person at the terminal, apart from what the command prints."""
    print(f"vm: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    # A guest must not outlive its runner: let SIGTERM unwind as an interrupt does.
    signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))
    try:
        main()
    except RunnerError as error:
        say(str(error))
        sys.exit(FAILED)
