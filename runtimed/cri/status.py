"""What a kubelet asks about the runtime itself: version, conditions, handlers with their features, cgroup driver."""

from importlib.metadata import version as installed

import msgspec

from runtimed.api import cri_pb2 as pb
from runtimed.cri.core import Core
from runtimed.cri.handlers import Handler, Handlers
from runtimed.errors import RuntimedError

_KUBE_API_VERSION = "0.1.0"  # what the CRI has always said here; kubelet compares with it
_API_VERSION = "v1"


def version() -> pb.VersionResponse:
    """Return who is serving."""
    return pb.VersionResponse(
        version=_KUBE_API_VERSION,
        runtime_name="runtimed",
        runtime_version=installed("runtimed"),
        runtime_api_version=_API_VERSION,
    )


async def status(core: Core, *, verbose: bool) -> pb.StatusResponse:
    """Return the conditions and what the runtime can do; the answer does not wait for anything slow."""
    handlers, network = core.handlers, core.network
    problem = await network.problem()
    ready = pb.RuntimeCondition(type="RuntimeReady", status=True)
    has_network = pb.RuntimeCondition(type="NetworkReady", status=not problem)
    if problem:
        has_network.reason, has_network.message = "NetworkPluginNotReady", problem
    return pb.StatusResponse(
        status=pb.RuntimeStatus(conditions=[ready, has_network]),
        info=await _info(core) if verbose else None,
        runtime_handlers=[
            _handler(core, "", handlers.default),
            *(_handler(core, handler.name, handler) for handler in handlers),
        ],
        features=pb.RuntimeFeatures(
            supplemental_groups_policy=True,
            user_namespaces_host_network=any(core.has_user_namespaces(handler) for handler in handlers),
        ),
    )


def runtime_config(handlers: Handlers) -> pb.RuntimeConfigResponse:
    """Return which cgroup driver a kubelet has to use: the default handler's."""
    driver = pb.SYSTEMD if handlers.default.runtime.systemd_cgroup else pb.CGROUPFS
    return pb.RuntimeConfigResponse(linux=pb.LinuxRuntimeConfiguration(cgroup_driver=driver))


def _handler(core: Core, name: str, handler: Handler) -> pb.RuntimeHandler:
    # A kubelet refuses pods that need what is not told here before it asks for them.
    features = pb.RuntimeHandlerFeatures(
        recursive_read_only_mounts=handler.is_runc, user_namespaces=core.has_user_namespaces(handler)
    )
    return pb.RuntimeHandler(name=name, features=features)


async def _info(core: Core) -> dict[str, str]:
    handlers = core.handlers
    try:
        cni = (await core.network.configured()).to_json()
    except RuntimedError as exc:
        cni = {"error": str(exc)}
    config = {
        "defaultRuntimeHandler": handlers.default.name,
        "runtimes": {
            handler.name: {"runtime": handler.settings.runtime, "snapshotter": handler.snapshotter}
            for handler in handlers
        },
    }
    return {
        "config": msgspec.json.encode(config).decode(),
        "cniconfig": msgspec.json.encode(cni).decode(),
        "pulls": msgspec.json.encode(core.images.pulls()).decode(),
    }
