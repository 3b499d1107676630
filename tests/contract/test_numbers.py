# SPDX-License-Identifier: BSD-3-Clause
"""Numbers are only ever appended, and C and Python have the same ones.

numbers.txt is not generated: a generated list would follow a mistake instead
of catching it.
"""

from __future__ import annotations

import inspect
import re
import shutil
import subprocess
from enum import IntEnum
from pathlib import Path

import pytest

from ssad import wire
from tests.contract.conftest import ROOT

NUMBERS = Path(__file__).with_name("numbers.txt")

# How C names the members of a Python enum.
C_PREFIX = {
    "Command": "SSA_CMD_",
    "Attribute": "SSA_A_",
    "SocketState": "SSA_SOCKET_STATE_",
    "Transport": "SSA_TRANSPORT_",
    "EventKind": "SSA_EVENT_KIND_",
    "TlsOption": "",
    "FAMILY_VERSION": "SSA_FAMILY_VERSION",
}

LANGUAGES = {"c": ("gcc", "-std=c99"), "c++": ("g++", "-std=c++11")}
STRICT = ["-Wall", "-Wextra", "-Wpedantic", "-Werror", "-fsyntax-only"]


def recorded() -> dict[str, int]:
    lines = NUMBERS.read_text(encoding="utf-8").splitlines()
    entries = [line.split(" = ") for line in lines if line and not line.startswith("#")]
    return {name: int(value) for name, value in entries}


def current() -> dict[str, int]:
    enums = [
        item
        for _, item in inspect.getmembers(wire, inspect.isclass)
        if issubclass(item, IntEnum) and item is not IntEnum
    ]
    return {f"{enum.__name__}.{member.name}": member.value for enum in enums for member in enum}


def c_name(name: str) -> str:
    enum, _, member = name.partition(".")
    return C_PREFIX.get(enum, enum) + member


def test_every_recorded_number_is_still_the_same() -> None:
    lone = {name: getattr(wire, name) for name in recorded() if "." not in name}
    now = current() | lone
    assert {name: now.get(name) for name in recorded()} == recorded()


def test_every_number_is_recorded() -> None:
    missing = current().keys() - recorded().keys()
    assert not missing, f"append to {NUMBERS.name}: {', '.join(sorted(missing))}"


def compile_userland(language: str, source: str, folder: Path) -> None:
    compiler, standard = LANGUAGES[language]
    assert shutil.which(compiler), f"{compiler} is missing: install gcc and g++"
    path = folder / "program"
    path.write_text(source, encoding="utf-8")
    command = [compiler, standard, *STRICT, "-x", language, "-I", str(ROOT / "kmod"), str(path)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("language", LANGUAGES)
def test_c_programs_see_the_recorded_numbers(language: str, tmp_path: Path) -> None:
    # An array of negative size is what C99 has for a static assertion.
    checks = [
        f"extern char check_{i}[({c_name(name)}) == {value} ? 1 : -1];"
        for i, (name, value) in enumerate(recorded().items())
    ]
    source = '#include "in_tls.h"\n#include "ssa_netlink.h"\n' + "\n".join(checks) + "\n"
    compile_userland(language, source, tmp_path)


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("order", ["before", "after"])
def test_the_public_header_goes_with_the_system_headers(
    language: str, order: str, tmp_path: Path
) -> None:
    system = [
        f"#include <{name}>"
        for name in ("sys/socket.h", "netinet/in.h", "netinet/tcp.h", "linux/tls.h")
    ]
    ours = ['#include "in_tls.h"']
    source = """
    int dial(struct sockaddr_host *host);
    int dial(struct sockaddr_host *host)
    {
        host->sh_family = AF_HOSTNAME;
        host->sh_port = htons(443);
        host->sh_addr.name[0] = 0;
        int fd = socket(AF_INET, SOCK_STREAM, IPPROTO_TLS);
        return connect(fd, (struct sockaddr *)host, sizeof(*host)) + TLS_REMOTE_HOSTNAME;
    }
    """
    lines = system + ours if order == "after" else ours + system
    compile_userland(language, "\n".join(lines) + source, tmp_path)


def test_the_host_address_is_laid_out_as_in_the_secure_socket_api(tmp_path: Path) -> None:
    source = """
    #include <stddef.h>
    #include "in_tls.h"
    extern char size[sizeof(struct sockaddr_host) == 124 ? 1 : -1];
    extern char fits[sizeof(struct sockaddr_host) <= sizeof(struct __kernel_sockaddr_storage)
        ? 1 : -1];
    extern char port[offsetof(struct sockaddr_host, sh_port) == 2 ? 1 : -1];
    extern char name[offsetof(struct sockaddr_host, sh_addr.name) == 4 ? 1 : -1];
    """
    compile_userland("c", source, tmp_path)


def test_the_hostname_family_is_one_that_no_kernel_implements() -> None:
    macros = subprocess.run(
        ["gcc", "-dM", "-E", "-include", "sys/socket.h", "-x", "c", "/dev/null"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    names = re.findall(rf"^#define PF_(\w+) {wire.AF_HOSTNAME}$", macros, re.MULTILINE)
    assert names == ["ASH"]
