"""Protocol Buffers, as much of them as the Task API needs.

The messages look like those that protoc generates: keyword arguments, attributes with the default of what is absent,
``SerializeToString``, ``FromString``; but an absent message is None, and a repeated field an ordinary list. The
library would do it faster, but loading and using it costs each shim 0.8 MB of memory, which this does for 0.1.

The encoding: https://protobuf.dev/programming-guides/encoding/.
"""

import struct
from collections.abc import Iterator
from typing import Any, ClassVar, Self

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_DOUBLE = struct.Struct("<d")
_MASK = (1 << 64) - 1
_LONGEST_VARINT = 10  # bytes


class DecodeError(Exception):
    """The bytes are no such message."""


class _Field:
    """One field: *kind* is how it is encoded, *type* the class of a message."""

    __slots__ = ("default", "kind", "name", "number", "repeated", "type")

    def __init__(self, number: int, kind: str, default: Any, type: Any = None, *, repeated: bool = False) -> None:
        self.number = number
        self.kind = kind
        self.default = default
        self.type = type
        self.repeated = repeated
        self.name = ""


def string(number: int) -> Any:
    return _Field(number, "string", "")


def strings(number: int) -> Any:
    return _Field(number, "string", (), repeated=True)


def bytestring(number: int) -> Any:
    return _Field(number, "bytes", b"")


def boolean(number: int) -> Any:
    return _Field(number, "bool", False)


def unsigned(number: int) -> Any:
    """uint32, uint64, and enumerations without negative values."""
    return _Field(number, "unsigned", 0)


def unsigneds(number: int) -> Any:
    return _Field(number, "unsigned", (), repeated=True)


def signed(number: int) -> Any:
    """int32, int64, and enumerations."""
    return _Field(number, "signed", 0)


def double(number: int) -> Any:
    return _Field(number, "double", 0.0)


def message(number: int, type: Any) -> Any:
    return _Field(number, "message", None, type)


def messages(number: int, type: Any) -> Any:
    return _Field(number, "message", (), type, repeated=True)


class Message:
    """Base of messages. A subclass has ``name: type = specifier(number)`` for each field, in the order of numbers."""

    FULL_NAME: ClassVar[str] = ""
    FIELDS: ClassVar[dict[int, Any]] = {}
    NAMES: ClassVar[frozenset[str]] = frozenset()

    def __init_subclass__(cls, full_name: str = "") -> None:
        cls.FULL_NAME = full_name
        cls.FIELDS = {}
        for name, field in list(vars(cls).items()):
            if isinstance(field, _Field):
                field.name = name
                cls.FIELDS[field.number] = field
                setattr(cls, name, field.default)  # what an instance has unless it was set
        cls.NAMES = frozenset(field.name for field in cls.FIELDS.values())

    def __init__(self, **values: Any) -> None:
        if not values.keys() <= self.NAMES:
            raise TypeError(f"{type(self).__name__} has no {', '.join(sorted(values.keys() - self.NAMES))}")
        vars(self).update(values)

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and vars(self) == vars(other)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in vars(self).items())})"

    def SerializeToString(self) -> bytes:
        encoded = bytearray()
        own = vars(self)
        for field in self.FIELDS.values():
            value = own.get(field.name, field.default)
            if value == field.default and not isinstance(value, Message):
                continue
            if field.repeated and field.kind == "unsigned":
                _encode_packed(encoded, field, value)
                continue
            for one in value if field.repeated else (value,):
                _encode(encoded, field, one)
        return bytes(encoded)

    @classmethod
    def FromString(cls, data: bytes) -> Self:
        """Return the message that *data* is; fields that are not known are left out. Raises DecodeError."""
        values: dict[str, Any] = {}
        for number, wire_type, value in _fields(data):
            field = cls.FIELDS.get(number)
            if field is None:
                continue
            for one in _decode(field, wire_type, value):
                if field.repeated:
                    values.setdefault(field.name, []).append(one)
                else:
                    values[field.name] = one
        return cls(**values)


def _encode(encoded: bytearray, field: _Field, value: Any) -> None:
    match field.kind:
        case "unsigned" | "signed" | "bool":
            _put_varint(encoded, field.number << 3 | _VARINT)
            _put_varint(encoded, int(value) & _MASK)
        case "double":
            _put_varint(encoded, field.number << 3 | _FIXED64)
            encoded += _DOUBLE.pack(value)
        case _:
            if field.kind == "string":
                value = value.encode()
            elif field.kind == "message":
                value = value.SerializeToString()
            _put_varint(encoded, field.number << 3 | _BYTES)
            _put_varint(encoded, len(value))
            encoded += value


def _encode_packed(encoded: bytearray, field: _Field, values: list[int]) -> None:
    numbers = bytearray()
    for value in values:
        _put_varint(numbers, value & _MASK)
    if numbers:
        _put_varint(encoded, field.number << 3 | _BYTES)
        _put_varint(encoded, len(numbers))
        encoded += numbers


def _put_varint(encoded: bytearray, value: int) -> None:
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)


def _decode(field: _Field, wire_type: int, value: Any) -> Iterator[Any]:
    """Return what a field of the wire means; several values if it is packed, none if it is of another type."""
    match field.kind, wire_type:
        case "string", 2:
            try:
                yield value.decode()
            except UnicodeDecodeError:
                raise DecodeError(f"field {field.name!r} is not UTF-8") from None
        case "bytes", 2:
            yield value
        case "message", 2:
            yield field.type.FromString(value)
        case "double", 1:
            yield _DOUBLE.unpack(value)[0]
        case "unsigned" | "signed" | "bool", 0:
            yield _number(field, value)
        case "unsigned" | "signed" | "bool", 2 if field.repeated:
            at = 0
            while at < len(value):
                number, at = _varint(value, at)
                yield _number(field, number)


def _number(field: _Field, value: int) -> int | bool:
    if field.kind == "bool":
        return bool(value)
    if field.kind == "signed" and value >> 63:
        return value - (1 << 64)
    return value


def _fields(data: bytes) -> Iterator[tuple[int, int, Any]]:
    """Return number, wire type and value of each field. Raises DecodeError."""
    at, end = 0, len(data)
    while at < end:
        tag, at = _varint(data, at)
        number, wire_type = tag >> 3, tag & 7
        if not number:
            raise DecodeError("a field has the number 0")
        if wire_type == _VARINT:
            value, at = _varint(data, at)
            yield number, wire_type, value
            continue
        if wire_type == _BYTES:
            size, at = _varint(data, at)
        elif wire_type in {_FIXED64, _FIXED32}:
            size = 8 if wire_type == _FIXED64 else 4
        else:
            raise DecodeError(f"wire type {wire_type} is not known")
        if size > end - at:
            raise DecodeError("the message is cut off")
        yield number, wire_type, data[at : at + size]
        at += size


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """Return the number at *at*, and where it ends."""
    value = shift = 0
    for byte in data[at : at + _LONGEST_VARINT]:
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & _MASK, at
        shift += 7
    raise DecodeError("a number is cut off or too long")
