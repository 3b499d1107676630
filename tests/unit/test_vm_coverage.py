# SPDX-License-Identifier: BSD-3-Clause
"""What was executed, from what real programs have counted."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING

import pytest

from vm import coverage
from vm.errors import RunnerError

if TYPE_CHECKING:
    from pathlib import Path

SOURCE = """
int main(int count, char **arguments)
{
	int result = 0;

	if (count > 1)
		result += arguments[1][0] == 'x';
	else
		result += 2;
	return result;
}
"""


@pytest.fixture
def built(tmp_path: Path) -> Path:
    """Give a folder where a program was built that counts."""
    folder = tmp_path / "built"
    folder.mkdir()
    (folder / "main.c").write_text(SOURCE)
    # As the kernel's make does: by the whole path.
    for command in (f"gcc --coverage -c {folder}/main.c", "gcc --coverage -o main main.o"):
        subprocess.run(command.split(), cwd=folder, check=True)
    return folder


def run(built: Path, results: Path, *arguments: str) -> Path:
    """Run the program; its counts are in the results, as a guest leaves them."""
    counts = results / "coverage"
    counts.mkdir(parents=True)
    strip = str(len(built.parts) - 1)
    environment = os.environ | {"GCOV_PREFIX": str(counts), "GCOV_PREFIX_STRIP": strip}
    subprocess.run([built / "main", *arguments], env=environment, check=False)
    assert (counts / "main.gcda").exists()
    return results


def last(table: str) -> list[str]:
    """Return the numbers of a table's last line."""
    return [word for word in table.splitlines()[-1].split() if "/" in word]


def test_of_one_run(built: Path, tmp_path: Path) -> None:
    told = coverage.table(built, run(built, tmp_path / "one"))
    assert "main.c" in told
    assert last(told) == ["5/6", "1/2"]


def test_of_several_runs(built: Path, tmp_path: Path) -> None:
    one, other = run(built, tmp_path / "one"), run(built, tmp_path / "other", "x")
    assert last(coverage.table(built, one)) == ["5/6", "1/2"]
    assert last(coverage.table(built, other)) == ["5/6", "1/2"]
    assert last(coverage.merged([one, other, tmp_path])) == ["6/6", "2/2"]


def test_of_none(tmp_path: Path) -> None:
    assert coverage.table(tmp_path, tmp_path) == ""
    assert coverage.merged([tmp_path]) == ""


def test_counts_that_are_none(built: Path, tmp_path: Path) -> None:
    results = run(built, tmp_path / "one")
    coverage.table(built, results)
    (results / "coverage" / "counts.json").write_text("{")
    with pytest.raises(RunnerError, match="gcovr"):
        coverage.merged([results])
