"""Pods and containers by what people call them: an ID or the beginning of one, or a name that tells it."""

import re
from collections.abc import Iterable, Sequence
from typing import Any

from runtimed.api import cri_pb2 as pb
from runtimed.cli.client import Client
from runtimed.cli.cri.calls import RUNTIME
from runtimed.errors import InvalidArgument, NotFound

SHORT = 13  # characters of an ID that tables show, as crictl's do
_ID = re.compile(r"[0-9a-f]{64}")
_SHOWN = 5  # of those that a word could mean


async def pod_id(client: Client, word: str) -> str:
    """Return the ID of the pod that *word* means: its ID, the beginning of it, ``name`` or ``namespace/name``.

    Of several pods of a name, the one that is ready is meant.

    Raises:
        NotFound, InvalidArgument: there is none; there are several.
    """
    if _ID.fullmatch(word):
        return word
    pods = await list_pods(client)
    named = [one for one in pods if word in pod_names(one.metadata)]
    return _only("pod", word, named, pods, [one for one in named if one.state == pb.SANDBOX_READY])


async def container_id(client: Client, word: str) -> str:
    """Return the ID of the container that *word* means: its ID, the beginning of it, ``name``, ``pod/name`` or
    ``namespace/pod/name``.

    Of several containers of a name, the one that runs is meant.

    Raises:
        NotFound, InvalidArgument: there is none; there are several.
    """
    if _ID.fullmatch(word):
        return word
    containers = await list_containers(client)
    pods = {one.id: one.metadata for one in await list_pods(client)} if "/" in word else {}
    named = [one for one in containers if word in container_names(one.metadata.name, pods.get(one.pod_sandbox_id))]
    return _only("container", word, named, containers, [one for one in named if one.state == pb.CONTAINER_RUNNING])


async def list_pods(client: Client, wanted: pb.PodSandboxFilter | None = None) -> Sequence[pb.PodSandbox]:
    """Return the pods that match, the youngest first."""
    answer = await client.call(RUNTIME.ListPodSandbox, pb.ListPodSandboxRequest(filter=wanted))
    return sorted(answer.items, key=lambda one: one.created_at, reverse=True)


async def list_containers(client: Client, wanted: pb.ContainerFilter | None = None) -> Sequence[pb.Container]:
    """Return the containers that match, the youngest first."""
    answer = await client.call(RUNTIME.ListContainers, pb.ListContainersRequest(filter=wanted))
    return sorted(answer.containers, key=lambda one: one.created_at, reverse=True)


def pod_names(pod: pb.PodSandboxMetadata) -> tuple[str, str]:
    """Return the names that a pod goes by."""
    return pod.name, f"{pod.namespace}/{pod.name}"


def container_names(name: str, pod: pb.PodSandboxMetadata | None) -> tuple[str, ...]:
    """Return the names that a container goes by, given its pod's metadata if there is one."""
    return (name, *(f"{one}/{name}" for one in pod_names(pod))) if pod is not None else (name,)


def _only(kind: str, word: str, named: Sequence[Any], everything: Iterable[Any], first: Sequence[Any]) -> str:
    found = first if len(first) == 1 else named
    found = found or [one for one in everything if word and one.id.startswith(word)]
    command = "pods" if kind == "pod" else "ps -a"
    if not found:
        missing = NotFound(f"no {kind} has the name {word!r}, or an ID that begins like this")
        missing.add_note(f"'rctl cri {command}' lists them")
        raise missing
    if len(found) > 1:
        ids = ", ".join(one.id[:SHORT] for one in found[:_SHOWN]) + (", ..." if len(found) > _SHOWN else "")
        several = InvalidArgument(f"{kind} {word!r} could be any of {len(found)}: {ids}")
        several.add_note(f"give more of the ID; 'rctl cri {command}' tells them apart")
        raise several
    return str(found[0].id)
