"""The program: how it starts, what it refuses, how it stops."""

import grp
import itertools
import json
import os
import signal
import socket
import sqlite3
import stat
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from google.protobuf.empty_pb2 import Empty
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from runtimed.api import (
    events_pb2,
    events_service_pb2,
    introspection_pb2,
    tasks_pb2,
    types_pb2,
)
from runtimed.api.events_service_pb2_grpc import EventsStub
from runtimed.api.introspection_pb2_grpc import IntrospectionStub
from runtimed.api.tasks_pb2_grpc import TasksStub
from runtimed.events import QUEUE_LENGTH
from tests.daemon import BIN, PrivateDaemon, private_daemon

pytestmark = pytest.mark.root

METADATA = (("containerd-namespace", "ns"),)


@pytest.fixture(scope="module")
def shared() -> Iterator[PrivateDaemon]:
    """One for the tests that leave it as it is."""
    with private_daemon() as daemon:
        yield daemon


@pytest.fixture
def daemon() -> Iterator[PrivateDaemon]:
    """One of the test's own, not started yet."""
    with private_daemon(start=False) as daemon:
        yield daemon


@pytest.fixture
def channel(shared: PrivateDaemon) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(f"unix:{shared.address}") as channel:
        yield channel


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run ``runtimed`` to its end."""
    command = [str(BIN / "runtimed"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)


def refusal(daemon: PrivateDaemon) -> str:
    """Start *daemon*, which must refuse, and return the one line that it says."""
    done = run(*daemon.command()[1:])
    assert done.returncode == 1
    assert done.stderr.startswith("runtimed: ")
    assert done.stderr.count("\n") == 1
    return done.stderr


def log_of(daemon: PrivateDaemon) -> list[dict[str, object]]:
    return [json.loads(line) for line in daemon.log.read_text().splitlines()]


# -- while it runs


def test_it_is_ready_within_a_second_of_its_start(shared):
    (ready,) = [entry for entry in log_of(shared) if entry["event"] == "ready"]
    assert isinstance(ready["ms"], int)
    assert ready["ms"] < 5000  # a busy test machine; the figure of a quiet one is in the log


def test_directories_and_sockets_are_closed_to_others(shared):
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in (shared.root, shared.state, shared.address)}
    assert modes == {shared.root: 0o700, shared.state: 0o711, shared.address: 0o660}
    assert stat.S_IMODE(Path(f"{shared.address}.ttrpc").stat().st_mode) == 0o660


def test_every_service_is_healthy_and_described(shared, channel):
    health = health_pb2_grpc.HealthStub(channel)
    for name in ("", "containerd.services.tasks.v1.Tasks", "containerd.services.transfer.v1.Transfer"):
        answer = health.Check(health_pb2.HealthCheckRequest(service=name))
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
    requests = iter([reflection_pb2.ServerReflectionRequest(list_services="")])
    (answer,) = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(requests)
    names = {service.name for service in answer.list_services_response.service}
    assert {"containerd.services.tasks.v1.Tasks", "grpc.health.v1.Health"} <= names


@pytest.mark.parametrize("method", ["containerd.services.nosuch.v1.Things/Do", "containerd.services.tasks.v1.Tasks/Do"])
def test_what_is_not_offered_is_unimplemented(channel, method):
    with pytest.raises(grpc.RpcError) as raised:
        channel.unary_unary(f"/{method}")(b"", metadata=METADATA)
    assert raised.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_a_call_needs_a_namespace(channel):
    with pytest.raises(grpc.RpcError) as raised:
        TasksStub(channel).List(tasks_pb2.ListTasksRequest())
    assert raised.value.code() is grpc.StatusCode.FAILED_PRECONDITION


def test_the_runtime_tells_its_features_or_that_it_cannot(channel):
    request = introspection_pb2.PluginInfoRequest(type="io.containerd.runtime.v2", id="task")
    request.options.type_url = "containerd.types.RuntimeRequest"
    request.options.value = types_pb2.RuntimeRequest(runtime_path="io.containerd.runc.v2").SerializeToString()
    has_features = subprocess.run(["runc", "features"], capture_output=True, check=False).returncode == 0
    if not has_features:
        with pytest.raises(grpc.RpcError) as raised:
            IntrospectionStub(channel).PluginInfo(request)
        assert raised.value.code() is grpc.StatusCode.NOT_FOUND
        return
    extra = IntrospectionStub(channel).PluginInfo(request).extra
    assert extra.type_url == "containerd.types.RuntimeInfo"
    info = types_pb2.RuntimeInfo.FromString(extra.value)
    assert info.features.type_url == "types.containerd.io/opencontainers/runtime-spec/1/features/Features"
    assert "ociVersionMin" in json.loads(info.features.value)


def test_what_is_published_after_subscribe_has_answered_is_received(channel):
    stub = EventsStub(channel)
    subscribed = stub.Subscribe(events_service_pb2.SubscribeRequest(filters=["topic==/tasks/oom"]))
    subscribed.initial_metadata()  # the answer
    event = events_pb2.TaskOOM(container_id="c1")
    for topic in ("/tasks/start", "/tasks/oom"):
        request = events_service_pb2.PublishRequest(topic=topic)
        request.event.type_url, request.event.value = "containerd.events.TaskOOM", event.SerializeToString()
        stub.Publish(request, metadata=METADATA)
    envelope = next(subscribed)
    assert (envelope.namespace, envelope.topic, envelope.event.value) == ("ns", "/tasks/oom", event.SerializeToString())
    subscribed.cancel()


def test_a_forwarded_envelope_arrives_as_it_is(channel):
    stub = EventsStub(channel)
    subscribed = stub.Subscribe(events_service_pb2.SubscribeRequest(filters=["topic==/tasks/oom,namespace==other"]))
    subscribed.initial_metadata()
    request = events_service_pb2.ForwardRequest()
    request.envelope.namespace, request.envelope.topic = "other", "/tasks/oom"
    request.envelope.timestamp.GetCurrentTime()
    request.envelope.event.type_url = "containerd.events.TaskOOM"
    stub.Forward(request, metadata=METADATA)
    assert next(subscribed) == request.envelope
    subscribed.cancel()


def test_a_bad_topic_is_the_clients_mistake(channel):
    with pytest.raises(grpc.RpcError) as raised:
        EventsStub(channel).Publish(events_service_pb2.PublishRequest(topic="tasks"), metadata=METADATA)
    assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_a_subscriber_that_does_not_read_holds_up_nobody_and_is_told_what_it_lost(shared, channel):
    """More events than its window and its queue hold are published, and read as they come by another subscriber."""
    wanted = events_service_pb2.SubscribeRequest(filters=["topic==/tests/slow"])
    event = events_pb2.TaskOOM(container_id="c" * 100).SerializeToString()
    batch, batches = 600, 20
    assert batch * batches > QUEUE_LENGTH + (128 << 10) / len(event)
    # A connection of its own, whose window does not grow.
    options = [("grpc.http2.bdp_probe", 0), ("grpc.use_local_subchannel_pool", 1)]
    with grpc.insecure_channel(f"unix:{shared.address}", options=options) as other:
        slow, quick = EventsStub(other).Subscribe(wanted), EventsStub(channel).Subscribe(wanted)
        slow.initial_metadata()
        quick.initial_metadata()
        request = events_service_pb2.PublishRequest(topic="/tests/slow")
        request.event.type_url, request.event.value = "containerd.events.TaskOOM", event
        for _ in range(batches):
            sent = [EventsStub(channel).Publish.future(request, metadata=METADATA) for _ in range(batch)]
            for one in sent:
                one.result(timeout=60)
            for _ in range(batch):
                assert next(quick).event.value == event
        quick.cancel()
        counted = itertools.count()
        with pytest.raises(grpc.RpcError) as raised:
            all(next(counted) >= 0 for _ in slow)
    received = next(counted)
    assert raised.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert received >= QUEUE_LENGTH
    assert f"{batch * batches - received} events lost; subscribe again" in (raised.value.details() or "")


def test_a_second_daemon_on_the_same_root_hears_who_has_it(shared, daemon):
    daemon.root = shared.root
    assert f"is in use by the daemon with pid {shared.pid}: stop it" in refusal(daemon)


def test_a_second_daemon_on_the_same_socket_is_refused(shared, daemon):
    daemon.address = shared.address
    assert "another program listens on it" in refusal(daemon)


def test_no_child_has_the_daemons_descriptors_or_its_managers_address(shared):
    (children,) = (Path(f"/proc/{shared.pid}/task/{shared.pid}").glob("children"),)
    pids = [pid for file in children for pid in file.read_text().split()]
    assert pids
    for pid in pids:
        assert b"NOTIFY_SOCKET" not in Path(f"/proc/{pid}/environ").read_bytes()
        open_files = [os.readlink(fd) for fd in Path(f"/proc/{pid}/fd").iterdir()]  # noqa: PTH115  names, not paths
        assert not [name for name in open_files if str(shared.root) in name or str(shared.log) in name]


# -- how it starts


def test_it_starts_again_over_a_socket_that_a_crash_left(daemon):
    daemon.start()
    daemon.kill()
    assert daemon.address.exists()
    daemon.start()


def test_it_keeps_its_identity(daemon):
    def uuid() -> str:
        with grpc.insecure_channel(f"unix:{daemon.address}") as channel:
            return str(IntrospectionStub(channel).Server(Empty()).uuid)

    daemon.start()
    first = uuid()
    daemon.stop()
    daemon.start()
    assert uuid() == first != ""


def test_a_root_that_is_a_link_is_refused(daemon):
    (daemon.base / "elsewhere").mkdir()
    daemon.root.symlink_to(daemon.base / "elsewhere")
    assert "is a link; remove it or use another path" in refusal(daemon)
    daemon.root.unlink()


def test_a_root_of_somebody_else_is_refused(daemon):
    daemon.root.mkdir()
    os.chown(daemon.root, 12345, 12345)
    assert "belongs to user 12345" in refusal(daemon)
    os.chown(daemon.root, 0, 0)


def test_a_socket_path_that_does_not_fit_is_refused(daemon):
    daemon.address = daemon.base / ("x" * 100)
    assert "give a shorter --address" in refusal(daemon)


def test_a_database_that_is_none_is_named_with_the_way_out(daemon):
    daemon.root.mkdir()
    (daemon.root / "metadata.db").write_bytes(b"this is not a database, whatever its name says" * 100)
    message = refusal(daemon)
    assert "metadata.db" in message
    assert "move it away" in message
    (daemon.root / "metadata.db").unlink()


def test_a_database_of_a_newer_version_is_left_alone(daemon):
    daemon.root.mkdir()
    with sqlite3.connect(daemon.root / "metadata.db") as database:
        database.execute("PRAGMA user_version = 9999")
    database.close()
    assert "start the newer version" in refusal(daemon)
    (daemon.root / "metadata.db").unlink()


def test_a_mistake_in_the_configuration_is_named_with_its_line(daemon):
    daemon.config.write_text("version = 1\n\n[socket]\nmod = 0o666\n")
    assert f"{daemon.config}:4: socket.mod: unknown key" in refusal(daemon)
    daemon.config.unlink()


def test_a_snapshotters_mistake_is_named_too(daemon):
    daemon.config.write_text("version = 1\n[snapshotters.overlayfs]\nno_such_key = 1\n")
    assert "snapshotters.overlayfs.no_such_key" in refusal(daemon)
    daemon.config.unlink()


def test_the_sockets_owner_and_mode_are_configured(daemon):
    group = grp.getgrnam("nogroup").gr_gid
    daemon.config.write_text(f"version = 1\n[socket]\ngid = {group}\nmode = 0o600\n")
    daemon.start()
    found = daemon.address.stat()
    assert (found.st_gid, stat.S_IMODE(found.st_mode)) == (group, 0o600)


@pytest.mark.parametrize("place", ["before", "after"])
def test_flags_stand_before_or_after_the_subcommand(place):
    flags, command = ["--root", "/x", "-l", "debug"], ["config", "dump"]
    done = run(*(flags + command if place == "before" else command + flags))
    assert done.returncode == 0
    assert 'root = "/x"' in done.stdout
    assert 'level = "debug"' in done.stdout


def test_the_default_configuration_can_be_used(tmp_path):
    (tmp_path / "config.toml").write_text(run("config", "default").stdout)
    assert run("--config", tmp_path / "config.toml", "config", "check").stdout.endswith(": fine\n")


def test_wrong_usage_is_another_status():
    assert run("--no-such-flag").returncode == 2


# -- how it stops


def test_sighup_takes_over_what_it_can_and_ends_nothing(daemon):
    daemon.config.write_text('version = 1\n[log]\nlevel = "info"\n')
    daemon.start()
    pid = daemon.pid

    def reload(text: str, expected: str) -> str:
        """Have the daemon read *text* and return what it logs, up to what is *expected*."""
        with daemon.log.open() as log:
            log.seek(0, os.SEEK_END)
            daemon.config.write_text(text)
            os.kill(pid, signal.SIGHUP)
            deadline = time.monotonic() + 10
            said = ""
            while expected not in said and time.monotonic() < deadline:
                said += log.read()
        assert expected in said
        return said

    reload("version = 2\n", "stays as it was")
    said = reload("version = 1\n[gc]\npause_percent = 9\n[workers]\ncount = 3\n", "taken over at the next start")
    assert "gc.pause_percent" in said.partition("taken over at the next start")[0]
    assert "workers.count" in said
    assert Path(f"/proc/{pid}").exists()
    daemon.config.unlink()


def test_sigterm_ends_streams_with_unavailable_and_removes_the_sockets(daemon):
    daemon.start()
    answers: list[grpc.StatusCode] = []
    ready = threading.Event()

    def subscribe() -> None:
        with grpc.insecure_channel(f"unix:{daemon.address}") as channel:
            stream = EventsStub(channel).Subscribe(events_service_pb2.SubscribeRequest())
            stream.initial_metadata()
            ready.set()
            try:
                next(stream)
            except grpc.RpcError as exc:
                answers.append(exc.code())

    subscriber = threading.Thread(target=subscribe)
    subscriber.start()
    assert ready.wait(10)
    process = daemon.process
    assert process is not None
    began = time.monotonic()
    daemon.stop()
    assert process.returncode == 0
    assert time.monotonic() - began < 5
    subscriber.join(10)
    assert answers == [grpc.StatusCode.UNAVAILABLE]
    assert not daemon.address.exists()
    assert not Path(f"{daemon.address}.ttrpc").exists()


def test_it_tells_the_service_manager_that_it_stops(daemon):
    daemon.start()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(daemon.base / "notify.sock"))
        manager.settimeout(10)
        daemon.stop()
        assert manager.recv(100) == b"STOPPING=1"
