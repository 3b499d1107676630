# SPDX-License-Identifier: BSD-3-Clause
"""Which kernel the runner takes."""

from __future__ import annotations

from pathlib import Path

import pytest

from vm import kernels
from vm.errors import RunnerError


class Machine:
    """A /boot and a /lib/modules of our own."""

    def __init__(self, root: Path) -> None:
        """Make both, empty."""
        self.boot = root / "boot"
        self.modules = root / "modules"
        self.boot.mkdir()
        self.modules.mkdir()

    def install(self, release: str, *, headers: bool = True) -> None:
        """Install a kernel."""
        (self.boot / f"vmlinuz-{release}").touch()
        (self.modules / release).mkdir()
        if headers:
            (self.modules / release / "build").mkdir()

    def find(self, name: str) -> str:
        """The release that the runner finds."""
        return kernels.find(name, self.boot, self.modules).release


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_a_series_means_no_longer_name_that_starts_alike(machine: Machine) -> None:
    machine.install("6.1.0-56-amd64")
    machine.install("6.12.117+deb12-amd64")

    assert machine.find("6.1") == "6.1.0-56-amd64"
    assert machine.find("6.12") == "6.12.117+deb12-amd64"


def test_the_newest_of_a_series_is_taken_by_number_not_by_letter(machine: Machine) -> None:
    for release in ("6.1.0-9-amd64", "6.1.0-56-amd64", "6.1.0-10-amd64"):
        machine.install(release)

    assert machine.find("6.1") == "6.1.0-56-amd64"


def test_a_whole_release_can_be_named(machine: Machine) -> None:
    machine.install("6.1.0-9-amd64")
    machine.install("6.1.0-56-amd64")

    assert machine.find("6.1.0-9-amd64") == "6.1.0-9-amd64"


def test_flavours_without_9p_are_left_alone(machine: Machine) -> None:
    machine.install("6.1.0-56-amd64")
    machine.install("6.1.0-57-cloud-amd64")
    machine.install("6.1.0-57-rt-amd64")

    assert machine.find("6.1") == "6.1.0-56-amd64"


def test_a_kernel_without_headers_is_passed_over_for_one_with(machine: Machine) -> None:
    machine.install("6.12.117+deb12-amd64")
    machine.install("6.12.118+deb12-amd64", headers=False)

    assert machine.find("6.12") == "6.12.117+deb12-amd64"


def test_missing_headers_are_named(machine: Machine) -> None:
    machine.install("6.12.117+deb12-amd64", headers=False)

    with pytest.raises(RunnerError, match=r"6\.12\.117\+deb12-amd64 has no headers.*make setup"):
        machine.find("6.12")


def test_a_missing_kernel_is_named(machine: Machine) -> None:
    with pytest.raises(RunnerError, match=r"No kernel 6\.12 is installed.*make setup"):
        machine.find("6.12")
