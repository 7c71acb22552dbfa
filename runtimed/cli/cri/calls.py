"""The two services of CRI, and their messages as values."""

import json
from datetime import UTC, datetime
from typing import Any

from google.protobuf.message import Message

from runtimed.api import cri_pb2 as pb
from runtimed.cli.client import service

NAMESPACE = "k8s.io"  # where containerd's API has what a kubelet makes
RUNTIME = service(pb, "RuntimeService")
IMAGES = service(pb, "ImageService")
_NS = 1_000_000_000


def as_json(message: Message) -> dict[str, Any]:
    """Return *message* with the names of its fields: numbers as such, times as RFC 3339, without messages not set."""
    return {
        field.name: _values(message, field)
        for field in message.DESCRIPTOR.fields
        if field.is_repeated or field.message_type is None or message.HasField(field.name)
    }


def verbose(answer: Any) -> dict[str, Any]:
    """Return an answer with ``info``, whose values are JSON in it."""
    return {**as_json(answer), "info": {key: _decoded(text) for key, text in sorted(answer.info.items())}}


def at(nanoseconds: int) -> str | None:
    """Return a time as RFC 3339, None for one that is not set."""
    if nanoseconds <= 0:
        return None
    seconds, rest = divmod(nanoseconds, _NS)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{rest:09d}Z"


def _values(message: Message, field: Any) -> Any:
    value = getattr(message, field.name)
    if not field.is_repeated:
        return _value(value, field)
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        kind = field.message_type.fields_by_name["value"]
        return {str(key): _value(value[key], kind) for key in sorted(value)}
    return [_value(one, field) for one in value]


def _value(value: Any, field: Any) -> Any:
    if field.message_type is not None:
        return value.value if field.message_type.name in {"Int64Value", "UInt64Value"} else as_json(value)
    if field.enum_type is not None:
        known = field.enum_type.values_by_number.get(value)
        return known.name if known else value
    if field.name == "timestamp" or (field.name.endswith("_at") and isinstance(value, int)):
        return at(value)
    return value.hex() if isinstance(value, bytes) else value


def _decoded(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text
