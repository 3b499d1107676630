# SPDX-License-Identifier: BSD-3-Clause
"""Rights that are given up, seen from outside: in /proc."""

from __future__ import annotations

import os
import pwd
import resource
import signal
import subprocess
from pathlib import Path

import pytest

from ssad import privileges
from ssad.privileges import NotPermitted
from tests.unit.child import in_child

_NET_ADMIN = f"{1 << privileges.CAP_NET_ADMIN:016x}"
_NONE = f"{0:016x}"

pytestmark = pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")


def status() -> dict[str, str]:
    lines = Path("/proc/self/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def test_only_net_admin_is_kept_and_then_nothing() -> None:
    def give_up() -> tuple[dict[str, str], dict[str, str]]:
        privileges.keep_only_net_admin(None)
        before = status()
        privileges.drop_all()
        return before, status()

    before, after = in_child(give_up)
    assert [before[name] for name in ("CapPrm", "CapEff", "CapInh")] == [*[_NET_ADMIN] * 2, _NONE]
    assert [after[name] for name in ("CapPrm", "CapEff", "CapInh", "CapAmb")] == [_NONE] * 4
    assert after["NoNewPrivs"] == "1"
    assert "0" not in after["Uid"].split()
    assert "0" not in after["Gid"].split()
    assert "0" not in after["Groups"].split()


@pytest.mark.root
def test_net_admin_can_be_passed_on_to_a_program_that_gives_up_the_rest() -> None:
    def pass_on() -> list[str]:
        privileges.keep_only_net_admin(None)
        privileges.pass_on()
        found = subprocess.run(
            ["/bin/grep", "^Cap[PEI]", "/proc/self/status"], check=True, capture_output=True
        ).stdout.decode()
        privileges.keep_only_net_admin(None)
        return [*found.split()[1::2], status()["CapInh"], status()["CapAmb"]]

    assert in_child(pass_on) == [_NET_ADMIN] * 3 + [_NONE] * 2


@pytest.mark.root
def test_what_was_given_up_does_not_come_back() -> None:
    def try_to_return() -> list[str]:
        privileges.keep_only_net_admin(None)
        privileges.drop_all()
        with pytest.raises(PermissionError):
            os.setuid(0)
        with pytest.raises(NotPermitted):
            privileges.keep_only_net_admin(None)
        return [status()["CapEff"]]

    assert in_child(try_to_return) == [_NONE]


def test_without_rights_it_says_what_is_needed() -> None:
    def without_capabilities() -> None:
        if os.geteuid() == 0:
            nobody = pwd.getpwnam("nobody").pw_uid
            os.setresuid(nobody, nobody, nobody)
        privileges.drop_all()
        privileges.keep_only_net_admin(None)

    with pytest.raises(NotPermitted, match="CAP_NET_ADMIN"):
        in_child(without_capabilities)


def test_an_unknown_user_is_named() -> None:
    with pytest.raises(NotPermitted, match="no-such-user"):
        in_child(lambda: privileges.keep_only_net_admin("no-such-user"))


def test_who_has_lost_its_parent_already_is_killed() -> None:
    pid = os.fork()
    if pid == 0:
        try:
            privileges.die_with(os.getpid())  # which is not its parent
        finally:
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL


def test_as_many_files_may_be_open_as_the_hard_limit_says() -> None:
    def raise_from_64() -> tuple[int, int]:
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))
        privileges.raise_file_limit()
        return resource.getrlimit(resource.RLIMIT_NOFILE)

    soft, hard = in_child(raise_from_64)
    assert soft == hard
