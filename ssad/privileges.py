# SPDX-License-Identifier: BSD-3-Clause
"""Giving up the rights that the daemon does not need (capabilities(7), prctl(2)).

A worker needs CAP_NET_ADMIN for two moments: to register with the module, and to make the receive
buffer of its netlink socket large. After that it holds no capability at all. The main process keeps
this one, for the workers that it may have to start later; it talks to nobody.
"""

from __future__ import annotations

import ctypes
import os
import pwd
import resource
import signal
import struct
from collections.abc import Iterable

CAP_NET_ADMIN = 12

_PR_SET_PDEATHSIG = 1
_PR_SET_DUMPABLE = 4
_PR_SET_KEEPCAPS = 8
_PR_SET_NO_NEW_PRIVS = 38
_PR_CAP_AMBIENT = 47
_PR_CAP_AMBIENT_RAISE = 2
_CAPABILITY_VERSION_3 = 0x20080522  # capget(2): 64 capabilities, in two structs of three words

_DEFAULT_USERS = ("ssad", "nobody")

_libc = ctypes.CDLL(None, use_errno=True)


class NotPermitted(Exception):
    """The daemon was started without the rights that it needs, or can't become a user."""


def raise_file_limit() -> None:
    """Allow as many open files as the hard limit says: a channel takes two of them."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def keep_only_net_admin(user: str | None) -> None:
    """Give up everything but CAP_NET_ADMIN, and root for `user` (default: ssad, else nobody).

    Must run before any thread is started: capset(2) works on one thread only. Raises NotPermitted.
    """
    if os.geteuid() == 0:
        account = _find_user(user)
        _prctl(_PR_SET_KEEPCAPS, 1)
        os.setgroups([])
        os.setresgid(account.pw_gid, account.pw_gid, account.pw_gid)
        os.setresuid(account.pw_uid, account.pw_uid, account.pw_uid)
        _prctl(_PR_SET_KEEPCAPS, 0)
    elif user is not None and user != pwd.getpwuid(os.geteuid()).pw_name:
        raise NotPermitted(f"Only root can start ssad as user {user!r}; start it with sudo.")
    if CAP_NET_ADMIN not in _permitted():
        raise NotPermitted(
            "ssad needs CAP_NET_ADMIN to register with the module; start it as root."
        )
    _keep([CAP_NET_ADMIN])
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    # Session keys and programs' private keys are in this memory: no core dumps, no ptrace.
    _prctl(_PR_SET_DUMPABLE, 0)


def pass_on() -> None:
    """Let the program that takes this process's place keep CAP_NET_ADMIN (execve(2)); it gives up
    what it need not pass on with keep_only_net_admin(). Raises OSError."""
    _keep([CAP_NET_ADMIN], inheritable=[CAP_NET_ADMIN])
    _prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, CAP_NET_ADMIN)


def drop_all() -> None:
    """Give up CAP_NET_ADMIN as well. There is no way back."""
    _keep([])


def die_with(parent: int) -> None:
    """Have the kernel kill this process when its parent ends, or do so if it has ended already.

    Must run after keep_only_net_admin(): whoever becomes another user is no longer killed
    (PR_SET_PDEATHSIG in prctl(2)). drop_all() does not harm. The parent must have one thread only.
    """
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)


def _find_user(user: str | None) -> pwd.struct_passwd:
    for name in _DEFAULT_USERS if user is None else (user,):
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    if user is None:
        raise NotPermitted("There is neither a user ssad nor a user nobody to run as; name one.")
    raise NotPermitted(f"There is no user {user!r} to run as; create it or name another one.")


def _prctl(operation: int, value: int, more: int = 0) -> None:
    if _libc.prctl(operation, ctypes.c_ulong(value), ctypes.c_ulong(more), 0, 0) != 0:
        _raise_errno(f"prctl({operation})")


def _permitted() -> frozenset[int]:
    data = ctypes.create_string_buffer(24)
    if _libc.capget(struct.pack("=Ii", _CAPABILITY_VERSION_3, 0), data) != 0:
        _raise_errno("capget")
    _, low, _, _, high, _ = struct.unpack("=6I", data.raw)
    bits = high << 32 | low
    return frozenset(number for number in range(64) if bits >> number & 1)


def _keep(capabilities: Iterable[int], inheritable: Iterable[int] = ()) -> None:
    bits, passed = (
        sum(1 << number for number in numbers) for numbers in (capabilities, inheritable)
    )
    low, high = bits & 0xFFFFFFFF, bits >> 32
    # effective, permitted, inheritable; first of capabilities 0 to 31, then of 32 to 63
    data = struct.pack("=6I", low, low, passed & 0xFFFFFFFF, high, high, passed >> 32)
    if _libc.capset(struct.pack("=Ii", _CAPABILITY_VERSION_3, 0), data) != 0:
        _raise_errno("capset")


def _raise_errno(call: str) -> None:
    number = ctypes.get_errno()
    raise OSError(number, f"{call}: {os.strerror(number)}")
