"""Options of one container, as clients give them: containerd.runc.v1.Options.

They are kept in the bundle as ``options.json``, with ``runtime`` naming the OCI runtime's binary, so that what comes
after a shim that died (``main.delete``) finds the container's state again.
"""

import json
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, NamedTuple

from runtimed.errors import InvalidArgument, os_errors
from shim import files
from shim import messages as pb
from shim.proto import DecodeError

DEFAULT_BINARY = "runc"
DEFAULT_ROOT = "/run/runtimed/runc"  # below it a directory for each namespace


class Options(NamedTuple):
    """What the OCI runtime is told, and which one it is."""

    binary_name: str = DEFAULT_BINARY  # on PATH, or a path
    root: str = DEFAULT_ROOT
    systemd_cgroup: bool = False
    no_pivot_root: bool = False
    no_new_keyring: bool = False
    shim_cgroup: str = ""  # the shim's own, below each cgroup hierarchy
    io_uid: int = 0  # owner of the container's streams
    io_gid: int = 0
    criu_work_path: str = ""  # where CRIU logs a restore

    @classmethod
    def from_any(cls, value: pb.Any | None, default_root: str) -> "Options":
        """Return the options of a request; none, and options for the shim as such, are the defaults.

        Raises:
            InvalidArgument: options of another kind, or malformed ones.
        """
        kind = value.type_url.rpartition("/")[2] if value is not None else ""
        if value is None or kind in {"", "runtimeoptions.v1.Options"}:
            return cls(root=default_root)
        if kind != pb.Options.FULL_NAME:
            raise InvalidArgument(f"options of type {kind!r}; this runtime takes {pb.Options.FULL_NAME}")
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
            criu_work_path=given.criu_work_path,
        )

    @classmethod
    def read(cls, bundle: str, default_root: str) -> "Options":
        """Return what :meth:`write` left in *bundle*; the defaults where there is nothing usable."""
        fields: dict[str, Any] = {}
        with suppress(OSError, ValueError):
            stored = json.loads(files.read(f"{bundle}/options.json"))
            defaults = cls()._asdict()
            if isinstance(stored, Mapping):
                fields = {key: value for key, value in stored.items() if type(value) is type(defaults.get(key))}
        return cls(**{"root": default_root, **fields})

    def write(self, bundle: str) -> None:
        """Store the options in *bundle*. Raises NotFound, ResourceExhausted, ..."""
        with os_errors(f"bundle {bundle}"):
            files.write(f"{bundle}/options.json", json.dumps(self._asdict()).encode())
            files.write(f"{bundle}/runtime", self.binary_name.encode())
