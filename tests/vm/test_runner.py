# SPDX-License-Identifier: BSD-3-Clause
"""A runner that lets a failure pass would make every other test worthless: so real guests fail."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

# Each boots a guest, and the machine may be busy with others.
pytestmark = pytest.mark.timeout(600)


def runner(results: Path, command: str, *options: str) -> list[str]:
    return [
        *(sys.executable, "-m", "vm", "run", "--results", str(results), *options),
        *("--", "sh", "-c", command),
    ]


def run(results: Path, command: str, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        runner(results, command, *options), capture_output=True, text=True, check=False
    )


def test_status_output_and_files_come_back(tmp_path: Path) -> None:
    done = run(
        tmp_path, "id -u; echo oh >&2; lsmod | grep -c ^ssa; echo hi > $RESULTS/file; exit 7"
    )

    assert done.returncode == 7, done.stderr
    assert done.stdout.splitlines() == ["0", "oh", "1"]
    assert (tmp_path / "file").read_text() == "hi\n"
    assert "Linux version" in (tmp_path / "kernel.log").read_text()


def test_a_kernel_warning_fails_a_command_that_has_passed(tmp_path: Path) -> None:
    done = run(tmp_path, "echo 'WARNING: CPU: 0 PID: 1 at a test' >/dev/kmsg")

    assert (tmp_path / "status").read_text() == "0\n"
    assert done.returncode == 125
    assert "WARNING: CPU: 0 PID: 1 at a test" in done.stderr


def test_a_kernel_panic_ends_the_run_at_once(tmp_path: Path) -> None:
    done = run(tmp_path, "echo c >/proc/sysrq-trigger; sleep 1000")

    assert done.returncode == 125
    assert "The guest died while the command ran." in done.stderr
    assert "sysrq triggered crash" in done.stderr


def test_a_command_that_hangs_is_stopped_and_its_tasks_are_shown(tmp_path: Path) -> None:
    done = run(tmp_path, "sleep 1000", "--deadline", "3")

    assert done.returncode == 125
    assert "longer than 3 s" in done.stderr
    assert "sysrq: Show Blocked State" in (tmp_path / "kernel.log").read_text()


def test_a_guest_does_not_outlive_its_runner(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    with subprocess.Popen(runner(tmp_path, "touch $RESULTS/runs; sleep 1000")) as process:
        while not runs.exists():
            assert process.poll() is None
            time.sleep(0.1)
        process.terminate()
        assert process.wait(60) == 128 + signal.SIGTERM
    # Killed it is; a busy machine may take a moment to end it.
    end = time.monotonic() + 30
    while subprocess.run(["pgrep", "--full", str(tmp_path)], check=False).returncode == 0:
        assert time.monotonic() < end, "the guest goes on"
        time.sleep(0.1)
