# SPDX-License-Identifier: BSD-3-Clause
"""How a run is judged by what the guest has left. That guests leave it is shown in tests/vm."""

from __future__ import annotations

from pathlib import Path

import pytest

from vm import guest
from vm.kernels import Kernel

CLEAN = "[    0.000000] Linux version 6.12.117+deb12-amd64\n[   16.000000] ssa: loaded\n"


@pytest.fixture
def machine(tmp_path: Path) -> guest.Machine:
    machine = guest.Machine(
        kernel=Kernel("6.12.117+deb12-amd64", tmp_path / "vmlinuz", tmp_path / "modules"),
        kvm=False,
        modules=tmp_path / "tree",
        results=tmp_path,
    )
    machine.kernel_log.write_text(CLEAN)
    return machine


def leave(machine: guest.Machine, **files: str) -> None:
    for name, content in files.items():
        (machine.results / name.replace("_", "-")).write_text(content)


def complaint(machine: guest.Machine, *, ended: bool = True) -> str:
    outcome = guest.judge(machine, 60, ended=ended)
    assert len(outcome.complaints) == 1
    return outcome.complaints[0]


@pytest.mark.parametrize("status", [0, 7, 255])
def test_the_status_is_the_commands_own(machine: guest.Machine, status: int) -> None:
    leave(machine, up="", status=f"{status}\n")

    assert guest.judge(machine, 60, ended=True) == guest.Outcome(status, ())


def test_a_guest_that_ends_before_the_command_has_not_run_it(machine: guest.Machine) -> None:
    said = complaint(machine)

    assert "ended before the start of the command" in said
    assert "ssa: loaded" in said


def test_a_guest_that_never_comes_up_is_told_from_one_that_ended(machine: guest.Machine) -> None:
    assert "never" in complaint(machine, ended=False)


def test_a_guest_that_dies_under_the_command_is_told(machine: guest.Machine) -> None:
    leave(machine, up="")

    assert "died while the command ran" in complaint(machine)


def test_a_guest_that_hangs_is_told(machine: guest.Machine) -> None:
    leave(machine, up="")

    assert "hung" in complaint(machine, ended=False)


def test_a_command_past_its_deadline_fails_the_run(machine: guest.Machine) -> None:
    leave(machine, up="", late="", status="124\n")

    assert "longer than 60 s" in complaint(machine)


def test_a_module_that_stays_in_use_fails_the_run(machine: guest.Machine) -> None:
    leave(machine, up="", in_use="", status="0\n")

    assert "could not be unloaded" in complaint(machine)


def test_a_kernel_warning_fails_a_run_that_has_passed(machine: guest.Machine) -> None:
    leave(machine, up="", status="0\n")
    line = "[   20.000000] WARNING: CPU: 0 PID: 1 at net/core/sock.c:2157"
    machine.kernel_log.write_text(CLEAN + line)

    assert line in complaint(machine)
