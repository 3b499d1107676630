# SPDX-License-Identifier: BSD-3-Clause
"""python -m ssad"""

from ssad.cli import main

if __name__ == "__main__":
    main(prog_name="ssad")
