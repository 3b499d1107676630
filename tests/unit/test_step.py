# SPDX-License-Identifier: BSD-3-Clause
"""What counts as passed and failed in `make test`."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tools import step
from tools.step import Count

JUNIT = """<?xml version="1.0"?><testsuites>
<testsuite name="a" tests="9" failures="{failures}" errors="{errors}" skipped="1"/></testsuites>"""


@pytest.fixture(autouse=True)
def record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep the record of the run that this test is part of out of it."""
    monkeypatch.setattr(step, "RESULTS", tmp_path)
    monkeypatch.setattr(step, "RECORD", tmp_path / "steps")
    return tmp_path / "steps"


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def test_a_step_that_passes_is_one_line(capfd: pytest.CaptureFixture[str]) -> None:
    assert step.step("lint", python("print('noise')"), None, live=False) == 0

    assert capfd.readouterr().out.split()[:2] == ["lint", "ok"]


def test_a_step_that_fails_shows_its_output(capfd: pytest.CaptureFixture[str]) -> None:
    code = "import sys; print('out'); sys.exit('err')"

    assert step.step("lint", python(code), None, live=False) == 1

    line, *output = capfd.readouterr().out.splitlines()
    assert line.split()[:2] == ["lint", "FAILED"]
    assert sorted(output) == ["    err", "    out"]


def test_a_live_step_shows_its_output_with_its_name(capfd: pytest.CaptureFixture[str]) -> None:
    step.step("vm", python("print('a line')"), None, live=True)

    assert "vm | a line" in capfd.readouterr().out.splitlines()


def test_the_tests_of_a_junit_file_are_counted(tmp_path: Path) -> None:
    junit = tmp_path / "junit.xml"
    junit.write_text(JUNIT.format(failures=2, errors=1))

    assert step.tests(junit, 1) == Count(passed=5, failed=3, skipped=1)


def test_a_step_that_fails_without_a_failed_test_is_a_failure(tmp_path: Path) -> None:
    junit = tmp_path / "junit.xml"
    junit.write_text(JUNIT.format(failures=0, errors=0))

    assert step.tests(junit, 125) == Count(passed=8, failed=1, skipped=1)


def test_tests_that_have_left_no_junit_file_have_failed(tmp_path: Path) -> None:
    assert step.tests(tmp_path / "missing.xml", 2) == Count(failed=1)
    assert step.tests(tmp_path / "missing.xml", 0) == Count(failed=1)


def test_the_total_names_the_tests_that_have_failed(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    junit = tmp_path / "junit.xml"
    junit.write_text(
        '<testsuites><testsuite name="a" tests="2" failures="1" errors="0" skipped="0">'
        '<testcase classname="tests.a" name="test_good"/><testcase classname="tests.b"'
        ' name="test_bad[ktls]"><failure message="wanted 1&#10;  found 2"/></testcase>'
        "</testsuite></testsuites>"
    )
    step.step("vm", python("raise SystemExit(1)"), junit, live=False)
    step.step("ruff", python("raise SystemExit(2)"), None, live=False)
    capfd.readouterr()

    assert step.total() == 1
    assert capfd.readouterr().out.splitlines() == [
        "",
        "Failed:",
        "  vm: tests.b.test_bad[ktls]: wanted 1 found 2",
        "  ruff: exit status 2",
        "In all: 1 passed, 2 failed",
    ]


def test_the_total_adds_up_all_steps(record: Path, capfd: pytest.CaptureFixture[str]) -> None:
    record.write_text("5 0 0 1.0 s  unit tests\n1 0 0 2.0 s  ruff\n")

    assert step.total() == 0
    assert capfd.readouterr().out.splitlines()[-1] == "In all: 6 passed, 0 failed"


def test_one_failure_fails_the_total(record: Path, capfd: pytest.CaptureFixture[str]) -> None:
    record.write_text("5 1 2 1.0 s  unit tests\n")

    assert step.total() == 1
    assert capfd.readouterr().out.splitlines()[-1] == "In all: 5 passed, 1 failed, 2 skipped"


def test_a_run_without_any_step_has_not_passed() -> None:
    assert step.total() == 1
