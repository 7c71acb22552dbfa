"""Logging: what ``logging.getLogger(__name__)`` writes, to stderr, a line each: JSON, or for people to read.

Messages are constant phrases; values are fields: ``log.info("task deleted", extra={"task": id})``.
"""

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any

# What every record has; all else was given as a field.
_OWN = frozenset([*vars(logging.makeLogRecord({})), "message", "asctime"])
_COLORS = {"debug": "32", "info": "32", "warning": "33", "error": "31", "critical": "31"}  # ANSI


def setup(level: str, format: str) -> None:
    """Send every logger's messages of *level* and above to stderr; once, before the first message.

    *format*: ``json`` is a JSON object a line, ``console`` is for reading, ``auto`` is console on a terminal.
    """
    is_terminal = sys.stderr.isatty()
    handler = logging.StreamHandler(sys.stderr)
    is_read = format == "console" or (format == "auto" and is_terminal)
    handler.setFormatter(_Console(is_terminal) if is_read else _Json())
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


class _Json(logging.Formatter):
    """A JSON object a line: the fields, then what every line has."""

    def format(self, record: logging.LogRecord) -> str:
        entry = {
            **_fields(record),
            "event": record.getMessage(),
            "level": record.levelname.lower(),
            "logger": record.name,
            "timestamp": _time(record),
        }
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry, default=str)


class _Console(logging.Formatter):
    """A line to read, and below it the traceback that belongs to it."""

    def __init__(self, has_colors: bool) -> None:
        super().__init__()
        self._has_colors = has_colors

    def format(self, record: logging.LogRecord) -> str:
        level = record.levelname.lower()
        word = f"[{level:<8}]"
        if self._has_colors:
            word = f"\x1b[{_COLORS.get(level, '0')}m{word}\x1b[0m"
        values = "".join(f" {name}={_readable(value)}" for name, value in sorted(_fields(record).items()))
        line = f"{_time(record)} {word} {_printable(record.getMessage()):<30} [{record.name}]{values}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    return {name: value for name, value in vars(record).items() if name not in _OWN}


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def _readable(value: Any) -> str:
    """Return a field's value: as it is if that is one word, quoted otherwise, so that nothing in it looks like more."""
    text = value if isinstance(value, str) else str(value)
    return text if text.isprintable() and text and not set(text) & {" ", "'", '"', "="} else repr(text)


def _printable(text: str) -> str:
    return text if text.isprintable() else repr(text)
