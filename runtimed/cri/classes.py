"""Classes of service that pods name by annotation: of block I/O, as configured, and of RDT, as the kernel has them.

RDT (caches and memory bandwidth) has a directory for each class below /sys/fs/resctrl, which an administrator makes
(the kernel's Documentation/arch/x86/resctrl.rst).
"""

import re
from collections.abc import Mapping
from pathlib import Path

from runtimed.config import BlockIoClass
from runtimed.cri.request import ContainerSpecRequest
from runtimed.errors import FailedPrecondition, InvalidArgument, os_errors
from runtimed.linux.devices import device_at
from runtimed.oci.runtime_spec import BlockIo, IntelRdt, ThrottleDevice

RESCTRL = Path("/sys/fs/resctrl")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_NO_CLASSES = {"info", "mon_data", "mon_groups"}  # what else there is in it


def block_io(request: ContainerSpecRequest) -> BlockIo | None:
    """Return what the class of block I/O says that annotations name; None if they name none.

    Raises as :func:`block_io_class`.
    """
    name = _asked(request, "blockio", "io.kubernetes.cri.blockio-class")
    return block_io_class(request.rules.block_io_classes, name) if name else None


def intel_rdt(request: ContainerSpecRequest) -> IntelRdt | None:
    """Return the RDT class that annotations name; None if they name none. Raises as :func:`rdt_class`."""
    name = _asked(request, "rdt", "io.kubernetes.cri.rdt-class")
    return IntelRdt(clos_id=rdt_class(name)) if name else None


def block_io_class(classes: Mapping[str, BlockIoClass], name: str) -> BlockIo:
    """Return what the class *name* says, for the devices as they are numbered now. Blocks.

    Raises:
        InvalidArgument: it is not configured, or a device of it is none.
        NotFound: a device of it is not there.
    """
    found = classes.get(name)
    if found is None:
        known = ", ".join(sorted(classes)) or "none"
        raise InvalidArgument(
            f"block I/O class {name[:64]!r} is not configured in [cri.block_io_classes]; there are: {known}"
        )
    numbers = [_numbers(name, path) for path in found.devices]

    def limits(rate: int) -> tuple[ThrottleDevice, ...]:
        return tuple(ThrottleDevice(major=major, minor=minor, rate=rate) for major, minor in numbers if rate)

    return BlockIo(
        weight=found.weight or None,
        throttle_read_bps=limits(found.read_bytes_per_s),
        throttle_write_bps=limits(found.write_bytes_per_s),
        throttle_read_iops=limits(found.reads_per_s),
        throttle_write_iops=limits(found.writes_per_s),
    )


def rdt_class(name: str) -> str:
    """Return *name*, which is an RDT class. Blocks.

    Raises:
        InvalidArgument: not a name.
        FailedPrecondition: resctrl is not mounted, or has no such class.
    """
    if not _NAME.fullmatch(name) or name in _NO_CLASSES:
        raise InvalidArgument(f"RDT class {name[:64]!r} is not the name of one")
    if not (RESCTRL / "schemata").exists():
        raise FailedPrecondition(f"RDT class {name!r}: no resctrl file system is mounted on {RESCTRL}")
    if not (RESCTRL / name).is_dir():
        raise FailedPrecondition(f"RDT class {name!r} does not exist: make the directory {RESCTRL / name}")
    return name


def _asked(request: ContainerSpecRequest, kind: str, own_key: str) -> str:
    """Return the class: the container's own annotation, what the pod says of this container, what it says of all."""
    of_pod: Mapping[str, str] = request.sandbox_config.annotations
    prefix = f"{kind}.resources.beta.kubernetes.io"
    return (
        request.config.annotations.get(own_key)
        or of_pod.get(f"{prefix}/container.{request.config.metadata.name}")
        or of_pod.get(f"{prefix}/pod")
        or ""
    )


def _numbers(name: str, path: str) -> tuple[int, int]:
    with os_errors(f"block I/O class {name!r}: device {path}"):
        device = device_at(Path(path))
    if device is None or device.type != "b":
        raise InvalidArgument(f"block I/O class {name!r}: {path} is not a block device")
    return device.major, device.minor
