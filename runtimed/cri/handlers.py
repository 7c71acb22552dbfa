"""Runtime handlers: what pods name, and which runtime and snapshotter that means."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from runtimed.config import BUILTIN, BlockIoClass, Config, CriRuntime, Runtime
from runtimed.cri.request import HandlerRules
from runtimed.errors import InvalidArgument


@dataclass(frozen=True, slots=True, kw_only=True)
class Handler:
    """A runtime handler with what the configuration says of it."""

    name: str
    settings: CriRuntime
    runtime: Runtime
    snapshotter: str
    block_io_classes: Mapping[str, BlockIoClass]

    @property
    def rules(self) -> HandlerRules:
        """What specs for it may have in them."""
        return HandlerRules(
            pod_annotations=self.settings.pod_annotations,
            container_annotations=self.settings.container_annotations,
            systemd_cgroup=self.runtime.systemd_cgroup,
            recursive_read_only=self.is_runc,
            idmapped_mounts=self.maps_ids,
            block_io_classes=self.block_io_classes,
        )

    @property
    def is_runc(self) -> bool:
        """Say whether containers share this machine's kernel: a shim that drives runc, crun or youki."""
        return self.runtime.shim == BUILTIN or "runc" in self.runtime.shim.rpartition("/")[2]

    @property
    def maps_ids(self) -> bool:
        """Say whether its shim, which is ours then, mounts root file systems with other owners."""
        return self.runtime.shim == BUILTIN


class Handlers:
    """The runtime handlers of the configuration."""

    def __init__(self, config: Config) -> None:
        cri = config.cri
        self._default = cri.default_handler
        self._handlers: Mapping[str, Handler] = {
            name: Handler(
                name=name,
                settings=settings,
                runtime=config.runtimes[settings.runtime],
                snapshotter=settings.snapshotter or cri.snapshotter,
                block_io_classes=cri.block_io_classes,
            )
            for name, settings in cri.runtimes.items()
        }

    @property
    def default(self) -> Handler:
        return self._handlers[self._default]

    @property
    def snapshotters(self) -> list[str]:
        """Every snapshotter that pods may use, the default handler's first."""
        return list(dict.fromkeys([self.default.snapshotter, *(one.snapshotter for one in self)]))

    def __iter__(self) -> Iterator[Handler]:
        return iter(self._handlers.values())

    def get(self, name: str) -> Handler:
        """Return the handler; "" is the default one. Raises InvalidArgument."""
        handler = self._handlers.get(name or self._default)
        if handler is None:
            known = ", ".join(sorted(self._handlers))
            raise InvalidArgument(f"runtime handler {name!r} is not configured in [cri.runtimes]; there are: {known}")
        return handler
