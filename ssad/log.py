# SPDX-License-Identifier: BSD-3-Clause
"""Where the daemon's log goes: the journal or standard error.

Messages are sentences. They never hold key material or payload.
"""

from __future__ import annotations

import logging
import sys

from logging_journald import (  # type: ignore[import-untyped]
    Facility,
    JournaldLogHandler,
    check_journal_stream,
)


def configure(level: str, *, background: bool) -> bool:
    """Set up the root logger. True if the log goes to the journal."""
    handler: logging.Handler | None = _journal(background=background)
    in_journal = handler is not None
    form = "%(message)s"  # the journal adds the rest
    if handler is None:
        handler = logging.StreamHandler(sys.stderr)
        form = "%(asctime)s ssad[%(process)d] %(message)s"
    handler.setFormatter(logging.Formatter(form))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    # asyncio's own debug and info messages speak about its internals only.
    logging.getLogger("asyncio").setLevel(logging.WARNING)
    return in_journal


def _journal(*, background: bool) -> logging.Handler | None:
    # In the foreground standard error is what the caller looks at, unless systemd has connected
    # it to the journal anyway.
    if not (background or check_journal_stream()):
        return None
    try:
        handler: logging.Handler = JournaldLogHandler("ssad", Facility.DAEMON, use_message_id=False)
    except OSError:
        return None
    return handler
