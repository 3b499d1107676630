# SPDX-License-Identifier: BSD-3-Clause
"""Reads a kernel log for what must never be in it.

A run fails on any such line, even if every test has passed: a warning is a bug that no test has
looked at yet.
"""

from __future__ import annotations

import re

# Each with the kernel file that prints it. Case counts: "report a bug" is harmless.
_PATTERNS = (
    r"\bWARNING\b",  # kernel/panic.c, __warn(); kernel/locking/lockdep.c
    r"\bBUG\b",  # lib/bug.c, mm/fault.c, mm/slub.c, page_alloc.c, watchdog.c, KASAN
    r"\bOops\b",  # arch/x86/kernel/dumpstack.c
    r"\bKernel panic\b",  # kernel/panic.c
    r"\bCall Trace:",  # arch/x86/kernel/dumpstack.c: the line after whatever was forgotten here
    r"\b(KASAN|KCSAN|KMSAN|KFENCE): [a-z]",  # mm/kasan/report.c; not "KASAN initialized"
    r"\bUBSAN: ",  # lib/ubsan.c
    r"\brefcount_t: ",  # lib/refcount.c
    r"\bgeneral protection fault\b",  # arch/x86/kernel/traps.c
    r"\binvalid opcode: ",  # arch/x86/kernel/traps.c
    r"\bdivide error: ",  # arch/x86/kernel/traps.c
    r"\bpossible (circular|recursive|irq lock inversion)\b",  # kernel/locking/lockdep.c
    r"\b(inconsistent|bad unlock|possible irq) .*\b(lock|balance|dependency)\b",  # lockdep.c
    r"\bsuspicious RCU usage\b",  # kernel/locking/lockdep.c
    r"\bturning off the locking correctness validator\b",  # kernel/locking/lockdep.c
    r"\bkmemleak: .*(detector disabled|pool empty)",  # mm/kmemleak.c: it has given up
    r"\bINFO: task .+ blocked for more than\b",  # kernel/hung_task.c
    r"\bdetected (expedited )?stalls? on CPUs\b",  # kernel/rcu/tree_stall.h
    r"\bself-detected stall\b",  # kernel/rcu/tree_stall.h
    r"\bsleeping function called from invalid context\b",  # kernel/sched/core.c
    r"\bscheduling while atomic\b",  # kernel/sched/core.c
    r"\bunreferenced object\b",  # mm/kmemleak.c
    r"\bnew suspected memory leaks\b",  # mm/kmemleak.c
    r"\bODEBUG: ",  # lib/debugobjects.c
    r"\blist_(add|del) corruption\b",  # lib/list_debug.c
    r"\bunregister_netdevice: waiting for\b",  # net/core/dev.c: a reference to a device leaked
    r"\bAttempt to release (TCP|alive inet) socket\b",  # net/ipv4/af_inet.c
    r"\bOut of memory: Killed\b",  # mm/oom_kill.c: the guest was too small for the command
    r"\bsegfault at\b",  # arch/x86/mm/fault.c: a program of ours crashed
)
_BAD = re.compile("|".join(_PATTERNS))


# A control group has used up its memory, as a test has it do: the kernel shows where, and this says
# nothing of who is at fault. That the guest has none left has a line of its own, above.
_OOM = re.compile(r"\binvoked oom-killer: ")  # mm/oom_kill.c, dump_header()
_TRACE = re.compile(r"\bCall Trace:")


def problems(log: str) -> list[str]:
    """The lines of a kernel log that must not be there, in order."""
    found = []
    of_oom = False
    for line in log.splitlines():
        if _OOM.search(line):
            of_oom = True
        elif of_oom and _TRACE.search(line):
            of_oom = False
        elif _BAD.search(line):
            found.append(line.rstrip())
    return found
