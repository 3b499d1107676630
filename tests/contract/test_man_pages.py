# SPDX-License-Identifier: BSD-3-Clause
"""The man pages say what the code does: options, states and errnos are compared with its data."""

from __future__ import annotations

import ast
import gzip
import re
import subprocess
from pathlib import Path

import pytest

from ssad.exits import Exit
from ssad.wire import TlsOption
from tests import levels
from tests.contract.conftest import ROOT

MAN = ROOT / "man"
PAGES = sorted(MAN.glob("*.[1-9]"))
CALLS = {"bind", "connect", "listen", "accept"}

# What a file of the daemon refuses, and the page of the call that then fails.
REFUSED_IN = {
    "getsockopt-tls.2": ["checks.py", "credentials.py", "settings.py", "trust.py", "values.py"],
    "connect-tls.2": [
        *("connection.py", "context.py", "errors.py", "handshake.py", "ktls.py"),
        *("resolver.py", "revocation.py"),
    ],
}
# The module's functions that programs call, and the page of each.
PAGE_OF = {
    "ssa_sock_init": "socket-tls.2",
    "ssa_sock_bind": "bind-tls.2",
    "ssa_sock_connect": "connect-tls.2",
    "ssa_sock_listen": "listen-tls.2",
    "ssa_sock_accept": "accept-tls.2",
    "ssa_setsockopt": "getsockopt-tls.2",
    "ssa_getsockopt": "getsockopt-tls.2",
    "ssa_sendmsg": "tls-socket.7",
    "ssa_recvmsg": "tls-socket.7",
}
TYPES = {
    "VALUE_U32": "int",
    "VALUE_U64": "u64",
    "VALUE_STRING": "string",
    "VALUE_STRING_OR_FILE": "string-or-file",
}
STATES = {"0": "-", "NEW": "NEW", "CONNECTED": "CONNECTED", "ANY": "any"}


def page(name: str) -> str:
    return (MAN / name).read_text()


def column_table(text: str, first: str) -> list[list[str]]:
    """Return the rows of the .Bl -column list whose first heading is `first`; no macros in them."""
    [found] = re.findall(
        rf"^\.Bl -column .*\n\.It Sy {first} .*\n((?:\.It .*\n)+)\.El", text, re.MULTILINE
    )
    rows = [line.removeprefix(".It ").replace(r"\-", "-") for line in found.splitlines()]
    return [[re.sub(r"^(Dv|Er) ", "", cell.strip()) for cell in row.split("Ta")] for row in rows]


def section(text: str, name: str) -> str:
    return text.split(f".Sh {name}\n")[1].split("\n.Sh ", maxsplit=1)[0]


def errors(name: str) -> list[str]:
    # mdoc(7) has no section for them outside of 2, 3, 4 and 9.
    text = page(name).replace(".Ss Errors\n", ".Sh ERRORS\n").replace("\n.Ss ", "\n.Sh ")
    return re.findall(r"^\.It Bq Er (\w+)$", section(text, "ERRORS"), re.MULTILINE)


def c_source(name: str) -> str:
    """Return a file of the module without its comments."""
    return re.sub(r"/\*.*?\*/", "", (ROOT / "kmod" / name).read_text(), flags=re.DOTALL)


def c_options() -> dict[str, list[str]]:
    """Return set, get, type and maximum of each option of sockopt.c's table, as the page has it."""
    header = (ROOT / "kmod/ssa_netlink.h").read_text()
    limits = dict(re.findall(r"^#define\s+(SSA_\w+_MAX)\s+(\d+)$", header, re.MULTILINE))
    rows = {}
    for arguments in re.findall(
        r"^\tOPTION\((.*?)\),$", c_source("sockopt.c"), re.MULTILINE | re.DOTALL
    ):
        name, settable, gettable, kind, *rest = [part.strip() for part in arguments.split(",")]
        largest = limits[rest[1]] if len(rest) > 1 else ""
        repeatable = "*" if rest and rest[0] == "true" else ""
        rows[name] = [STATES[settable], STATES[gettable], TYPES[kind], largest + repeatable]
    assert len(rows) > 10
    return rows


def test_every_option_has_its_row_with_its_number() -> None:
    rows = column_table(page("getsockopt-tls.2"), "No.")
    assert [(int(row[0]), row[1]) for row in rows] == [(o.value, o.name) for o in TlsOption]


def test_what_the_page_says_of_options_is_what_the_module_does() -> None:
    text = page("getsockopt-tls.2")
    described = {row[1]: row[2:] for row in column_table(text, "No.")}
    known = c_options()
    assert described == known


def test_every_option_is_explained() -> None:
    text = page("getsockopt-tls.2")
    tags = re.findall(r"^\.It Dv (TLS_.*)$", text, re.MULTILINE)
    explained = [name for tag in tags for name in tag.split(" , ")]
    assert sorted(set(explained) - {"TLS_REMOTE_HOSTNAME"}) == sorted(o.name for o in TlsOption)
    assert len(explained) == len(set(explained))


def test_the_options_that_are_refused_are_those_of_the_module() -> None:
    rows = re.findall(r"^\t\[(\w+)\] = \{ (\w+), (\w+), ", c_source("levels.c"), re.MULTILINE)
    assert len(rows) > 100
    refused = {name for name, *what in rows if "REFUSED" in what}
    listed = section(page("getsockopt-tls.2"), "DESCRIPTION").split(".Ss Options of other levels")[
        1
    ]
    tags = re.findall(r"^\.It Dv (.*)$", listed, re.MULTILINE)
    assert {name for tag in tags for name in tag.split(" , ")} == refused


def socket_options() -> dict[str, tuple[str, str, list[str]]]:
    """Return what is done to set and to get each option of SOL_SOCKET, and the errnos that are
    said, as the page has it."""
    text = section(page("getsockopt-tls.2"), "DESCRIPTION")
    listed = text.split(".Ss Options of SOL_SOCKET\n")[1].split("\n.Ss ", maxsplit=1)[0]
    found = {}
    for set_, get, group in re.findall(
        r"^Set: (\w+); get: (\w+):\n\.Bl (.*?)^\.El$", listed, re.MULTILINE | re.DOTALL
    ):
        for tags, why in re.findall(r"^\.It Dv (.*)\n((?:(?!\.It ).*\n)+)", group, re.MULTILINE):
            for name in tags.split(" , "):
                assert name not in found, f"{name} is listed twice"
                found[name] = set_, get, re.findall(r"^\.Er (\w+)", why, re.MULTILINE)
    return found


def test_what_the_page_says_of_options_of_sockets_is_what_the_module_does() -> None:
    known: dict[str, tuple[str, str, list[str]]] = {}
    for row in levels.rows("socket_rows"):
        name = re.sub(r"_(OLD|NEW)$", "", row.name)  # programs say neither
        does = row.set.lower(), row.get.lower(), re.findall(r"\bE[A-Z]{3,}\b", row.why)
        assert known.setdefault(name, does) == does, f"the kinds of {name} differ"
    assert socket_options() == known


def c_states() -> tuple[list[str], dict[str, list[str]]]:
    """Return the columns and the rows of states.c's table; 0 is ok."""
    source = (ROOT / "kmod/states.c").read_text()
    [columns] = re.findall(r"^\t/\*\s+(NEW .*?)\s+\*/$", source, re.MULTILINE)
    rows = {}
    for arguments in re.findall(r"^\tCALL\((.*?)\),$", source, re.MULTILINE | re.DOTALL):
        name, *cells = [part.strip() for part in arguments.split(",")]
        rows[name.lower()] = ["ok" if cell == "0" else cell.removeprefix("-") for cell in cells]
    assert rows.keys() >= CALLS
    return columns.split(), rows


def test_the_table_of_states_is_that_of_the_module() -> None:
    columns, rows = c_states()
    text = page("tls-socket.7")
    assert f".It Sy Call Ta Sy {' Ta Sy '.join(columns)}\n" in text
    assert {row[0]: row[1:] for row in column_table(text, "Call")} == rows


@pytest.mark.parametrize("call", sorted(CALLS))
def test_a_call_lists_the_errors_of_every_state(call: str) -> None:
    wanted = set(c_states()[1][call]) - {"ok"}
    assert wanted <= set(errors(f"{call}-tls.2"))


def c_returns() -> dict[str, str]:
    """Return what the kernel-doc of each function of the module says that it returns."""
    found = {}
    for path in (ROOT / "kmod").glob("*.c"):
        for name, text in re.findall(
            r"^/\*\*\n \* (\w+) - (.*?)\*/", path.read_text(), re.MULTILINE | re.DOTALL
        ):
            found[name] = text.partition("Return: ")[2]
    return found


@pytest.mark.parametrize(("function", "name"), PAGE_OF.items(), ids=list(PAGE_OF))
def test_what_a_function_of_the_module_returns_is_listed(function: str, name: str) -> None:
    returns = c_returns()
    wanted: set[str] = set()
    functions = [function]  # and those whose errors it passes on
    for each in functions:
        wanted |= set(re.findall(r"-(E[A-Z]+)\b", returns[each]))
        functions += set(re.findall(r"\b(ssa_\w+)\(\)", returns[each])) - set(functions)
    assert len(wanted) > 2
    assert wanted <= set(errors(name))


def raised(path: Path) -> set[str]:
    """Return the names in errno.NAME that a file of the daemon gives to exceptions."""
    return {
        argument.attr
        for call in ast.walk(ast.parse(path.read_text()))
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name)
        if call.func.id in {"Refused", "HandshakeError", "Revoked"}
        for argument in call.args
        if isinstance(argument, ast.Attribute)
        if isinstance(argument.value, ast.Name) and argument.value.id == "errno"
    }


@pytest.mark.parametrize(("name", "files"), REFUSED_IN.items())
def test_what_the_daemon_refuses_with_is_listed(name: str, files: list[str]) -> None:
    found: set[str] = set().union(*(raised(ROOT / "ssad" / file) for file in files))
    assert len(found) > 1
    assert found <= set(errors(name))


@pytest.mark.parametrize("name", [path.name for path in PAGES if path.suffix == ".2"])
def test_errors_are_listed_once(name: str) -> None:
    listed = errors(name)
    assert listed
    assert len(listed) == len(set(listed))


def test_the_exit_codes_are_those_of_the_commands() -> None:
    listed = re.findall(r"^\.It (\d)$", section(page("ssad.8"), "EXIT STATUS"), re.MULTILINE)
    assert [int(code) for code in listed] == list(Exit)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_a_page_is_clean_and_whole(path: Path) -> None:
    command = ["mandoc", "-T", "lint", "-W", "warning", str(path)]
    said = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    # man-pages(7) has EXAMPLES behind ERRORS, mdoc(7) before.
    order = "sections out of conventional order: Sh EXAMPLES"
    assert [line for line in said.splitlines() if order not in line] == []
    assert f".Dt {path.stem.upper()} {path.suffix[1:]}\n" in path.read_text()
    if path.suffix == ".2":
        headings = re.findall(r"^\.Sh (.*)$", path.read_text(), re.MULTILINE)
        order_wanted = ["NAME", "SYNOPSIS", "DESCRIPTION", "RETURN VALUE", "ERRORS", "NOTES"]
        order_wanted += ["BUGS", "EXAMPLES", "SEE ALSO"]
        assert headings == [name for name in order_wanted if name in headings]


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_pages_that_are_referred_to_exist(path: Path) -> None:
    for name, number in re.findall(r"^\.Xr (\S+) (\d)", path.read_text(), re.MULTILINE):
        ours = "tls" in name or "ssa" in name
        assert not ours or (MAN / f"{name}.{number}").exists(), f"{name}({number})"


def examples() -> list[tuple[str, str]]:
    block = r"(?ms)^\.Bd -literal\n(#include.*?)^\.Ed$"
    return [
        (path.name, text.replace(r"\e", "\\"))
        for path in PAGES
        for text in re.findall(block, path.read_text())
    ]


@pytest.mark.parametrize(("name", "text"), examples(), ids=[name for name, _ in examples()])
def test_an_example_can_be_compiled(name: str, text: str, tmp_path: Path) -> None:
    source = tmp_path / f"{name}.c"
    source.write_text(text)
    command = ["gcc", "-std=gnu11", "-Wall", "-Wextra", "-Werror", "-O2", "-fsyntax-only"]
    command += ["-I", str(ROOT / "kmod"), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def make(verb: str, directory: str, destination: Path) -> None:
    command = ["make", "-s", "-C", str(ROOT / directory), verb, f"DESTDIR={destination}"]
    subprocess.run(command, check=True)


def test_pages_and_headers_are_installed_and_removed(tmp_path: Path) -> None:
    make("install", "man", tmp_path)
    make("install-headers", "kmod", tmp_path)
    for path in PAGES:
        installed = tmp_path / f"usr/share/man/man{path.suffix[1:]}/{path.name}.gz"
        assert gzip.decompress(installed.read_bytes()) == path.read_bytes()
    program = tmp_path / "program.c"
    program.write_text("#include <in_tls.h>\n#include <ssa_netlink.h>\nint number = IPPROTO_TLS;\n")
    include = tmp_path / "usr/include"
    subprocess.run(["gcc", "-fsyntax-only", "-I", str(include), str(program)], check=True)
    make("uninstall", "man", tmp_path)
    make("uninstall", "kmod", tmp_path)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [program]
