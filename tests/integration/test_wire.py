"""What no client sends, sent to a running daemon: it may refuse the connection; it answers others, and does not grow.

Frames are written by hand, for the tests are of the socket and not of a library that keeps to the rules.
"""

import contextlib
import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from google.protobuf.empty_pb2 import Empty
from google.protobuf.field_mask_pb2 import FieldMask
from hypothesis import HealthCheck, given, settings, strategies

from runtimed.api import containers_pb2, content_pb2, images_pb2, snapshots_pb2
from runtimed.api.containers_pb2_grpc import ContainersStub
from runtimed.api.content_pb2_grpc import ContentStub
from runtimed.api.images_pb2_grpc import ImagesStub
from runtimed.api.snapshots_pb2_grpc import SnapshotsStub
from runtimed.api.version_pb2_grpc import VersionStub
from runtimed.directories import TTRPC_SUFFIX
from tests.daemon import PrivateDaemon, private_daemon

pytestmark = [pytest.mark.root]

MIB = 1 << 20
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, PRIORITY, RST, SETTINGS, PUSH, PING, GOAWAY, WINDOW, CONTINUATION = range(10)
END_STREAM, END_HEADERS = 1, 4
# More than any of these needs; what is sent is several times as much.
GROWTH = 48 * MIB
PATH = b"/containerd.services.events.v1.Events/Subscribe"  # a call that goes on
VERSION = b"/containerd.services.version.v1.Version/Version"


def frame(kind: int, flags: int, stream: int, payload: bytes = b"", *, length: int | None = None) -> bytes:
    size = len(payload) if length is None else length
    return size.to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


def text(value: bytes) -> bytes:
    """Return an HPACK string, not compressed (RFC 7541, 5.2)."""
    if len(value) < 127:
        return bytes([len(value)]) + value
    rest, out = len(value) - 127, bytearray([127])
    while rest >= 128:
        out.append(rest % 128 + 128)
        rest //= 128
    return bytes(out) + bytes([rest]) + value


def field(name: bytes, value: bytes, kind: int = 0x00) -> bytes:
    """Return a header with its name; *kind* 0x40 puts it into the table."""
    return bytes([kind]) + text(name) + text(value)


def request(path: bytes = PATH) -> bytes:
    fields = {
        b":method": b"POST", b":scheme": b"http", b":path": path, b":authority": b"x", b"te": b"trailers",
        b"content-type": b"application/grpc",
    }  # fmt: skip
    return b"".join(field(name, value) for name, value in fields.items())


def call(stream: int, path: bytes = PATH, message: bytes = b"\0\0\0\0\0") -> bytes:
    """Return a whole request."""
    return frame(HEADERS, END_HEADERS, stream, request(path)) + frame(DATA, END_STREAM, stream, message)


BEGIN = PREFACE + frame(SETTINGS, 0, 0)
TABLE_BOMB = field(b"x", b"y" * 4000, 0x40) + b"\xbe" * 16000  # a name of the table, over and over: 64 MB of headers

ATTACKS = {
    "no preface": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 100,
    "half a preface": PREFACE[:10],
    "another preface": PREFACE[:-1] + b"x" + BEGIN,
    "no settings": PREFACE + frame(PING, 0, 0, b"12345678"),
    "settings of a stream": PREFACE + frame(SETTINGS, 0, 1),
    "settings of five bytes": PREFACE + frame(SETTINGS, 0, 0, b"12345"),
    "settings without end": BEGIN + frame(SETTINGS, 0, 0, struct.pack(">HI", 5, 16384)) * 20_000,
    "an impossible window": PREFACE + frame(SETTINGS, 0, 0, struct.pack(">HI", 4, 0xFFFFFFFF)),
    "a frame of 16 MiB": BEGIN + frame(DATA, 0, 1, b"x" * MIB, length=0xFFFFFF),
    "a frame cut off": BEGIN + frame(HEADERS, END_HEADERS, 1, b"abc", length=100),
    "a frame of no kind": BEGIN + frame(99, 0xFF, 1, b"x" * 100) * 1000,
    "data of no stream": BEGIN + frame(DATA, 0, 1, b"x" * 1000),
    "data of stream 0": BEGIN + frame(DATA, 0, 0, b"x" * 1000),
    "headers of an even stream": BEGIN + call(2),
    "streams backwards": BEGIN + call(5) + call(3),
    "padding beyond the frame": BEGIN + frame(HEADERS, 8 | END_HEADERS, 1, b"\xff" + request()),
    "a reset of five bytes": BEGIN + call(1) + frame(RST, 0, 1, b"12345"),
    "a window update of nothing": BEGIN + call(1) + frame(WINDOW, 0, 1, bytes(4)),
    "a window that overflows": BEGIN + frame(WINDOW, 0, 0, b"\x7f\xff\xff\xff") * 3,
    "a push": BEGIN + frame(PUSH, END_HEADERS, 1, bytes(4) + request()),
    "huge headers": BEGIN + frame(HEADERS, 0, 1, request() + field(b"a", b"b" * 12000))
    + frame(CONTINUATION, 0, 1, field(b"c", b"d" * 16000)) * 500,
    "continuations without end": BEGIN + frame(HEADERS, 0, 1, request()) + frame(CONTINUATION, 0, 1, b"") * 100_000,
    "a continuation of nothing": BEGIN + frame(CONTINUATION, END_HEADERS, 1, request()),
    "headers that unfold": BEGIN
    + b"".join(frame(HEADERS, END_HEADERS, stream, TABLE_BOMB) for stream in range(1, 61, 2)),
    "an index beyond the table": BEGIN + frame(HEADERS, END_HEADERS, 1, b"\xff\xff\xff\xff\x0f"),
    "an integer without end": BEGIN + frame(HEADERS, END_HEADERS, 1, b"\x7f" + b"\xff" * 10_000),
    "a table of 4 GiB": BEGIN + frame(HEADERS, END_HEADERS, 1, b"\x3f\xe1\xff\xff\xff\x0f" + request()),
    "no headers at all": BEGIN + frame(HEADERS, END_HEADERS | END_STREAM, 1),
    "rapid reset": BEGIN
    + b"".join(call(stream) + frame(RST, 0, stream, bytes(4)) for stream in range(1, 20_001, 2)),
    "pings": BEGIN + frame(PING, 0, 0, b"12345678") * 100_000,
    "pings that are not read, with calls": BEGIN
    + b"".join(call(stream, VERSION) + frame(PING, 0, 0, b"12345678") for stream in range(1, 20_001, 2)),
    "priorities": BEGIN + b"".join(frame(PRIORITY, 0, stream, bytes(5)) for stream in range(1, 100_001, 2)),
    "a message longer than its stream": BEGIN + call(1, VERSION, b"\0\0\0\xff\xffabc"),
    "a message of 4 GiB": BEGIN + frame(HEADERS, END_HEADERS, 1, request(VERSION))
    + frame(DATA, 0, 1, b"\0\xff\xff\xff\xff" + b"x" * 10_000),
    "a message that says it is compressed": BEGIN + call(1, VERSION, b"\1\0\0\0\4abcd"),
    "messages without end": BEGIN + frame(HEADERS, END_HEADERS, 1, request(VERSION))
    + frame(DATA, 0, 1, b"\0\0\0\0\0" * 3000) * 1000,
    "more than the window": BEGIN + frame(HEADERS, END_HEADERS, 1, request(VERSION))
    + frame(DATA, 0, 1, b"\0\x7f\xff\xff\xff" + b"x" * 16_000) * 4000,
}  # fmt: skip


@pytest.fixture(scope="module")
def daemon() -> Iterator[PrivateDaemon]:
    with private_daemon() as daemon:
        yield daemon


@pytest.fixture
def unharmed(daemon: PrivateDaemon) -> Iterator[PrivateDaemon]:
    """The daemon; afterwards it answers, is the same process, and has grown by no more than it may."""
    pid, before = daemon.pid, resident(daemon)
    yield daemon
    answers(daemon)
    assert daemon.process
    assert daemon.process.poll() is None
    assert daemon.pid == pid
    assert resident(daemon) - before < GROWTH


def resident(daemon: PrivateDaemon) -> int:
    """Return the bytes that the daemon has in memory."""
    pages = int(Path(f"/proc/{daemon.pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def answers(daemon: PrivateDaemon) -> None:
    with grpc.insecure_channel(f"unix:{daemon.address}") as channel:
        assert VersionStub(channel).Version(Empty(), timeout=20)


@contextlib.contextmanager
def connected(address: str) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(address)  # blocks while the queue is full; with a timeout that would be an error
        sock.settimeout(5)
        yield sock


def send(sock: socket.socket, data: bytes) -> bool:
    """Send all of it; False if the daemon has ended the connection, or does not read on."""
    try:
        sock.sendall(data)
    except OSError:
        return False
    return True


@pytest.mark.parametrize("attack", ATTACKS)
def test_whatever_comes_others_are_answered_and_memory_is_bounded(unharmed, attack):
    """While the connection is there, nothing being read of it, and when it has gone."""
    with connected(str(unharmed.address)) as sock:
        sock.settimeout(1)
        send(sock, ATTACKS[attack])
        answers(unharmed)


def test_half_closed_connections_and_many_of_them(unharmed):
    with contextlib.ExitStack() as held:
        for number in range(200):
            sock = held.enter_context(connected(str(unharmed.address)))
            send(sock, [b"", PREFACE[:5], BEGIN, BEGIN + call(1)][number % 4])
            if number % 3:
                sock.shutdown(socket.SHUT_WR)
        answers(unharmed)


def test_answers_that_nobody_makes_room_for_are_not_piled_up(unharmed):
    """A window of nothing, and a thousand requests for all there is."""
    none = PREFACE + frame(SETTINGS, 0, 0, struct.pack(">HI", 4, 0))
    path = b"/containerd.services.introspection.v1.Introspection/Plugins"
    with connected(str(unharmed.address)) as sock:
        send(sock, none + b"".join(call(stream, path) for stream in range(1, 2001, 2)))
        answers(unharmed)


@given(data=strategies.binary(max_size=400), begins=strategies.sampled_from([b"", PREFACE, BEGIN]))
@settings(max_examples=60, deadline=None, database=None, suppress_health_check=list(HealthCheck))
def test_random_bytes(unharmed, data, begins):
    with connected(str(unharmed.address)) as sock:
        send(sock, begins + data)


frames_of_all_kinds = strategies.builds(
    lambda kind, flags, stream, payload: frame(kind, flags, stream, payload),
    strategies.integers(0, 10),
    strategies.integers(0, 255),
    strategies.sampled_from([0, 1, 1, 1, 2, 3, 5, 0x7FFFFFFF, 0xFFFFFFFF]),
    strategies.one_of(strategies.binary(max_size=40), strategies.just(request()), strategies.just(bytes(4))),
)


@given(sent=strategies.lists(frames_of_all_kinds, max_size=12))
@settings(max_examples=60, deadline=None, database=None, suppress_health_check=list(HealthCheck))
def test_random_frames(unharmed, sent):
    with connected(str(unharmed.address)) as sock:
        send(sock, BEGIN + b"".join(sent))


@given(
    data=strategies.binary(max_size=400), length=strategies.integers(0, 0xFFFFFFFF), stream=strategies.integers(0, 9)
)
@settings(max_examples=60, deadline=None, database=None, suppress_health_check=list(HealthCheck))
def test_random_bytes_to_the_socket_of_the_shims(unharmed, data, length, stream):
    with connected(f"{unharmed.address}{TTRPC_SUFFIX}") as sock:
        send(sock, data)
    with connected(f"{unharmed.address}{TTRPC_SUFFIX}") as sock:
        send(sock, struct.pack(">IIBB", length, stream, 1, 0) + data)


def test_much_to_the_socket_of_the_shims(unharmed):
    """A message that says it has 4 GiB, and 64 MiB of it."""
    with connected(f"{unharmed.address}{TTRPC_SUFFIX}") as sock:
        sock.settimeout(1)
        send(sock, struct.pack(">IIBB", 0xFFFFFFFF, 1, 1, 0))
        for _ in range(64):
            if not send(sock, b"x" * MIB):
                break
        answers(unharmed)


# -- messages that are messages


class Stubs:
    def __init__(self, channel: grpc.Channel) -> None:
        self.containers, self.content, self.images = ContainersStub(channel), ContentStub(channel), ImagesStub(channel)
        self.snapshots = SnapshotsStub(channel)


METADATA = (("containerd-namespace", "wire"),)
REFUSALS = {
    grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND, grpc.StatusCode.OUT_OF_RANGE,
    grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.ALREADY_EXISTS,
}  # fmt: skip


@pytest.fixture(scope="module")
def stubs(daemon: PrivateDaemon) -> Iterator[Stubs]:
    options = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
    with grpc.insecure_channel(f"unix:{daemon.address}", options=options) as channel:
        yield Stubs(channel)


@contextlib.contextmanager
def refused_or_fine() -> Iterator[None]:
    """What is no fault of the daemon's: no UNKNOWN, no INTERNAL, no lost connection."""
    try:
        yield
    except grpc.RpcError as exc:
        if exc.code() not in REFUSALS:
            raise


words = strategies.one_of(
    strategies.sampled_from(
        ["name", "labels", "==", "!=", "~=", ",", ".", '"', "'", '"a.b"', "id", "digest", "/", "|", "[", "(", "\\", "*"]
    ),
    strategies.text(max_size=8),
)
fuzz = settings(max_examples=100, deadline=None, database=None, suppress_health_check=list(HealthCheck))


@given(filters=strategies.lists(strategies.lists(words, max_size=8).map("".join), max_size=3))
@fuzz
def test_filters(unharmed, stubs, filters):
    with refused_or_fine():
        stubs.images.List(images_pb2.ListImagesRequest(filters=filters), metadata=METADATA, timeout=20)
    with refused_or_fine():
        list(stubs.containers.ListStream(containers_pb2.ListContainersRequest(filters=filters), metadata=METADATA))


@given(name=strategies.text(max_size=200), digest=strategies.text(max_size=80))
@fuzz
def test_names_and_digests(unharmed, stubs, name, digest):
    image = images_pb2.Image(name=name)
    image.target.digest = digest
    with refused_or_fine():
        stubs.images.Create(images_pb2.CreateImageRequest(image=image), metadata=METADATA, timeout=20)
    with refused_or_fine():
        stubs.content.Info(content_pb2.InfoRequest(digest=digest), metadata=METADATA, timeout=20)
    with refused_or_fine():
        stubs.snapshots.Stat(
            snapshots_pb2.StatSnapshotRequest(snapshotter=digest, key=name), metadata=METADATA, timeout=20
        )


@given(paths=strategies.lists(strategies.lists(words, max_size=4).map(".".join), max_size=3))
@fuzz
def test_field_masks(unharmed, stubs, paths):
    container = containers_pb2.Container(id="masked", labels={"a": "b"})
    container.runtime.name, container.spec.type_url = "io.containerd.runc.v2", "x"
    with refused_or_fine():
        stubs.containers.Create(containers_pb2.CreateContainerRequest(container=container), metadata=METADATA)
    request = containers_pb2.UpdateContainerRequest(container=container, update_mask=FieldMask(paths=paths))
    with refused_or_fine():
        stubs.containers.Update(request, metadata=METADATA, timeout=20)


@given(
    offset=strategies.one_of(strategies.integers(0, 10), strategies.integers(-(2**63), 2**63 - 1)),
    total=strategies.one_of(strategies.integers(0, 10), strategies.integers(-(2**63), 2**63 - 1)),
    data=strategies.binary(max_size=10),
    action=strategies.integers(-1, 4),
)
@fuzz
def test_offsets_of_ingests(unharmed, stubs, offset, total, data, action):
    request = content_pb2.WriteContentRequest(ref="r", offset=offset, total=total, data=data)
    request.action = action
    with refused_or_fine():
        list(stubs.content.Write(iter([request]), metadata=METADATA, timeout=20))
    with refused_or_fine():
        stubs.content.Abort(content_pb2.AbortRequest(ref="r"), metadata=METADATA, timeout=20)


@pytest.mark.parametrize("offset", [-1, 1, 2**62, -(2**63)])
def test_offsets_of_reads(unharmed, stubs, offset):
    with refused_or_fine():
        list(
            stubs.content.Read(
                content_pb2.ReadContentRequest(digest="sha256:" + "0" * 64, offset=offset), metadata=METADATA
            )
        )


def written(stubs: Stubs, size: int) -> int:
    """Write so many bytes in one message and give the ingest up; return how many were taken."""
    request = content_pb2.WriteContentRequest(action=content_pb2.WRITE, ref="large", data=bytes(size))
    (answer,) = stubs.content.Write(iter([request]), metadata=METADATA, timeout=60)
    stubs.content.Abort(content_pb2.AbortRequest(ref="large"), metadata=METADATA, timeout=20)
    return int(answer.offset)


def test_the_largest_message_over_and_over(daemon, stubs):
    size = 16 * MIB - 200
    seen = []
    for _ in range(24):
        assert written(stubs, size) == size
        seen.append(resident(daemon))
    # In the first dozen each thread's part of the heap comes to keep one. Then, a quarter of each would be this much.
    assert seen[-1] - seen[11] < 3 * size, seen


def test_messages_larger_than_the_largest(unharmed, stubs):
    for _ in range(4):
        with pytest.raises(grpc.RpcError) as refused:
            written(stubs, 17 * MIB)
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
