"""What rctl cri makes of CRI's messages, of names, and of files that describe pods."""

from typing import Any

import pytest

from runtimed.api import cri_pb2 as pb
from runtimed.cli.cri import documents, find
from runtimed.cli.cri.calls import as_json, at, verbose
from runtimed.cli.cri.metrics import lines
from runtimed.cli.cri.stats import cpu_percent
from runtimed.errors import InvalidArgument, NotFound

A, B, C = ("aa" * 32, "ab" * 32, "c" * 64)


class Daemon:
    """Answers the two list calls."""

    def __init__(self, pods: list[pb.PodSandbox], containers: list[pb.Container]) -> None:
        self.pods = pods
        self.containers = containers

    async def call(self, method: Any, request: Any) -> Any:
        if "Sandbox" in method.path:
            return pb.ListPodSandboxResponse(items=self.pods)
        return pb.ListContainersResponse(containers=self.containers)


def daemon(pods: list[pb.PodSandbox], containers: list[pb.Container]) -> Any:
    return Daemon(pods, containers)


def pod(id: str, name: str, namespace: str = "default", *, ready: bool = True) -> pb.PodSandbox:
    state = pb.SANDBOX_READY if ready else pb.SANDBOX_NOTREADY
    return pb.PodSandbox(id=id, metadata=pb.PodSandboxMetadata(name=name, namespace=namespace), state=state)


def container(id: str, name: str, pod: str = A, *, running: bool = True) -> pb.Container:
    state = pb.CONTAINER_RUNNING if running else pb.CONTAINER_EXITED
    return pb.Container(id=id, pod_sandbox_id=pod, metadata=pb.ContainerMetadata(name=name), state=state)


@pytest.mark.parametrize(
    ("word", "found"),
    [("web", A), ("shop/web", A), ("aa", A), ("c", C), ("old", C), (B, B), ("f" * 64, "f" * 64)],
)
async def test_a_pod_goes_by_its_name_or_the_beginning_of_its_id(word, found):
    asked = daemon([pod(A, "web", "shop"), pod(B, "old", ready=False), pod(C, "old")], [])
    assert await find.pod_id(asked, word) == found


@pytest.mark.parametrize(
    ("word", "found"),
    [("main", A), ("web/main", A), ("shop/web/main", A), ("ab", B), ("again", C), ("default/db/again", C)],
)
async def test_a_container_goes_by_its_name_and_its_pods(word, found):
    pods = [pod(A, "web", "shop"), pod(B, "db")]
    containers = [container(A, "main"), container(B, "again", B, running=False), container(C, "again", B)]
    assert await find.container_id(daemon(pods, containers), word) == found


async def test_what_does_not_tell_them_apart_is_refused():
    asked = daemon([pod(A, "web", "shop")], [container(A, "main"), container(B, "main")])
    for word in ("a", "main", "web/main"):
        with pytest.raises(InvalidArgument, match=f"'{word}' could be any of 2: {A[:13]}, {B[:13]}"):
            await find.container_id(asked, word)
    for word in ("", "x", "other/main"):
        with pytest.raises(NotFound, match="no container has the name") as raised:
            await find.container_id(asked, word)
        assert raised.value.__notes__ == ["'rctl cri ps -a' lists them"]


def test_messages_are_values_of_programs():
    message = pb.ContainerStatus(
        id="x", created_at=1_700_000_000_000_000_001, state=pb.CONTAINER_EXITED, labels={"b": "2", "a": "1"}
    )
    message.resources.linux.memory_limit_in_bytes = 1 << 40
    message.mounts.add(container_path="/data")
    found = as_json(message)
    assert found["created_at"] == "2023-11-14T22:13:20.000000001Z"
    assert found["finished_at"] is None
    assert found["state"] == "CONTAINER_EXITED"
    assert found["resources"]["linux"]["memory_limit_in_bytes"] == 1 << 40
    assert list(found["labels"]) == ["a", "b"]
    assert found["mounts"][0]["container_path"] == "/data"
    assert "metadata" not in found
    assert as_json(pb.ProcessUsage(timestamp=1, process_count=pb.UInt64Value(value=3)))["process_count"] == 3
    answer = pb.ContainerStatusResponse(status=message, info={"info": '{"pid": 7}', "note": "words"})
    assert verbose(answer)["info"] == {"info": {"pid": 7}, "note": "words"}
    assert at(0) is None


@pytest.mark.parametrize(
    "text",
    [
        '{"metadata": {"name": "x"}, "log_directory": "/l", "linux": {"cgroup_parent": "/p"}}',
        '{"metadata": {"name": "x"}, "logDirectory": "/l", "linux": {"cgroupParent": "/p"}}',
        "metadata:\n  name: x\nlog_directory: /l\nlinux: {cgroup_parent: /p}\n",
    ],
)
def test_files_are_json_or_yaml_with_either_kind_of_names(tmp_path, text):
    (tmp_path / "pod").write_text(text)
    found = documents.read(str(tmp_path / "pod"), pb.PodSandboxConfig())
    assert (found.metadata.name, found.log_directory, found.linux.cgroup_parent) == ("x", "/l", "/p")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "not a PodSandboxConfig"),
        ("[1, 2]", "not a PodSandboxConfig"),
        ('{"a":', "is not JSON"),
        ("a: b: c", "neither JSON nor YAML"),
        ("!!python/object:os.system {}", "neither JSON nor YAML"),
        ("nome: x", 'no field named "nome"'),
        ("hostname: [1]", "hostname"),
        ("metadata: {attempt: -1}", "attempt"),
        ("x: " + "[" * 5000, "neither JSON nor YAML"),
        (b"\xff\xfe\x00", "neither JSON nor YAML"),
        ("#" * ((1 << 20) + 1), "larger than"),
    ],
)
def test_a_file_that_is_none_is_refused_by_its_name(tmp_path, text, words):
    path = tmp_path / "pod.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InvalidArgument, match=words) as raised:
        documents.read(str(path), pb.PodSandboxConfig())
    assert "pod.yaml" in str(raised.value)
    with pytest.raises(NotFound, match="no-such"):
        documents.read(str(tmp_path / "no-such"), pb.PodSandboxConfig())


def usage(at: int, used: int) -> pb.CpuUsage:
    return pb.CpuUsage(timestamp=at, usage_core_nano_seconds=pb.UInt64Value(value=used))


def test_the_share_of_a_core():
    assert cpu_percent(usage(1000, 500), usage(2000, 1250)) == 75
    assert cpu_percent(None, usage(2000, 1250)) == 0
    assert cpu_percent(usage(2000, 1250), usage(2000, 1250)) == 0
    assert cpu_percent(usage(1000, 500), usage(2000, 100)) == 0  # another container's counter


def test_metrics_as_prometheus_has_them():
    metric = pb.Metric(name="memory", label_values=['a"b', "c\\\n"], value=pb.UInt64Value(value=7))
    pods = [pb.PodSandboxMetrics(metrics=[metric], container_metrics=[pb.ContainerMetrics(metrics=[metric])])]
    assert [*lines(pods, {"memory": ["pod", "name"]})] == ['memory{pod="a\\"b",name="c\\\\\\n"} 7'] * 2
