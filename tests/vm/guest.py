"""A guest: a small machine with another kernel and cgroup v2 alone that runs one command on the host's own files.

There is no image. qemu boots a kernel and an initramfs made here; the guest's root is the host's ``/``, read only over
virtiofs, under a file system in memory: Python, runc and the checkout are there, and nothing that the guest writes
reaches the host, except for its output and a data disk. It runs under TCG, so that it works where KVM does not: a boot
takes four seconds, and what needs a lot of CPU takes ten times as long as on the host.
"""

import lzma
import re
import shlex
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from tests.vm import cpio, packages
from tests.vm.packages import Kernel, Unavailable

HERE = Path(__file__).parent
CHECKOUT = HERE.parent.parent
MODULES = ("virtio_pci", "virtiofs", "overlay", "virtio_blk")
_STATUS = re.compile(rb"guest: exit status (\d+)\s*\Z")
# That of Debian 12's qemu, and the package virtiofsd of Debian 13.
_VIRTIOFSD = {
    "/usr/lib/qemu/virtiofsd": ("-o", "source=/,cache=always,sandbox=chroot"),
    "/usr/libexec/virtiofsd": ("--shared-dir=/", "--cache=always", "--sandbox=chroot"),
}


@dataclass(frozen=True)
class Disk:
    """A disk for /data, with an ext4 file system (``/tmp`` lies on it too).

    Attributes:
        drive: what qemu's ``file=`` names: a file, or ``nbd:unix:<socket>``.
        options: mount options.
        cache: qemu's word: ``unsafe`` is fastest and ignores flushes, ``writeback`` heeds them.
    """

    drive: str
    options: str = "noatime"
    cache: str = "unsafe"


class Guest:
    """A guest that runs. Only :func:`guest` makes one."""

    def __init__(self, qemu: subprocess.Popen[bytes], place: Path, deadline: float) -> None:
        self._qemu = qemu
        self._place = place
        self._deadline = deadline

    @property
    def output(self) -> str:
        """Return what the command has written so far."""
        return _STATUS.sub(b"", self._raw()).decode(errors="replace")

    @property
    def console(self) -> str:
        """Return what the kernel has said so far."""
        return (self._place / "console").read_text(errors="replace")

    @property
    def running(self) -> bool:
        return self._qemu.poll() is None

    def wait(self) -> int:
        """Wait for the command to end and return its exit status.

        Raises:
            AssertionError: it did not end in time, or the guest ended without it; with the last output.
        """
        try:
            self._qemu.wait(max(self._deadline - time.monotonic(), 0))
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the guest's command did not end in time\n{self._last_words()}") from None
        found = _STATUS.search(self._raw())
        if not found:
            raise AssertionError(f"the guest ended before its command\n{self._last_words()}")
        return int(found[1])

    def wait_for(self, text: str) -> None:
        """Wait until *text* is in the output.

        Raises:
            AssertionError: it did not come in time, or the guest ended without it.
        """
        while text not in self.output:
            if not self.running or time.monotonic() > self._deadline:
                raise AssertionError(f"{text!r} is not in the guest's output\n{self._last_words()}")
            with suppress(subprocess.TimeoutExpired):
                self._qemu.wait(0.02)

    def cut(self) -> None:
        """Cut the power: what the guest has not put on its disk is lost."""
        self._qemu.kill()
        self._qemu.wait()

    def _raw(self) -> bytes:
        return (self._place / "output").read_bytes()

    def _last_words(self) -> str:
        return f"--- output\n{self.output[-8000:]}\n--- console\n{self.console[-4000:]}"


@contextmanager
def guest(
    kernel: str,
    command: Sequence[str],
    *,
    data_disk: Disk | None = None,
    files: Mapping[str, bytes] | None = None,
    systemd: bool = False,
    memory_mib: int = 512,
    timeout_s: float = 120.0,
) -> Iterator[Guest]:
    """Boot *kernel* ("6.1", "6.12") to run *command* in the checkout; at the end of the block it is gone.

    *files* are at ``/run/guest/`` in the guest. With *systemd* that is the first process, and nothing else but the
    command its service. The thread that calls this must live as long as the guest.

    Raises:
        Unavailable: qemu or the kernel's package cannot be had.
    """
    booted = packages.kernel(kernel)
    qemu = _program("qemu-system-x86_64", "package qemu-system-x86")
    with ExitStack() as held:
        place = Path(tempfile.mkdtemp(prefix="rtd-vm-"))
        held.callback(shutil.rmtree, place)
        for name in ("output", "console"):
            (place / name).touch()
        (place / "initramfs").write_bytes(_initramfs(booted, command, data_disk, files or {}, systemd))
        with (place / "host.log").open("wb") as log:
            with socket.socket(socket.AF_UNIX) as listening:
                listening.bind(f"{place}/virtiofs")
                listening.listen()
                _start(held, _virtiofsd(listening.fileno()), log, listening.fileno())
            options = _qemu_options(place, booted, data_disk, memory_mib)
            process = _start(held, [qemu, *options], log)
        yield Guest(process, place, time.monotonic() + timeout_s)


def make_disk(path: Path, size_mib: int) -> None:
    """Make *path* a sparse file with an ext4 file system for :class:`Disk`."""
    with path.open("wb") as disk:
        disk.truncate(size_mib << 20)
    options = "lazy_itable_init=1,lazy_journal_init=1,root_owner=0:0"
    subprocess.run(["mkfs.ext4", "-q", "-F", "-b", "4096", "-O", "verity", "-E", options, str(path)], check=True)


def _start(held: ExitStack, command: Sequence[str], log: IO[bytes], *fds: int) -> subprocess.Popen[bytes]:
    """Start *command*; it dies with the block, and with this process however that ends."""
    with_parent = ["setpriv", "--pdeathsig", "KILL", *command]
    process = subprocess.Popen(
        with_parent, stdin=subprocess.DEVNULL, stdout=log, stderr=log, pass_fds=fds, start_new_session=True
    )

    def end() -> None:
        process.kill()
        process.wait()

    held.callback(end)
    return process


def _virtiofsd(listening: int) -> list[str]:
    """Return the command that serves the host's files on a socket that already listens, so that nobody waits for it."""
    for program, options in _VIRTIOFSD.items():
        if Path(program).exists():
            return [program, f"--fd={listening}", *options]
    raise Unavailable("no virtiofsd: it comes with qemu-system-x86 of Debian 12, or as package virtiofsd of Debian 13")


def _qemu_options(place: Path, kernel: Kernel, disk: Disk | None, memory_mib: int) -> list[str]:
    options = "-M q35 -accel tcg,thread=multi -cpu max -smp 1 -nodefaults -no-user-config -display none -no-reboot"
    words = [*options.split(), "-m", str(memory_mib)]
    words += ["-object", f"memory-backend-memfd,id=memory,size={memory_mib}M,share=on", "-numa", "node,memdev=memory"]
    words += ["-chardev", f"socket,id=files,path={place}/virtiofs"]
    words += ["-device", "vhost-user-fs-pci,chardev=files,tag=root"]
    words += ["-serial", f"file:{place}/console", "-serial", f"file:{place}/output"]
    if disk:
        words += ["-drive", f"if=none,id=data,file={disk.drive},format=raw,cache={disk.cache}"]
        words += ["-device", "virtio-blk-pci,drive=data"]
    arguments = "console=ttyS0 quiet panic=-1 random.trust_cpu=1 tsc=reliable rdinit=/init apparmor=1"
    return [*words, "-kernel", str(kernel.vmlinux), "-initrd", f"{place}/initramfs", "-append", arguments]


def _initramfs(
    kernel: Kernel, command: Sequence[str], disk: Disk | None, files: Mapping[str, bytes], systemd: bool
) -> bytes:
    modules = {f"modules/{path.name.removesuffix('.xz')}": path for path in kernel.closure(MODULES)}
    settings = {
        "MODULES": kernel.modules,
        "PROGRAMS": packages.programs(),
        "DATA_OPTIONS": disk.options if disk else "",
        "DIRECTORY": CHECKOUT,
        "SYSTEMD": "1" if systemd else "",
    }
    lines = "".join(f"{name}={shlex.quote(str(value))}\n" for name, value in settings.items())
    contents = {
        "init": (0o755, (HERE / "init.sh").read_bytes()),
        "bin/busybox": (0o755, Path(_program("busybox", "package busybox-static")).read_bytes()),
        "modules/order": (0o644, "".join(f"/{name}\n" for name in modules).encode()),
        "guest/boot": (0o755, (HERE / "boot.sh").read_bytes()),
        "guest/settings": (0o644, lines.encode()),
        "guest/command": (0o644, f"exec {shlex.join(command)}\n".encode()),
    }
    for name, path in modules.items():
        content = path.read_bytes()
        contents[name] = (0o644, lzma.decompress(content) if path.suffix == ".xz" else content)
    return cpio.archive(contents | {f"guest/{name}": (0o644, content) for name, content in files.items()})


def _program(name: str, remedy: str) -> str:
    path = shutil.which(name)
    if path is None:
        raise Unavailable(f"no {name}: {remedy}")
    return path
