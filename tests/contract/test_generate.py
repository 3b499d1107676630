# SPDX-License-Identifier: BSD-3-Clause
"""Generated files are those that the specification makes."""

from __future__ import annotations

import subprocess
import sys

from tests.contract.conftest import GENERATOR, ROOT, Generator

FILES = {
    "kmod/ssa_netlink.h",
    "kmod/in_tls.h",
    "kmod/genl.h",
    "kmod/genl.c",
    "ssad/wire.py",
    "ssad/wire_pyroute2.py",
}


def test_no_generated_file_of_the_repository_is_stale() -> None:
    result = subprocess.run(
        [sys.executable, str(GENERATOR), "--check"], capture_output=True, text=True, check=False
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_files_are_written_once_and_then_found_up_to_date(generator: Generator) -> None:
    first, second, check = generator.run(), generator.run(), generator.run("--check")
    assert set(first.stdout.splitlines()) == {f"wrote {path}" for path in FILES}
    assert (second.returncode, second.stdout) == (0, "")
    assert (check.returncode, check.stderr) == (0, "")


def test_every_file_says_that_it_is_generated_and_by_what(generator: Generator) -> None:
    generator.run()
    for path in FILES:
        head = generator.generated(path).splitlines()[:2]
        assert "SPDX-License-Identifier" in head[0]
        assert "netlink_proto/ssa.yaml" in head[1]
        assert "netlink_proto/generate.py" in head[1]


def test_check_names_the_stale_files_and_the_command_and_writes_nothing(
    generator: Generator,
) -> None:
    generator.run()
    before = {path: generator.generated(path) for path in FILES}
    generator.replace("value: 16384", "value: 8192")
    result = generator.run("--check")
    assert result.returncode == 1
    assert result.stderr.splitlines() == [
        f"{path} does not match ssa.yaml; run: python netlink_proto/generate.py"
        for path in ("kmod/ssa_netlink.h", "ssad/wire.py")
    ]
    assert {path: generator.generated(path) for path in FILES} == before


def test_check_notices_a_file_edited_by_hand(generator: Generator) -> None:
    generator.run()
    target = generator.root / "kmod/genl.c"
    target.write_text(target.read_text(encoding="utf-8") + "\n", encoding="utf-8")
    result = generator.run("--check")
    assert result.returncode == 1
    assert result.stderr.startswith("kmod/genl.c does not match")


def test_check_notices_a_missing_file(generator: Generator) -> None:
    result = generator.run("--check")
    assert result.returncode == 1
    assert len(result.stderr.splitlines()) == len(FILES)


def test_an_appended_attribute_reaches_every_file_that_names_attributes(
    generator: Generator,
) -> None:
    generator.replace(
        "        doc: Number of requests that wait for a completion.\n",
        "        doc: Number of requests that wait for a completion.\n"
        "      - {name: shoe-size, type: u32, checks: {min: 1, max: 70}, doc: Of the user.}\n",
    )
    generator.replace("attributes: [socket, error, text]}", "attributes: [socket, shoe-size]}")
    assert generator.run().returncode == 0
    assert "\tSSA_A_SHOE_SIZE,\n" in generator.generated("kmod/ssa_netlink.h")
    assert "\t[SSA_A_SHOE_SIZE] = NLA_POLICY_RANGE(NLA_U32, 1, 70),\n" in generator.generated(
        "kmod/genl.c"
    )
    assert "    SHOE_SIZE = 34\n" in generator.generated("ssad/wire.py")


def test_a_bound_that_a_policy_cannot_hold_gets_a_range_of_its_own(generator: Generator) -> None:
    generator.replace("attributes: [socket, error, text]}", "attributes: [socket, value-length]}")
    assert generator.run().returncode == 0
    policies = generator.generated("kmod/genl.c")
    assert (
        "static const struct netlink_range_validation ssa_a_value_length_range = {\n"
        "\t.min = 0,\n\t.max = SSA_VALUE_MAX,\n};\n"
    ) in policies
    assert (
        "[SSA_A_VALUE_LENGTH] = NLA_POLICY_FULL_RANGE(NLA_U32, &ssa_a_value_length_range),"
    ) in policies


def test_a_command_without_attributes_has_no_policy_so_that_the_kernel_refuses_any() -> None:
    tables = (ROOT / "kmod/genl.c").read_text(encoding="utf-8")
    entry = tables.split(".cmd = SSA_CMD_MODULE_GET,")[1].split("}")[0]
    assert ".policy" not in entry
    assert ".maxattr" not in entry
