"""What guests need and the machine does not have: kernels, CRIU, crun, apparmor_parser.

From Debian packages, unpacked, not installed. They lie in a cache directory outside the checkout
(``$RUNTIMED_TEST_CACHE``, or ``~/.cache/runtimed-tests``), fetched once with an apt configuration of our own, from the
mirror that the machine's apt uses. Without the directory they are fetched anew.
"""

import fcntl
import os
import platform
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SUITES = {"6.1": "bookworm", "6.12": "trixie"}  # the kernels of Debian 12 and 13
CRIU_SUITE = "trixie"  # Debian 12's CRIU, 3.17, is too old for what is tested here
CRUN_SUITE = "bookworm"  # it and apparmor run on Debian 12's libraries and on later ones
_DECOMPRESSORS = {
    b"\x28\xb5\x2f\xfd": "zstd",
    b"\x02\x21\x4c\x18": "lz4",
    b"\xfd7zXZ\0": "xz",
}


class Unavailable(Exception):
    """A program or package that guests need cannot be had; the text says which and why."""


@dataclass(frozen=True)
class Kernel:
    """An unpacked kernel package: what qemu boots, and the modules for /lib/modules."""

    vmlinux: Path
    modules: Path

    @property
    def release(self) -> str:
        return self.modules.name

    def closure(self, names: Sequence[str]) -> list[Path]:
        """Return the files of the modules *names* and of what they need, in the order to load them.

        A name without a file is built in.
        """
        needs = {}
        for line in (self.modules / "modules.dep").read_text().splitlines():
            path, _, rest = line.partition(":")
            needs[path] = [*reversed(rest.split()), path]
        by_name = {Path(path).name.partition(".")[0].replace("-", "_"): path for path in needs}
        ordered = [path for name in names if name in by_name for path in needs[by_name[name]]]
        return [self.modules / path for path in dict.fromkeys(ordered)]


def kernel(version: str) -> Kernel:
    """Return the kernel *version*, a key of SUITES, fetched if it is not here.

    Raises:
        Unavailable: it cannot be fetched.
    """
    with _made(f"kernel-{version}") as new:
        if new:
            with _apt(SUITES[version]) as apt:
                latest = [name for name in apt.depends("linux-image-cloud-amd64") if name[12:13].isdigit()]
                apt.unpack(latest, new)
            [image] = new.glob("boot/vmlinuz-*")
            (new / "vmlinux").write_bytes(_decompressed(image.read_bytes()))
            [modules] = new.glob("lib/modules/*")
            _run(["depmod", "--basedir", str(new), modules.name])
    place = cache() / f"kernel-{version}"
    [modules] = place.glob("lib/modules/*")
    return Kernel(place / "vmlinux", modules)


def programs() -> Path:
    """Return a directory with ``criu``, ``crun`` and ``libyajl.so.2``, and ``apparmor_parser`` with the directory
    ``apparmor.d`` that its profiles include from; fetched if they are not here.

    CRIU runs with the libraries of its own Debian. crun starts itself anew from /proc/self/exe, which rules that out;
    it wants one library that a machine with runc may lack.

    Raises:
        Unavailable: they cannot be fetched.
    """
    place = cache() / "programs-2"
    library = place / "criu/usr/lib/x86_64-linux-gnu"
    with _made("programs-2") as new:
        if new:
            with _apt(CRIU_SUITE) as apt:
                libraries = [name for name in apt.depends("criu", "--recurse") if name.startswith("lib")]
                apt.unpack(["criu", *libraries], new / "criu")
            with _apt(CRUN_SUITE) as apt:
                apt.unpack(["crun", "libyajl2"], new / "crun")
                apt.unpack(["apparmor"], new / "apparmor")
            (new / "bin").mkdir()
            run = f"{library}/ld-linux-x86-64.so.2 --library-path {library} {place}/criu/usr/sbin/criu"
            (new / "bin/criu").write_text(f'#!/bin/sh\nexec {run} "$@"\n')
            (new / "bin/criu").chmod(0o755)
            (new / "bin/crun").symlink_to("../crun/usr/bin/crun")
            (new / "bin/apparmor_parser").symlink_to("../apparmor/sbin/apparmor_parser")
            (new / "bin/apparmor.d").symlink_to("../apparmor/etc/apparmor.d")
            (new / "bin/libyajl.so.2").symlink_to("../crun/usr/lib/x86_64-linux-gnu/libyajl.so.2")
    return place / "bin"


def cache() -> Path:
    """Return the directory of everything fetched."""
    chosen = os.environ.get("RUNTIMED_TEST_CACHE")
    return Path(chosen) if chosen else Path.home() / ".cache/runtimed-tests"


@contextmanager
def _made(name: str) -> Iterator[Path | None]:
    """Yield a new directory that becomes *name* in the cache when the block ends, or None if that is there."""
    place = cache() / name
    cache().mkdir(parents=True, exist_ok=True)
    with (cache() / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if place.exists():
            yield None
            return
        new = Path(tempfile.mkdtemp(dir=cache(), prefix=f"{name}.new-"))
        try:
            yield new
            new.chmod(0o755)
            new.rename(place)
        finally:
            shutil.rmtree(new, ignore_errors=True)


class _Apt:
    """apt with lists, cache and status of its own, for one suite of Debian on the machine's usual mirror."""

    def __init__(self, place: Path, suite: str) -> None:
        for name in ("lists/partial", "archives/partial", "debs"):
            (place / name).mkdir(parents=True)
        (place / "status").touch()
        (place / "sources").write_text(f"deb [signed-by={_keyring()}] {_mirror()} {suite} main\n")
        (place / "conf").write_text(
            f'Dir::State "{place}"; Dir::State::status "{place}/status"; Dir::Cache "{place}";\n'
            f'Dir::Etc::SourceList "{place}/sources"; Dir::Etc::SourceParts "/dev/null";\n'
            'Dir::Etc::Preferences "/dev/null"; Dir::Etc::PreferencesParts "/dev/null";\n'
            'Acquire::Languages "none"; APT::Sandbox::User "root"; APT::Architecture "amd64";\n'
        )
        self._place = place
        self._environment = {**os.environ, "APT_CONFIG": str(place / "conf")}
        _run(["apt-get", "update", "--error-on=any"], env=self._environment)

    def depends(self, package: str, *options: str) -> list[str]:
        """Return *package* and what it depends on; with ``--recurse`` what that depends on, and so on."""
        only = [f"--no-{kind}" for kind in ("recommends", "suggests", "conflicts", "breaks", "replaces", "enhances")]
        shown = _run(["apt-cache", "depends", *only, *options, package], env=self._environment)
        words = [line.split()[-1] for line in shown.splitlines()]
        return [word for word in dict.fromkeys(words) if not word.startswith("<")]  # those are virtual

    def unpack(self, packages: Sequence[str], into: Path) -> None:
        """Download *packages* and unpack them into *into*."""
        debs = self._place / "debs"
        _run(["apt-get", "download", *packages], cwd=debs, env=self._environment)
        (into / "usr/lib").mkdir(parents=True)
        (into / "lib").symlink_to("usr/lib")  # Debian 13's packages rely on it, Debian 12's do not
        for archive in debs.iterdir():
            # dpkg-deb --extract would put a directory in the place of the link.
            contents = debs / "contents.tar"
            with contents.open("wb") as output:
                subprocess.run(["dpkg-deb", "--fsys-tarfile", str(archive)], stdout=output, check=True)
            archive.unlink()
            _run(["tar", "-xf", str(contents), "--keep-directory-symlink", "--no-same-owner", "-C", str(into)])
            contents.unlink()


@contextmanager
def _apt(suite: str) -> Iterator[_Apt]:
    with tempfile.TemporaryDirectory(prefix="rtd-apt-") as name:
        yield _Apt(Path(name), suite)


def _mirror() -> str:
    """Return where the machine's apt gets Debian from."""
    suite = platform.freedesktop_os_release().get("VERSION_CODENAME", "")
    listing = _run(["apt-get", "indextargets", "--format", "$(RELEASE) $(REPO_URI)", "Created-By: Packages"])
    for release, _, uri in (line.partition(" ") for line in listing.splitlines()):
        if release == suite:
            return uri
    raise Unavailable(f"no kernel packages: apt has no source for Debian's {suite or 'releases'}")


def _keyring() -> Path:
    path = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
    if not path.exists():
        raise Unavailable(f"no kernel packages: {path} is missing (package debian-archive-keyring)")
    return path


def _decompressed(image: bytes) -> bytes:
    """Return the ELF file in a bzImage, which boots faster (Documentation/arch/x86/boot.rst)."""
    setup_sectors = image[0x1F1]
    offset, length = struct.unpack_from("<II", image, 0x248)
    start = (setup_sectors + 1) * 512 + offset
    payload = image[start : start + length - 4]  # the last four bytes say how long it will be
    for magic, program in _DECOMPRESSORS.items():
        if payload.startswith(magic):
            return subprocess.run([program, "-dc"], input=payload, capture_output=True, check=True).stdout
    raise Unavailable(f"no kernel: compressed in a way that is not known here, starting {payload[:6].hex()}")


def _run(command: Sequence[str], **options: Any) -> str:
    """Run *command* and return what it wrote.

    Raises:
        Unavailable: it failed; with its last words.
    """
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300, **options)
    except (OSError, subprocess.TimeoutExpired) as exc:
        raise Unavailable(f"{command[0]}: {exc}") from exc
    if done.returncode != 0:
        raise Unavailable(f"{' '.join(command[:2])}: {done.stderr.strip()[-500:]}")
    return str(done.stdout)
