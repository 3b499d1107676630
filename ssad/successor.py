# SPDX-License-Identifier: BSD-3-Clause
"""What a restart executes: this program in a trial, or in the place of the one that was there."""

from __future__ import annotations

import logging
import os
import sys

from ssad import config, daemon, privileges
from ssad.config import Faulty
from ssad.errors import Refused
from ssad.exits import CommandError, Exit
from ssad.restart import TRY, Legacy

logger = logging.getLogger(__name__)


def main() -> int:
    """Do what the command line says: what, the file with the legacy, the file for the answer."""
    what, legacy, answer = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    if what == TRY:
        return _try(legacy, answer)
    try:
        daemon.take_over(Legacy.read(legacy))
    except CommandError as error:
        logger.error("%s", error)
        return error.code
    return Exit.DONE


def _try(legacy: int, answer: int) -> int:
    """Do what comes before the workers: answer with the policy, or with what is wrong."""
    try:
        options = daemon.options_of(Legacy.read(legacy))
        daemon.give_up_root(options)
        os.write(answer, config.dump(daemon.load(options)).encode())
    except (CommandError, privileges.NotPermitted) as error:
        os.write(answer, str(error).encode())
        return Exit.FAILED
    except (Faulty, Refused) as error:
        text = str(error) if isinstance(error, Faulty) else error.text
        os.write(answer, f"The policy can't be used.\n{text}".encode())
        return Exit.FAILED
    except (ValueError, TypeError, KeyError) as error:
        text = f"The new program does not understand what the old one leaves to it: {error!r}."
        os.write(answer, f"{text} Use 'ssad stop' and 'ssad start'.".encode())
        return Exit.FAILED
    return Exit.DONE


if __name__ == "__main__":
    sys.exit(main())
