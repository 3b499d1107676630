#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""Runs one step of a verb of the Makefile: one line for it, and its output only if it fails.

step.py [--live] [--junit FILE] NAME COMMAND...
    --live     show the output as it comes, each line with the step's name in front of it
    --junit    the command leaves a JUnit file here: count its tests instead of the step itself

step.py --total
    say which checks have failed since build/results was last removed, and how many have passed and
    failed; exits 1 unless all have passed
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

RESULTS = Path(__file__).resolve().parent.parent / "build/results"
RECORD = RESULTS / "steps"

_REASON = 300  # characters of why a test has failed, in the total


@dataclass(frozen=True)
class Count:
    """Of checks or tests."""

    passed: int = 0
    failed: int = 0
    skipped: int = 0

    def __add__(self, other: Count) -> Count:
        """Count both together."""
        return Count(
            self.passed + other.passed, self.failed + other.failed, self.skipped + other.skipped
        )

    def __str__(self) -> str:
        """Say it as pytest does."""
        skipped = f", {self.skipped} skipped" if self.skipped else ""
        return f"{self.passed} passed, {self.failed} failed{skipped}"


def main() -> int:
    """Run the step or tell the total; the exit status."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--live", action="store_true")
    parser.add_argument("--junit", type=Path)
    parser.add_argument("--total", action="store_true")
    parser.add_argument("name", nargs="?")
    parser.add_argument("command", nargs=argparse.REMAINDER)
    arguments = parser.parse_args()
    if arguments.total:
        return total()
    return step(arguments.name, arguments.command, arguments.junit, live=arguments.live)


def step(name: str, command: list[str], junit: Path | None, *, live: bool) -> int:
    """Run the command, record and print how it went."""
    started = time.monotonic()
    if live:
        print(f"{name}: {' '.join(command)}", flush=True)
    lines = []
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:
        for raw in process.stdout or ():
            line = raw.decode(errors="replace").rstrip()
            if live:
                print(f"{name} | {line}", flush=True)
            else:
                lines.append(line)
    status = process.returncode
    count = Count(failed=1) if status else Count(passed=1)
    reasons = []
    if junit is not None:
        count = tests(junit, status)
        reasons = failures(junit)
    if status and not reasons:
        reasons = [f"exit status {status}"]
    took = f"{time.monotonic() - started:.1f} s"
    verdict = "FAILED" if status else "ok"
    detail = f"  {count}" if junit is not None else ""
    output = "".join(f"    {line}\n" for line in lines) if status else ""
    RESULTS.mkdir(parents=True, exist_ok=True)
    with RECORD.open("a") as record:
        record.write(f"{count.passed} {count.failed} {count.skipped} {took:>9}  {name}\n")
        record.writelines(f"  {name}: {reason}\n" for reason in reasons)
    # One write, for other steps may be printing at the same time.
    sys.stdout.write(f"{name:<32} {verdict:<6} {took:>9}{detail}\n{output}")
    return status


def tests(junit: Path, status: int) -> Count:
    """Count the tests of a JUnit file.

    A step that failed has a failure even if no test has, and so has one that left no file.
    """
    count = Count()
    if junit.exists():
        for suite in ElementTree.parse(junit).iter("testsuite"):  # noqa: S314 - our own file
            ran, failures, errors, skipped = (
                int(suite.get(key, "0")) for key in ("tests", "failures", "errors", "skipped")
            )
            count += Count(ran - failures - errors - skipped, failures + errors, skipped)
    if count == Count() or (status and not count.failed):
        count += Count(failed=1)
    return count


def failures(junit: Path) -> list[str]:
    """Return the names of a JUnit file's tests that have failed, each with why in a line."""
    found = []
    cases = ElementTree.parse(junit).iter("testcase") if junit.exists() else ()  # noqa: S314 - ours
    for case in cases:
        for kind in ("failure", "error"):
            failure = case.find(kind)
            if failure is not None:
                why = " ".join((failure.get("message") or "").split())
                found.append(f"{case.get('classname')}.{case.get('name')}: {why:.{_REASON}}")
    return found


def total() -> int:
    """Add up what the steps have recorded."""
    count = Count()
    failed = []
    for line in RECORD.read_text().splitlines() if RECORD.exists() else []:
        if line.startswith(" "):
            failed.append(line)
            continue
        numbers = line.split()[:3]
        count += Count(*map(int, numbers))
    # At the end, where whoever sees but the end of a long output looks.
    print("\nFailed:\n" + "\n".join(failed) if failed else "")
    print(f"In all: {count}")
    return 0 if count.passed and not count.failed else 1


if __name__ == "__main__":
    sys.exit(main())
