"""Logging: what ``logging.getLogger(__name__)`` writes, rendered by structlog to stderr.

Messages are constant phrases; values are fields: ``log.info("task deleted", extra={"task": id})``, or bound for
everything that is logged further down: ``with log.bound(namespace=ns): ...``.
"""

import logging
import sys
from typing import Any

import structlog
from structlog.contextvars import bound_contextvars as bound  # noqa: F401  the name it has here

_SHARED = (
    structlog.contextvars.merge_contextvars,
    structlog.stdlib.add_log_level,
    structlog.stdlib.add_logger_name,
    structlog.stdlib.ExtraAdder(),
    structlog.processors.TimeStamper(fmt="iso", utc=True),
)


def setup(level: str, format: str) -> None:
    """Send every logger's messages of *level* and above to stderr; once, before the first message.

    *format*: ``json`` is a JSON object a line, ``console`` is for reading, ``auto`` is console on a terminal.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(structlog.stdlib.ProcessorFormatter(foreign_pre_chain=_SHARED, processors=_rendering(format)))
    logging.root.handlers[:] = [handler]
    # A log that cannot be written (the pipe's reader is gone, the disk is full) must not fail a request.
    logging.raiseExceptions = False
    set_level(level)


def set_level(level: str) -> None:
    """Change the level at any time: debug, info, warning or error."""
    logging.root.setLevel(level.upper())
    # These two are chatty at debug and never about us.
    for name in ("asyncio", "grpc._cython.cygrpc"):
        logging.getLogger(name).setLevel(max(logging.INFO, logging.root.level))


def _rendering(format: str) -> list[Any]:
    remove = structlog.stdlib.ProcessorFormatter.remove_processors_meta
    if format == "console" or (format == "auto" and sys.stderr.isatty()):
        plain = structlog.dev.plain_traceback  # the default one would import rich
        return [remove, structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=plain)]
    return [remove, structlog.processors.format_exc_info, structlog.processors.JSONRenderer(default=str)]
