"""Classes of block I/O and RDT: whose annotation counts, what they are in the spec, what is said of a wrong one."""

import os
from contextlib import nullcontext
from pathlib import Path

import pytest

from runtimed.api import cri_pb2 as pb
from runtimed.config import BlockIoClass
from runtimed.cri import classes
from runtimed.cri.request import ContainerSpecRequest, HandlerRules
from runtimed.cri.rootfs import Rootfs
from runtimed.errors import FailedPrecondition, InvalidArgument, NotFound
from runtimed.oci.manifest import Execution
from runtimed.oci.runtime_spec import BlockIo, Device, IntelRdt, ThrottleDevice


@pytest.fixture
def resctrl(tmp_path, monkeypatch):
    """A directory like the one that resctrl has mounted, with the class gold."""
    path = tmp_path / "resctrl"
    for name in ("gold", "info", "mon_groups", "mon_data"):
        (path / name).mkdir(parents=True)
    (path / "schemata").write_text("L3:0=fff\n")
    monkeypatch.setattr(classes, "RESCTRL", path)
    return path


def request(config=None, pod=None, **rules):
    """Return the request for a container named main, with annotations of its own and of its pod."""
    return ContainerSpecRequest(
        container_id="c",
        sandbox_id="s",
        sandbox_pid=os.getpid(),
        config=pb.ContainerConfig(metadata=pb.ContainerMetadata(name="main"), annotations=config),
        sandbox_config=pb.PodSandboxConfig(annotations=pod),
        image=Execution(),
        rootfs=Rootfs(nullcontext(Path("/root"))),
        directory=Path("/container"),
        sandbox_directory=Path("/sandbox"),
        mapped_volumes=Path("/mapped"),
        rules=HandlerRules(**rules),
    )


@pytest.mark.parametrize(
    ("config", "pod"),
    [
        ({"io.kubernetes.cri.rdt-class": "gold"}, {"rdt.resources.beta.kubernetes.io/pod": "other"}),
        ({}, {"rdt.resources.beta.kubernetes.io/container.main": "gold", "rdt.resources.beta.kubernetes.io/pod": "x"}),
        ({}, {"rdt.resources.beta.kubernetes.io/pod": "gold"}),
    ],
)
def test_an_rdt_class_is_the_containers_or_the_pods(resctrl, config, pod):
    assert classes.intel_rdt(request(config, pod)) == IntelRdt(clos_id="gold")


def test_who_names_no_class_gets_none(resctrl):
    other = request({}, {"rdt.resources.beta.kubernetes.io/container.side": "gold"})
    assert classes.intel_rdt(other) is None
    assert classes.block_io(other) is None


@pytest.mark.parametrize("name", ["../gold", ".", "info", "mon_groups", "a" * 65, "gold/mon_groups"])
def test_what_is_no_name_of_an_rdt_class_is_refused(resctrl, name):
    with pytest.raises(InvalidArgument, match="RDT class .* is not the name of one"):
        classes.rdt_class(name)


def test_an_rdt_class_that_is_not_there_is_named_with_what_to_do(resctrl):
    with pytest.raises(FailedPrecondition, match=f"RDT class 'silver' does not exist: make .*{resctrl}/silver"):
        classes.intel_rdt(request({"io.kubernetes.cri.rdt-class": "silver"}))
    (resctrl / "schemata").unlink()
    with pytest.raises(FailedPrecondition, match=f"RDT class 'gold': no resctrl .* mounted on {resctrl}"):
        classes.intel_rdt(request({"io.kubernetes.cri.rdt-class": "gold"}))


def test_a_block_io_class_is_of_the_devices_as_they_are_numbered_now(monkeypatch):
    def disk(path):
        return Device(path=str(path), type="b", major=8, minor=int(path.name[-1]), file_mode=0o660, uid=0, gid=0)

    monkeypatch.setattr(classes, "device_at", disk)
    slow = BlockIoClass(weight=50, devices=("/dev/disk1", "/dev/disk2"), read_bytes_per_s=1 << 20, writes_per_s=100)
    asked = request({}, {"blockio.resources.beta.kubernetes.io/pod": "slow"}, block_io_classes={"slow": slow})
    assert classes.block_io(asked) == BlockIo(
        weight=50,
        throttle_read_bps=tuple(ThrottleDevice(major=8, minor=number, rate=1 << 20) for number in (1, 2)),
        throttle_write_iops=tuple(ThrottleDevice(major=8, minor=number, rate=100) for number in (1, 2)),
    )
    assert classes.block_io_class({"light": BlockIoClass(weight=50)}, "light") == BlockIo(weight=50)


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("fast", InvalidArgument, "block I/O class 'fast' is not configured in .*; there are: gone, no-disk"),
        ("no-disk", InvalidArgument, "block I/O class 'no-disk': /dev/null is not a block device"),
        ("gone", NotFound, "block I/O class 'gone': device /dev/absent"),
    ],
)
def test_a_block_io_class_that_cannot_be_is_named(name, error, message):
    configured = {
        "no-disk": BlockIoClass(devices=("/dev/null",), reads_per_s=1),
        "gone": BlockIoClass(devices=("/dev/absent",), reads_per_s=1),
    }
    asked = request({"io.kubernetes.cri.blockio-class": name}, block_io_classes=configured)
    with pytest.raises(error, match=message):
        classes.block_io(asked)
