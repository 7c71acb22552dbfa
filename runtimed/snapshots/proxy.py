"""A snapshotter in another process, behind containerd's Snapshots service on a unix socket, as a snapshotter.

What containerd calls a proxy plugin. The process may come late and be started anew: a call that nobody answers is
Unavailable, and the next one after it is back, within a second, is answered.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import Any

import grpc

from runtimed.api import snapshots_pb2 as pb
from runtimed.api import types_pb2
from runtimed.api.snapshots_pb2_grpc import SnapshotsStub
from runtimed.errors import Unavailable, Unimplemented, from_code
from runtimed.mounts import Mount
from runtimed.snapshots.snapshotter import Info, Kind, Mounts, Usage

_RECORDS_LIMIT_S = 30.0
_WORK_LIMIT_S = 3600.0  # the process may download what a snapshot is to show
_LARGEST_MESSAGE = 16 << 20
_OPTIONS = (
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.max_receive_message_length", _LARGEST_MESSAGE),
    ("grpc.use_local_subchannel_pool", 1),  # two snapshotters of one socket do not wait for each other
)
_KINDS = {pb.VIEW: Kind.VIEW, pb.ACTIVE: Kind.ACTIVE, pb.COMMITTED: Kind.COMMITTED}


class ProxySnapshotter:
    """Passes each call on to the process that listens on a socket.

    Errors are the process's own, with its name for them; besides, every method raises Unavailable if it is not there,
    and DeadlineExceeded if it does not answer.
    """

    def __init__(self, name: str, address: str, capabilities: tuple[str, ...] = ()) -> None:
        """*name* is what the process calls its snapshotter, *address* the path of its socket. Connects when called."""
        self.capabilities = capabilities
        self._name = name
        self._address = address
        self._channel = grpc.insecure_channel(f"unix:{address}", options=_OPTIONS)
        self._stub = SnapshotsStub(self._channel)

    def prepare(self, key: str, parent: str, labels: Mapping[str, str]) -> Mounts:
        request = pb.PrepareSnapshotRequest(snapshotter=self._name, key=key, parent=parent, labels=labels)
        return _mounts(self._call(self._stub.Prepare, request, _WORK_LIMIT_S).mounts)

    def view(self, key: str, parent: str, labels: Mapping[str, str]) -> Mounts:
        request = pb.ViewSnapshotRequest(snapshotter=self._name, key=key, parent=parent, labels=labels)
        return _mounts(self._call(self._stub.View, request, _WORK_LIMIT_S).mounts)

    def mounts(self, key: str) -> Mounts:
        return _mounts(self._call(self._stub.Mounts, pb.MountsRequest(snapshotter=self._name, key=key)).mounts)

    def commit(self, name: str, key: str, labels: Mapping[str, str]) -> None:
        request = pb.CommitSnapshotRequest(snapshotter=self._name, name=name, key=key, labels=labels)
        self._call(self._stub.Commit, request, _WORK_LIMIT_S)

    def remove(self, key: str) -> None:
        self._call(self._stub.Remove, pb.RemoveSnapshotRequest(snapshotter=self._name, key=key), _WORK_LIMIT_S)

    def stat(self, key: str) -> Info:
        return _info(self._call(self._stub.Stat, pb.StatSnapshotRequest(snapshotter=self._name, key=key)).info)

    def update(self, key: str, labels: Mapping[str, str]) -> Info:
        request = pb.UpdateSnapshotRequest(snapshotter=self._name, info=pb.Info(name=key, labels=labels))
        request.update_mask.paths.append("labels")
        return _info(self._call(self._stub.Update, request).info)

    def usage(self, key: str) -> Usage:
        answer = self._call(self._stub.Usage, pb.UsageRequest(snapshotter=self._name, key=key), _WORK_LIMIT_S)
        return Usage(answer.size, answer.inodes)

    def cleanup(self) -> None:
        with suppress(Unimplemented):  # containerd's words: not every snapshotter has it
            self._call(self._stub.Cleanup, pb.CleanupRequest(snapshotter=self._name), _WORK_LIMIT_S)

    def close(self) -> None:
        self._channel.close()

    def list(self) -> Iterator[Info]:
        request = pb.ListSnapshotsRequest(snapshotter=self._name)
        infos = self._call(lambda *args, **options: [*self._stub.List(*args, **options)], request)
        return iter(_parents_first([_info(one) for answer in infos for one in answer.info]))

    def _call(self, method: Callable[..., Any], request: Any, limit_s: float = _RECORDS_LIMIT_S) -> Any:
        try:
            return method(request, timeout=limit_s)
        except grpc.RpcError as exc:
            error = from_code(exc.code().value[0], exc.details() or exc.code().name)
            if isinstance(error, Unavailable):
                error = Unavailable(
                    f"snapshotter {self._name!r}: nobody answers on {self._address} ({error}); is its service running?"
                )
            raise error from None


def _mounts(mounts: "list[types_pb2.Mount]") -> Mounts:
    return [Mount(one.type, one.source, one.target, tuple(one.options)) for one in mounts]


def _info(message: pb.Info) -> Info:
    return Info(
        name=message.name,
        parent=message.parent,
        kind=_KINDS.get(message.kind, Kind.ACTIVE),
        labels=dict(message.labels),
        created_at=message.created_at.ToNanoseconds(),
        updated_at=message.updated_at.ToNanoseconds(),
    )


def _parents_first(infos: "list[Info]") -> "list[Info]":
    """Order *infos*, which come in any order, as :meth:`Snapshotter.list` promises."""
    by_name = {info.name: info for info in infos}
    ordered: dict[str, Info] = {}
    for info in infos:
        chain = []
        one: Info | None = info
        while one is not None and one.name not in ordered and one not in chain:
            chain.append(one)
            one = by_name.get(one.parent)
        ordered |= {one.name: one for one in reversed(chain)}
    return list(ordered.values())
