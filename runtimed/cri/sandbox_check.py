"""What a pod's configuration may be."""

from runtimed.api import cri_pb2 as pb
from runtimed.cri import namespaces, sandbox_files
from runtimed.errors import InvalidArgument


def check(config: pb.PodSandboxConfig) -> None:
    """Refuse a configuration that cannot be, before anything is made of it. Raises InvalidArgument."""
    metadata = config.metadata
    if not metadata.name or not metadata.namespace:
        raise InvalidArgument("pod: its metadata must have a name and a namespace")
    sandbox_files.check(config)
    namespaces.check_sandbox(config.linux.security_context.namespace_options)
