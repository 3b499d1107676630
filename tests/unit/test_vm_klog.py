# SPDX-License-Identifier: BSD-3-Clause
"""What in a kernel log fails a run, and what does not."""

from __future__ import annotations

import pytest

from vm import klog

# As 6.1 and 6.12 print them.
BAD = [
    "WARNING: CPU: 1 PID: 812 at net/core/sock.c:2157 sk_free+0x3d/0x50",
    "WARNING: possible circular locking dependency detected",
    "WARNING: possible recursive locking detected",
    "WARNING: suspicious RCU usage",
    "WARNING: inconsistent lock state",
    "BUG: kernel NULL pointer dereference, address: 0000000000000018",
    "BUG: unable to handle page fault for address: ffffa0d1c0a3b000",
    "kernel BUG at lib/list_debug.c:56!",
    "BUG: sleeping function called from invalid context at kernel/locking/mutex.c:580",
    "BUG: scheduling while atomic: ssad/411/0x00000002",
    "BUG: KASAN: slab-use-after-free in ssa_release+0x1f/0x80 [ssa]",
    "BUG: KFENCE: use-after-free read in ssa_poll+0x44/0x90 [ssa]",
    "BUG: Bad page state in process curl  pfn:10a3f2",
    "BUG kmalloc-128 (Tainted: G    B  OE     ): Poison overwritten",
    "watchdog: BUG: soft lockup - CPU#0 stuck for 67s! [python3:533]",
    "UBSAN: array-index-out-of-bounds in /tmp/ssa/value.c:44:12",
    "Oops: 0000 [#1] PREEMPT SMP PTI",
    "Oops: general protection fault, probably for non-canonical address 0xdead000000000100",
    "general protection fault, probably for non-canonical address 0xdead000000000122: 0000 [#1]",
    "invalid opcode: 0000 [#1] PREEMPT SMP NOPTI",
    "divide error: 0000 [#1] SMP",
    "refcount_t: underflow; use-after-free.",
    "INFO: task python3:612 blocked for more than 120 seconds.",
    "INFO: rcu_preempt detected stalls on CPUs/tasks:",
    "rcu: INFO: rcu_sched self-detected stall on CPU",
    "rcu: INFO: rcu_preempt detected expedited stalls on CPUs/tasks: { 1-... } 21 jiffies s: 61",
    "BUG: MAX_LOCKDEP_KEYS too low! turning off the locking correctness validator.",
    "kmemleak: Kernel memory leak detector disabled",
    "kmemleak: Memory pool empty, consider increasing CONFIG_DEBUG_KMEMLEAK_MEM_POOL_SIZE",
    "list_del corruption. prev->next should be ffff88810c1d2c00, but was dead000000000100",
    "unreferenced object 0xffff888107a4c200 (size 256):",
    "kmemleak: 3 new suspected memory leaks (see /sys/kernel/debug/kmemleak)",
    "ODEBUG: free active (active state 0) object: ffff8881 object type: timer_list",
    "unregister_netdevice: waiting for lo to become free. Usage count = 2",
    "Attempt to release TCP socket in state 1 00000000d9f3b9f1",
    "Out of memory: Killed process 733 (python3) total-vm:812340kB",
    "Kernel panic - not syncing: Fatal exception in interrupt",
    "Call Trace:",
    "ssad[433]: segfault at 10 ip 00007f31c8b1d0a4 sp 00007ffd5c3f2c50 error 4 in libc.so.6",
]

# From clean boots, and what the module itself says.
HARMLESS = [
    'PCI: Using host bridge windows from ACPI; if necessary, use "pci=nocrs" and report a bug',
    "AMD-Vi: AMD IOMMUv2 functionality not available on this system - This is not a bug.",
    "Kernel command line: ignore_loglevel oops=panic watchdog_thresh=30 panic=-1",
    "Spectre V2 : Spectre v2 / SpectreRSB: Filling RSB on context switch and VMEXIT",
    "rcu: RCU calculated value of scheduler-enlistment delay is 25 jiffies.",
    "kmemleak: Kernel memory leak detector initialized",
    "9pnet: Limiting 'msize' to 512000 as this is the maximum supported by transport virtio",
    "ssa: loading out-of-tree module taints kernel.",
    "ssa: module verification failed: signature and/or required key missing - tainting kernel",
    "reboot: Power down",
]


@pytest.mark.parametrize("line", BAD)
def test_a_line_that_must_not_be_there_is_found_in_a_clean_log(line: str) -> None:
    bad = f"[   12.345678] {line}"
    log = "\n".join([*HARMLESS, bad, *HARMLESS])

    assert klog.problems(log) == [bad]


def test_a_clean_boot_has_no_problems() -> None:
    assert klog.problems("\n".join(f"[    0.1] {line}" for line in HARMLESS)) == []


def test_an_empty_log_has_no_problems() -> None:
    assert klog.problems("") == []


def test_problems_come_in_the_order_of_the_log() -> None:
    assert klog.problems("Call Trace:\nfine\nBUG: a\n") == ["Call Trace:", "BUG: a"]


OOM = [
    "python3 invoked oom-killer: gfp_mask=0xcc0(GFP_KERNEL), order=0, oom_score_adj=0",
    "CPU: 1 UID: 0 PID: 812 Comm: python3 Tainted: G           OE      6.12.117+deb12-amd64",
    "Call Trace:",
    " dump_stack_lvl+0x5d/0x80",
]
OF_A_CGROUP = "Memory cgroup out of memory: Killed process 812 (python3) total-vm:812340kB"


def test_a_cgroup_may_use_up_its_memory() -> None:
    assert klog.problems("\n".join([*OOM, OF_A_CGROUP])) == []


def test_a_guest_may_not() -> None:
    killed = OF_A_CGROUP.replace("Memory cgroup out", "Out")
    assert klog.problems("\n".join([*OOM, killed])) == [killed]


def test_one_trace_of_it_covers_no_other() -> None:
    assert klog.problems("\n".join([*OOM, OF_A_CGROUP, "Call Trace:"])) == ["Call Trace:"]
