"""The shim's own protobuf against the library and the stubs made from the .proto files."""

import pytest
from google.protobuf import any_pb2, descriptor_pool, empty_pb2, message_factory, timestamp_pb2  # noqa: F401 - the pool must know them
from hypothesis import given, settings
from hypothesis import strategies as st

from runtimed.api import (  # noqa: F401
    bootstrap_pb2,
    cgroups_v1_pb2,
    cgroups_v2_pb2,
    events_pb2,
    events_ttrpc_pb2,
    runc_options_pb2,
    shim_attach_pb2,
    task_v3_pb2,
    ttrpc_pb2,
    types_pb2,
)
from shim import messages, metrics_v1, metrics_v2, proto

MESSAGES = [
    kind
    for module in (messages, metrics_v1, metrics_v2)
    for kind in vars(module).values()
    if isinstance(kind, type) and issubclass(kind, proto.Message) and kind is not proto.Message
]
PARTIAL = {"BootstrapParams", "BootstrapResult", "Metrics", "Options", "RuntimeInfo", "RpcStatus", "UpdateTaskRequest"}
KINDS = {
    "string": {9},
    "bytes": {12},
    "bool": {8},
    "unsigned": {4, 13, 14},
    "signed": {3, 5, 14},
    "double": {1},
    "message": {11},
}  # to FieldDescriptorProto.Type


def stub(kind):
    return message_factory.GetMessageClass(descriptor_pool.Default().FindMessageTypeByName(kind.FULL_NAME))


@pytest.mark.parametrize("kind", MESSAGES, ids=lambda kind: kind.FULL_NAME)
def test_fields_are_those_of_the_stub(kind):
    theirs = {field.number: field for field in stub(kind).DESCRIPTOR.fields}
    if kind.__name__ not in PARTIAL:
        assert set(kind.FIELDS) == set(theirs)
    for number, field in kind.FIELDS.items():
        other = theirs[number]
        assert field.name == other.name
        assert other.type in KINDS[field.kind]
        assert field.repeated == other.is_repeated
        if field.kind == "message":
            assert other.message_type.full_name == field.type.FULL_NAME


VALUES = {
    "string": st.text(max_size=20),
    "bytes": st.binary(max_size=20),
    "bool": st.booleans(),
    "unsigned": st.integers(0, 2**32 - 1),
    "signed": st.integers(-(2**31), 2**31 - 1),
    "double": st.floats(allow_nan=False),
}


def made(kind):
    """Return a strategy for messages of a kind."""
    fields = {}
    for field in kind.FIELDS.values():
        value = made(field.type) if field.kind == "message" else VALUES[field.kind]
        fields[field.name] = st.lists(value, max_size=3) if field.repeated else value
    return st.fixed_dictionaries({}, optional=fields).map(lambda values: kind(**values))


@pytest.mark.parametrize("kind", MESSAGES, ids=lambda kind: kind.FULL_NAME)
def test_the_library_reads_what_it_writes_and_the_other_way_round(kind):
    library = stub(kind)

    @settings(deadline=None)
    @given(made(kind))
    def check(message):
        if any(field.kind == "unsigned" and field.name == "status" for field in kind.FIELDS.values()):
            vars(message).pop("status", None)  # an enumeration takes what it knows
        data = message.SerializeToString()
        assert library.FromString(data).SerializeToString(deterministic=True) == data
        assert kind.FromString(data).SerializeToString() == data

    check()


@given(st.binary(max_size=200))
def test_whatever_comes_is_read_or_refused(data):
    for kind in (messages.CreateTaskRequest, messages.Request, messages.Response):
        try:
            kind.FromString(data)
        except proto.DecodeError:
            continue


@pytest.mark.parametrize(
    "data",
    [b"\x0a", b"\x0a\x05ab", b"\x80", b"\xff" * 11, b"\x0a\x01\xff", b"\x0b\x01", b"\x00\x00", b"\x09\x01"],
    ids=["no length", "cut off", "half a tag", "endless number", "not UTF-8", "a group", "field 0", "half a double"],
)
def test_what_is_no_message_is_refused(data):
    with pytest.raises(proto.DecodeError):
        messages.StartRequest.FromString(data)


def test_fields_that_are_not_known_or_of_another_type_are_passed_over():
    data = types_pb2.Mount(type="bind", source="/x", options=["ro"]).SerializeToString() + b"\xf8\x07\x05\x10\x07"
    mount = messages.Mount.FromString(data)
    assert (mount.type, mount.source, mount.options) == ("bind", "/x", ["ro"])


def test_what_is_absent_has_its_default():
    request = messages.CreateTaskRequest.FromString(b"")
    assert (request.id, request.terminal, list(request.rootfs), request.options) == ("", False, [], None)


def test_a_field_that_there_is_not_is_a_mistake():
    with pytest.raises(TypeError, match="StartRequest has no pid"):
        messages.StartRequest(pid=1)
