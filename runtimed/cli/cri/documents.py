"""Files that describe a pod or a container: CRI's messages as JSON or YAML, with either way to write a field's name."""

import json
import sys
from pathlib import Path
from typing import Any, TypeVar

from google.protobuf import json_format
from google.protobuf.message import Message

from runtimed.errors import InvalidArgument, os_errors

M = TypeVar("M", bound=Message)
_MOST = 1 << 20  # bytes


def read(path: str, into: M) -> M:
    """Return *into* with what the file says; ``-`` is standard input.

    Raises:
        NotFound, PermissionDenied: of the file.
        InvalidArgument: it is not of that form; the message says which field.
    """
    name = "standard input" if path == "-" else f"file {path!r}"
    with os_errors(name):
        text = sys.stdin.buffer.read(_MOST + 1) if path == "-" else _read(Path(path))
    if len(text) > _MOST:
        raise InvalidArgument(f"{name} is larger than {_MOST} bytes")
    document = _parsed(name, text)
    if not isinstance(document, dict):
        raise InvalidArgument(f"{name}: it is not a {into.DESCRIPTOR.name}, an object with its fields")
    try:
        return json_format.ParseDict(document, into)
    except (json_format.ParseError, TypeError, ValueError, RecursionError) as exc:
        raise InvalidArgument(f"{name}: {exc}") from None


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(_MOST + 1)


def _parsed(name: str, text: bytes) -> Any:
    try:
        return json.loads(text)
    except ValueError as problem:
        if text.lstrip()[:1] == b"{":
            raise InvalidArgument(f"{name} is not JSON: {problem}") from None
    import yaml  # loading it takes longer than a call

    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as exc:
        raise InvalidArgument(f"{name} is neither JSON nor YAML: {exc}") from None
