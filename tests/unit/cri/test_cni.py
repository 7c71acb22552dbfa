"""What plugins of each version of the specification are told, in which order, and what is made of their answers."""

import json
from pathlib import Path
from typing import Any

import pytest

from runtimed.api import cri_pb2 as pb
from runtimed.config import Cni
from runtimed.cri.cni import Attachment, NetworkList, Plugins, parse
from runtimed.cri.network import Network
from runtimed.errors import Internal, InvalidArgument, Unavailable

# Notes what it is told; answers what its file of the command's name has, and fails if that is an error.
PLUGIN = """#!/bin/sh
type=$(basename "$0")
cd "$(dirname "$0")"
echo '{"command": "'$CNI_COMMAND'", "type": "'$type'", "args": "'$CNI_ARGS'", "given": '"$(cat)"'}' >> calls
cat $type.$CNI_COMMAND 2>/dev/null
! grep -q '"code"' $type.$CNI_COMMAND 2>/dev/null
"""
RESULT = {"cniVersion": "1.1.0", "ips": [{"address": "10.1.2.3/24"}]}
POD = Attachment(container_id="p", netns="/run/netns/p")


class Node:
    """Two plugins, ``first`` and ``second``, and what they have been told."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        for name in ("first", "second"):
            (directory / name).write_text(PLUGIN)
            (directory / name).chmod(0o755)
            self.answer(name, "ADD", {**RESULT, "by": name})
        self.plugins = Plugins([str(directory)], 20)

    def answer(self, name: str, command: str, what: Any) -> None:
        (self.directory / f"{name}.{command}").write_text(what if isinstance(what, str) else json.dumps(what))

    def calls(self) -> list[dict[str, Any]]:
        file = self.directory / "calls"
        found = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
        file.unlink(missing_ok=True)
        return found

    def told(self) -> list[tuple[str, str]]:
        return [(call["command"], call["type"]) for call in self.calls()]


@pytest.fixture
def node(tmp_path):
    return Node(tmp_path)


def network(version: str, **fields: Any) -> NetworkList:
    return NetworkList(name="n", version=version, plugins=({"type": "first"}, {"type": "second"}), **fields)


@pytest.mark.parametrize("version", ["0.3.1", "0.4.0", "1.0.0", "1.1.0"])
async def test_a_pods_attachment_from_its_beginning_to_its_end(node, version):
    net = network(version)
    result = await node.plugins.add(net, POD)
    assert result["by"] == "second"
    first, second = node.calls()
    assert (first["type"], second["type"]) == ("first", "second")
    assert "prevResult" not in first["given"]
    assert second["given"]["prevResult"]["by"] == "first"
    assert (first["given"]["name"], first["given"]["cniVersion"]) == ("n", version)

    await node.plugins.check(net, POD, result)
    checks = node.calls()
    assert [call["type"] for call in checks] == ([] if version == "0.3.1" else ["first", "second"])
    assert all(call["given"]["prevResult"] == result for call in checks)

    await node.plugins.delete(net, POD, result)
    last, before = node.calls()
    assert (last["type"], before["type"]) == ("second", "first")  # the other way round
    assert last["given"].get("prevResult") == (None if version == "0.3.1" else result)

    await node.plugins.status(net)
    await node.plugins.gc(net, [("p", "eth0"), ("q", "eth0")])
    calls = node.calls()
    if version != "1.1.0":
        assert calls == []
        return
    assert [call["command"] for call in calls] == ["STATUS"] * 2 + ["GC"] * 2
    valid = [{"containerID": "p", "ifname": "eth0"}, {"containerID": "q", "ifname": "eth0"}]
    assert all(call["given"]["cni.dev/valid-attachments"] == valid for call in calls[2:])


async def test_a_network_that_wants_no_check_or_collection_gets_none(node, tmp_path):
    path = tmp_path / "10.conflist"
    listed = {"name": "n", "cniVersions": ["1.0.0", "1.1.0", "9.0.0"], "plugins": [{"type": "first"}]}
    path.write_text(json.dumps({**listed, "disableCheck": "true", "disableGC": True}))
    net = parse(path)
    assert net.version == "1.1.0"  # the newest that is known
    await node.plugins.check(net, POD, RESULT)
    await node.plugins.gc(net, [])
    assert node.told() == []
    assert NetworkList.from_json(net.to_json()) == net


async def test_a_network_that_cannot_serve_now_says_so(node):
    node.answer("second", "STATUS", {"code": 50, "msg": "no addresses", "details": "of 10.1.2.0/24"})
    with pytest.raises(Unavailable, match="second STATUS: no addresses: of 10.1.2.0/24"):
        await node.plugins.status(network("1.1.0"))


@pytest.mark.parametrize(
    ("answer", "error"), [({"code": 100, "msg": "no"}, Internal), ("no JSON", InvalidArgument), ("", None)]
)
async def test_every_plugin_is_asked_to_detach_whatever_another_answers(node, answer, error):
    node.answer("second", "DEL", answer)
    if error is None:
        await node.plugins.delete(network("1.0.0"), POD, None)
    else:
        with pytest.raises(error, match="second DEL"):
            await node.plugins.delete(network("1.0.0"), POD, None)
    assert node.told() == [("DEL", "second"), ("DEL", "first")]


async def test_every_plugin_is_told_what_there_is_whatever_another_answers(node):
    node.answer("first", "GC", "no JSON")
    with pytest.raises(InvalidArgument, match="first GC"):
        await node.plugins.gc(network("1.1.0"), [])
    assert node.told() == [("GC", "first"), ("GC", "second")]


async def test_capabilities_go_to_the_plugins_that_ask_for_them(node, tmp_path):
    config = pb.PodSandboxConfig(
        metadata=pb.PodSandboxMetadata(name="name", namespace="space", uid="u"),
        annotations={"kubernetes.io/ingress-bandwidth": "10M", "kubernetes.io/egress-bandwidth": "1M"},
        dns_config=pb.DNSConfig(servers=["10.0.0.10"], searches=["svc"], options=["ndots:5"]),
        port_mappings=[pb.PortMapping(container_port=80, host_port=8080), pb.PortMapping(container_port=81)],
    )
    attachment = Network(Cni(), tmp_path).attachment("p", "/run/netns/p", config, "/pods")
    asks = {"type": "first", "capabilities": {"bandwidth": True, "dns": True, "portMappings": True, "aliases": False}}
    net = NetworkList(name="n", version="1.0.0", plugins=(asks, {"type": "second"}))
    await node.plugins.add(net, attachment)
    first, second = node.calls()
    given = first["given"]["runtimeConfig"]
    assert given.keys() == {"bandwidth", "dns", "portMappings"}
    assert (given["bandwidth"]["ingressRate"], given["bandwidth"]["egressRate"]) == (10_000_000, 1_000_000)
    assert given["dns"] == {"servers": ["10.0.0.10"], "searches": ["svc"], "options": ["ndots:5"]}
    assert [(one["hostPort"], one["containerPort"]) for one in given["portMappings"]] == [(8080, 80)]
    assert "runtimeConfig" not in second["given"]
    assert "K8S_POD_NAMESPACE=space;K8S_POD_NAME=name;K8S_POD_INFRA_CONTAINER_ID=p;K8S_POD_UID=u" in second["args"]
