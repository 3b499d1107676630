# SPDX-License-Identifier: BSD-3-Clause
"""A debug kernel that keeps quiet would make every run on it worthless: so a module does wrong."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from vm import debug, module

# The kernel may have to be built first.
pytestmark = pytest.mark.timeout(3600)

FAULTY = Path(__file__).with_name("faulty")

# What faulty.c does wrong, and what the kernel has to say of it. Lockdep is silent after its first
# report of an order, and after any of KASAN's.
REPORTS = {
    "rcu": "suspicious RCU usage",
    "order": "possible circular locking dependency detected",
    "use-after-free": "KASAN: slab-use-after-free in faulty_use_after_free",
    "out-of-bounds": "KASAN: slab-out-of-bounds in faulty_out_of_bounds",
    "leak": "unreferenced object",
    "sleep": "sleeping function called from invalid context",
    "shift": "UBSAN: shift-out-of-bounds",
    "object": "ODEBUG: init active",
    "refcount": "refcount_t: addition on 0",
}


def test_each_fault_is_reported(tmp_path: Path) -> None:
    built = module.build(debug.kernel(), FAULTY, tmp_path / "faulty", name="faulty")
    load = f"insmod {built} fault=$fault && rmmod faulty || exit 1"

    done = subprocess.run(
        [
            *(sys.executable, "-m", "vm", "run", "--kernel", debug.NAME),
            *("--results", str(tmp_path / "results"), "--", "sh", "-c"),
            f"for fault in {' '.join(REPORTS)}; do {load}; done",
        ],
        capture_output=True,
        text=True,
        check=False,
    )

    assert (tmp_path / "results/status").read_text() == "0\n", done.stderr
    assert done.returncode == 125
    log = (tmp_path / "results/kernel.log").read_text()
    assert [name for name, report in REPORTS.items() if report not in log] == []
