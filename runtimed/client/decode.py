"""Messages of unknown type (``Any``) as JSON values."""

import json
from typing import Any

from google.protobuf import json_format, message_factory
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.descriptor_pool import Default
from google.protobuf.message import DecodeError


def any_to_json(message: AnyMessage) -> Any:
    """Return what *message* holds: our API's types and JSON documents as values, anything else as its type and hex."""
    name = message.type_url.rpartition("/")[2]
    try:
        if message.value[:1] == b"{":
            return json.loads(message.value)
        found = message_factory.GetMessageClass(Default().FindMessageTypeByName(name)).FromString(message.value)
        return json_format.MessageToDict(found, preserving_proto_field_name=True)
    except (KeyError, ValueError, DecodeError, RecursionError, TypeError):
        return {"@type": message.type_url, "hex": message.value.hex()}
