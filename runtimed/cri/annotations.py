"""Annotations of a spec: our own, and those of pods and containers that the configuration lets through.

runc takes some annotations as orders (``org.systemd.property.*`` are properties of a systemd unit, CVE-2024-3154), so
nothing passes that was not allowed by name or pattern, and those only by a pattern that names them.
"""

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

from runtimed.cri.request import ContainerSpecRequest, SandboxSpecRequest

CDI_PREFIX = "cdi.k8s.io/"
_CRI = "io.kubernetes.cri."
_ORDERS = ("org.systemd.property.", "run.oci.")


def of_container(request: ContainerSpecRequest) -> dict[str, str]:
    """Return the annotations of a container's spec; the keys are containerd's."""
    pod, config = request.sandbox_config, request.config
    return {
        **allowed(pod.annotations, request.rules.pod_annotations),
        **allowed(config.annotations, request.rules.container_annotations),
        **_of_pod(request.sandbox_id, pod.metadata.name, pod.metadata.namespace, pod.metadata.uid),
        f"{_CRI}container-type": "container",
        f"{_CRI}container-name": config.metadata.name,
        f"{_CRI}image-name": request.image_name or config.image.image,
    }


def of_sandbox(request: SandboxSpecRequest) -> dict[str, str]:
    """Return the annotations of a pod's spec. Its size is said to runtimes that make a virtual machine for it."""
    config = request.config
    sizes = {}
    for key, name in (
        ("cpu-period", "cpu_period"),
        ("cpu-quota", "cpu_quota"),
        ("cpu-shares", "cpu_shares"),
        ("memory", "memory_limit_in_bytes"),
    ):
        size = getattr(config.linux.resources, name) + getattr(config.linux.overhead, name)
        if key == "cpu-period":  # the same in both, if they say it
            size = config.linux.resources.cpu_period or config.linux.overhead.cpu_period
        sizes[f"{_CRI}sandbox-{key}"] = str(size)
    return {
        **allowed(config.annotations, request.rules.pod_annotations),
        **_of_pod(request.sandbox_id, config.metadata.name, config.metadata.namespace, config.metadata.uid),
        **sizes,
        f"{_CRI}container-type": "sandbox",
        f"{_CRI}sandbox-log-directory": config.log_directory,
    }


def allowed(annotations: Mapping[str, str], patterns: Sequence[str]) -> dict[str, str]:
    """Return those of *annotations* whose key one of the globs *patterns* matches."""
    return {key: value for key, value in annotations.items() if any(_matches(key, pattern) for pattern in patterns)}


def _matches(key: str, pattern: str) -> bool:
    for prefix in _ORDERS:
        if key.startswith(prefix) and not pattern.startswith(prefix):
            return False
    return fnmatchcase(key, pattern)


def _of_pod(id: str, name: str, namespace: str, uid: str) -> dict[str, str]:
    return {
        f"{_CRI}sandbox-id": id,
        f"{_CRI}sandbox-name": name,
        f"{_CRI}sandbox-namespace": namespace,
        f"{_CRI}sandbox-uid": uid,
    }
