# SPDX-License-Identifier: BSD-3-Clause
"""Makes the C and Python files of the contract from ssa.yaml.

python netlink_proto/generate.py            write the files
python netlink_proto/generate.py --check    exit 1 if a file is not what it would be
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from c_headers import Headers
from c_tables import Tables
from document import SpecError
from python_code import pyroute2_module, wire_module
from spec import Spec, load

ROOT = Path(__file__).resolve().parent.parent
COMMAND = "python netlink_proto/generate.py"


def files(spec: Spec) -> dict[str, str]:
    """Content of every generated file, by its path in the repository."""
    headers, tables = Headers(spec), Tables(spec)
    return {
        "kmod/ssa_netlink.h": headers.wire(),
        "kmod/in_tls.h": headers.public(),
        "kmod/genl.h": tables.header(),
        "kmod/genl.c": tables.source(),
        "ssad/wire.py": wire_module(spec),
        "ssad/wire_pyroute2.py": pyroute2_module(spec),
    }


def stale(root: Path, contents: dict[str, str]) -> list[str]:
    """Paths whose file is missing or has another content."""

    def differs(path: str, content: str) -> bool:
        try:
            return (root / path).read_text(encoding="utf-8") != content
        except FileNotFoundError:
            return True

    return [path for path, content in contents.items() if differs(path, content)]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Make the files of the netlink contract.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if stale")
    parser.add_argument("--spec", type=Path, default=ROOT / "netlink_proto" / "ssa.yaml")
    parser.add_argument("--root", type=Path, default=ROOT, help="where the files belong")
    options = parser.parse_args(arguments)
    try:
        contents = files(load(options.spec))
    except SpecError as error:
        print(error, file=sys.stderr)
        return 1
    paths = stale(options.root, contents)
    if options.check:
        for path in paths:
            print(f"{path} does not match {options.spec.name}; run: {COMMAND}", file=sys.stderr)
        return 1 if paths else 0
    for path in paths:
        target = options.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(contents[path], encoding="utf-8")
        print(f"wrote {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
