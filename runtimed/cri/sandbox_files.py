"""The files that a pod's containers share.

<state>/cri/sandboxes/<id>/
    hostname, hosts, resolv.conf
    shm             a tmpfs, unless the pod uses the host's IPC namespace
"""

import ipaddress
import os
import re
import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from runtimed.api import cri_pb2 as pb
from runtimed.errors import InvalidArgument, os_errors
from runtimed.linux.mount import MS_NODEV, MS_NOEXEC, MS_NOSUID, mount
from runtimed.mounts import unmount_all

_SHM_SIZE = 64 << 20  # bytes
_HOSTNAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9.-]{0,62}[A-Za-z0-9])?")  # 64: what sethostname(2) takes
_HOSTS = """\
127.0.0.1\tlocalhost
::1\tlocalhost ip6-localhost ip6-loopback
fe00::0\tip6-localnet
fe00::0\tip6-mcastprefix
fe00::1\tip6-allnodes
fe00::2\tip6-allrouters
"""


def check(config: pb.PodSandboxConfig) -> None:
    """Refuse what would put other lines into these files than it should. Raises InvalidArgument."""
    if config.hostname and not _HOSTNAME.fullmatch(config.hostname):
        raise InvalidArgument(f"hostname {config.hostname[:80]!r} must be up to 64 letters, digits, '-', '.'")
    dns = config.dns_config
    for server in dns.servers:
        try:
            ipaddress.ip_address(server.partition("%")[0])
        except ValueError as exc:
            raise InvalidArgument(f"DNS server: {exc}") from None
    for word in [*dns.servers, *dns.searches, *dns.options]:
        if not word or any(character.isspace() or not character.isprintable() for character in word):
            raise InvalidArgument(f"DNS configuration: {word[:80]!r} has blanks or control characters")


def create(directory: Path, config: pb.PodSandboxConfig, *, host_network: bool, host_ipc: bool, owner: int) -> None:
    """Make *directory* with the files; *owner* is who root in the pod is outside. Blocks."""
    with os_errors(f"sandbox directory {directory}"):
        directory.mkdir(mode=0o711, parents=True)
        hostname = config.hostname or os.uname().nodename
        _write(directory / "hostname", f"{hostname}\n", owner)
        _write(directory / "hosts", _text("/etc/hosts") if host_network else _HOSTS, owner)
        _write(directory / "resolv.conf", _resolv_conf(config.dns_config) or _text("/etc/resolv.conf"), owner)
        if not host_ipc:
            shm = directory / "shm"
            shm.mkdir(mode=0o700)
            options = f"mode=1777,size={_SHM_SIZE},uid={owner},gid={owner}"
            mount("shm", str(shm), "tmpfs", MS_NOSUID | MS_NOEXEC | MS_NODEV, options)


def add_addresses(directory: Path, hostname: str, addresses: Sequence[str]) -> None:
    """Let the pod's name mean its addresses. Blocks."""
    if hostname and addresses:
        with os_errors(f"sandbox directory {directory}"), (directory / "hosts").open("a") as file:
            file.writelines(f"{address}\t{hostname}\n" for address in addresses)


def unmount(directory: Path) -> None:
    """Take the tmpfs off. Fine if there is none. Blocks."""
    with os_errors(f"sandbox directory {directory}"):
        unmount_all(directory / "shm")


def delete(directory: Path) -> None:
    """Remove the directory. Fine if it is gone. Blocks."""
    unmount(directory)
    with os_errors(f"sandbox directory {directory}"), suppress(FileNotFoundError):
        with suppress(FileNotFoundError):
            (directory / "shm").rmdir()  # never through a mount
        shutil.rmtree(directory)


def _resolv_conf(dns: pb.DNSConfig) -> str:
    lines = [f"search {' '.join(dns.searches)}"] if dns.searches else []
    lines += [f"nameserver {server}" for server in dns.servers]
    lines += [f"options {' '.join(dns.options)}"] if dns.options else []
    return "".join(f"{line}\n" for line in lines)


def _text(path: str) -> str:
    try:
        return Path(path).read_text()
    except (FileNotFoundError, UnicodeDecodeError):
        return ""


def _write(path: Path, text: str, owner: int) -> None:
    path.write_text(text)
    path.chmod(0o644)
    os.chown(path, owner, owner)
