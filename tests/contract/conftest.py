# SPDX-License-Identifier: BSD-3-Clause
"""The generator as a person runs it, on a copy of the specification."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
GENERATOR = ROOT / "netlink_proto" / "generate.py"
SPEC = ROOT / "netlink_proto" / "ssa.yaml"


@dataclass(frozen=True)
class Generator:
    """generate.py with a specification and an output folder of its own."""

    spec: Path
    root: Path

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(GENERATOR), "--spec", str(self.spec)]
        command += ["--root", str(self.root), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    def replace(self, old: str, new: str) -> None:
        """Change the specification in one place."""
        text = self.spec.read_text(encoding="utf-8")
        assert text.count(old) == 1, f"{old!r} is there {text.count(old)} times"
        self.spec.write_text(text.replace(old, new), encoding="utf-8")

    def generated(self, path: str) -> str:
        return (self.root / path).read_text(encoding="utf-8")


@pytest.fixture
def generator(tmp_path: Path) -> Generator:
    spec = tmp_path / "ssa.yaml"
    spec.write_text(SPEC.read_text(encoding="utf-8"), encoding="utf-8")
    return Generator(spec, tmp_path / "root")
