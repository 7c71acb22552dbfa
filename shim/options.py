"""Options of one container, as clients give them: containerd.runc.v1.Options.

They are kept in the bundle as ``options.json``, with ``runtime`` naming the OCI runtime's binary, so that what comes
after a shim that died (``main.delete``) finds the container's state again.
"""

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import DecodeError

from runtimed.api import runc_options_pb2 as pb
from runtimed.errors import InvalidArgument, os_errors

DEFAULT_BINARY = "runc"
DEFAULT_ROOT = "/run/runtimed/runc"  # below it a directory for each namespace


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What the OCI runtime is told, and which one it is."""

    binary_name: str = DEFAULT_BINARY  # on PATH, or a path
    root: str = DEFAULT_ROOT
    systemd_cgroup: bool = False
    no_pivot_root: bool = False
    no_new_keyring: bool = False
    shim_cgroup: str = ""  # the shim's own, below each cgroup hierarchy
    io_uid: int = 0  # owner of the container's streams
    io_gid: int = 0

    @classmethod
    def from_any(cls, value: AnyMessage, default_root: str) -> "Options":
        """Return the options of a request; none, and options for the shim as such, are the defaults.

        Raises:
            InvalidArgument: options of another kind, or malformed ones.
        """
        kind = value.type_url.rpartition("/")[2]
        if kind in {"", "runtimeoptions.v1.Options"}:
            return cls(root=default_root)
        if kind != pb.Options.DESCRIPTOR.full_name:
            raise InvalidArgument(f"options of type {kind!r}; this runtime takes {pb.Options.DESCRIPTOR.full_name}")
        try:
            given = pb.Options.FromString(value.value)
        except DecodeError:
            raise InvalidArgument(f"options: not a message of type {kind}") from None
        return cls(
            binary_name=given.binary_name or DEFAULT_BINARY,
            root=given.root or default_root,
            systemd_cgroup=given.systemd_cgroup,
            no_pivot_root=given.no_pivot_root,
            no_new_keyring=given.no_new_keyring,
            shim_cgroup=given.shim_cgroup,
            io_uid=given.io_uid,
            io_gid=given.io_gid,
        )

    @classmethod
    def read(cls, bundle: Path, default_root: str) -> "Options":
        """Return what :meth:`write` left in *bundle*; the defaults where there is nothing usable."""
        fields: dict[str, Any] = {}
        with suppress(OSError, ValueError):
            stored = json.loads((bundle / "options.json").read_bytes())
            defaults = asdict(cls())
            if isinstance(stored, Mapping):
                fields = {key: value for key, value in stored.items() if type(value) is type(defaults.get(key))}
        return cls(**{"root": default_root, **fields})

    def write(self, bundle: Path) -> None:
        """Store the options in *bundle*. Raises NotFound, ResourceExhausted, ..."""
        with os_errors(f"bundle {bundle}"):
            (bundle / "options.json").write_text(json.dumps(asdict(self)))
            (bundle / "runtime").write_text(self.binary_name)
