# SPDX-License-Identifier: BSD-3-Clause
"""Whether TLS sockets can be used on this machine, and what is missing."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

from ssad import module, reloads
from ssad.config import Faulty, Source
from ssad.exits import Exit
from ssad.link import FamilyMissing, Link
from ssad.policy import Policy
from ssad.wire import Command

_PEM_BEGIN = b"-----BEGIN CERTIFICATE-----"


@dataclass(slots=True)
class Worker:
    """A process of the daemon that is registered with the module."""

    pid: int
    pending: int  # requests that it has not completed yet
    sockets: int  # TLS sockets that it serves
    leaving: bool = False  # after a restart it finishes what it has begun, and ends


@dataclass(slots=True)
class Problem:
    """Something that is missing."""

    code: Exit
    text: str  # what, and how to mend it


@dataclass(slots=True)
class Report:
    """What was found."""

    config: Path  # the policy file, which may be missing
    trust_store: Path
    loaded: str | None = None  # when the daemon read the policy, if it can be seen
    certificates: int = 0
    module_version: str | None = None  # None: not loaded
    sockets: int = 0
    ktls: bool = False
    daemon: int | None = None  # pid of its main process; None: not running
    workers: list[Worker] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)

    @property
    def exit_code(self) -> Exit:
        """The worst problem decides; they are found in that order."""
        return self.problems[0].code if self.problems else Exit.DONE

    def as_dict(self) -> dict[str, object]:
        """Return what to print as JSON."""
        found = asdict(self)
        found["config"] = str(self.config)
        found["trust_store"] = str(self.trust_store)
        found["problems"] = [problem.text for problem in self.problems]
        return found

    def as_text(self) -> str:
        """Return what to print for people."""
        workers = ", ".join(
            f"{worker.pid} ({'leaving, ' if worker.leaving else ''}"
            f"pending requests: {worker.pending}, sockets: {worker.sockets})"
            for worker in self.workers
        )
        daemon = "not running" if self.daemon is None else f"pid {self.daemon}, workers: {workers}"
        module_state = f"version {self.module_version}" if self.module_version else "not loaded"
        lines = [
            f"module       {module_state}",
            f"daemon       {daemon}",
            f"sockets      {self.sockets}",
            f"kernel TLS   {'available' if self.ktls else 'not available'}",
            f"policy       {self.config}{f', read {self.loaded}' if self.loaded else ''}",
            f"trust store  {self.trust_store}, certificates: {self.certificates}",
        ]
        if self.problems:
            lines += ["", *(problem.text for problem in self.problems)]
        return "\n".join(lines)


def inspect(source: Source, trust_store: Path | None = None) -> Report:
    """Look at everything that a TLS socket needs, where the daemon's policy file says, or `source`
    if root does not ask or there is no daemon, or `trust_store`."""
    report = Report(source.path, trust_store or Policy().trust_store)
    _inspect_module(report)
    _inspect_ktls(report)
    _inspect_policy(report, source, trust_store)
    _inspect_trust_store(report)
    return report


def _inspect_policy(report: Report, source: Source, trust_store: Path | None) -> None:
    # Only root can see what the daemon has read.
    with suppress(OSError):
        told = None if report.daemon is None else reloads.read(report.daemon)
        if told is not None and told.config is not None:
            report.config = Path(told.config)
            report.loaded = told.loaded
            source = Source(report.config, source.required)
    try:
        policy = source.load(usable=False)
    except Faulty as faulty:
        text = f"The daemon would not start with this policy, or take it on.\n{faulty}"
        report.problems.append(Problem(Exit.DEGRADED, text))
    else:
        report.trust_store = trust_store or policy.trust_store


def _inspect_module(report: Report) -> None:
    try:
        link = Link()
    except (FamilyMissing, OSError):
        report.problems.append(Problem(Exit.NO_MODULE, module.HOW_TO_LOAD))
        return
    with link:
        found = link.request(Command.MODULE_GET)
        workers = link.dump(Command.WORKER_GET)
    report.module_version = found.get("module_version", "unknown")
    report.sockets = found.get("sockets", 0)
    report.workers = [
        Worker(
            worker.get("pid", 0),
            worker.get("pending", 0),
            worker.get("sockets", 0),
            bool(worker.get("leaving", 0)),
        )
        for worker in sorted(workers, key=lambda worker: worker.get("pid", 0))
    ]
    if workers:
        report.daemon = workers[0].get("daemon", 0)
    else:
        report.problems.append(
            Problem(
                Exit.NOT_RUNNING,
                "The daemon is not running, so calls on TLS sockets fail with ECANCELED; "
                "start it with 'ssad start'.",
            )
        )


def _inspect_ktls(report: Report) -> None:
    report.ktls = module.ktls_loaded()
    if not report.ktls:
        report.problems.append(
            Problem(
                Exit.DEGRADED,
                "The kernel's module tls is not loaded, so the daemon relays every connection "
                "itself, which is slower; load it with 'modprobe tls' as root.",
            )
        )


def _inspect_trust_store(report: Report) -> None:
    try:
        report.certificates = report.trust_store.read_bytes().count(_PEM_BEGIN)
        reason = "" if report.certificates else "it holds no PEM certificate"
    except OSError as error:
        reason = error.strerror or str(error)
    if reason:
        report.problems.append(
            Problem(
                Exit.DEGRADED,
                f"The trust store {report.trust_store} can't be used: {reason}. No server's "
                "certificate can be verified by it; install the package ca-certificates, or name "
                "another file in the policy.",
            )
        )
