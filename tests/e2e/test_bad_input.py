"""What goes wrong: each time an error that names the thing and says what to do, and nothing half done is left."""

import os
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.daemon import PrivateDaemon, private_daemon
from tests.fakes.registry import FakeRegistry
from tests.images import tars
from tests.images.busybox import PLATFORM
from tests.images.layouts import OCI_LAYER, Layer, Layout, digest_of

pytestmark = [pytest.mark.root, pytest.mark.e2e]


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Layout:
    layout = Layout(tmp_path_factory.mktemp("layout") / "layout")
    layout.image("1", [layout.layer({"a": os.urandom(100_000)}), layout.layer({"b": b"b"})], platform=PLATFORM)
    return layout


@pytest.fixture
def fake(layout: Layout) -> Iterator[FakeRegistry]:
    with FakeRegistry() as fake:
        fake.add(layout.root, "some/image")
        yield fake


def state(daemon: PrivateDaemon) -> dict[str, list[str]]:
    """Return what is recorded in the namespace, apart from blobs, which may stay for the next try."""
    return {
        "images": daemon.ctr("images", "ls", "-q").stdout.split(),
        "containers": daemon.ctr("containers", "ls", "-q").stdout.split(),
        "tasks": daemon.ctr("tasks", "ls", "-q").stdout.split(),
        "leases": daemon.ctr("leases", "ls", "-q").stdout.split(),
        "snapshots": daemon.ctr("snapshots", "ls").stdout.splitlines()[1:],
    }


def refused(daemon: PrivateDaemon, *arguments: object) -> str:
    """Run a command that must fail and change nothing; return its one line (and hint)."""
    before = state(daemon)
    done = daemon.rctl(*arguments, check=False)
    assert done.returncode in {1, 2}, done
    assert "Traceback" not in done.stderr
    lines = done.stderr.strip().splitlines()
    number = next(number for number, line in enumerate(lines) if line.startswith("rctl: "))  # progress comes before it
    assert all(line.startswith("hint: ") for line in lines[number + 1 :]), done.stderr
    assert state(daemon) == before
    return done.stderr


@pytest.mark.parametrize("reference", ["some/UPPER", "a b", "x@sha256:1234", "x:", "-x/y!", "host:99999999/x"])
def test_a_reference_that_does_not_parse(daemon, reference):
    assert f"reference {reference!r}" in refused(daemon, "pull", "--", reference)


def test_a_registry_that_is_not_there(daemon):
    error = refused(daemon, "pull", "127.0.0.1:1/some/image:1")
    assert "127.0.0.1:1" in error
    assert "refused" in error


@pytest.mark.parametrize(("status", "words"), [(401, "credentials"), (403, "denied"), (404, "not found"), (500, "500")])
def test_a_registry_that_says_no(daemon, fake, status, words):
    fake.fail("manifests", status=status, times=99)
    fake.fail("manifests", status=status, times=99, method="HEAD")
    error = refused(daemon, "pull", f"{fake.host}/some/image:1")
    assert fake.host in error
    assert words in error.lower() or str(status) in error


@pytest.mark.parametrize("how", [{"cut_at": 0}, {"change": lambda data: data[:50_000]}])
def test_a_truncated_layer(daemon, fake, layout, how):
    digest = max(fake.blobs, key=lambda digest: len(fake.blobs[digest]))
    fake.fail(f"blobs/{digest}", times=99, **how)
    assert digest in refused(daemon, "pull", f"{fake.host}/some/image:1")


def test_a_corrupted_layer_in_a_real_registry(daemon, registry, tmp_path):
    layout = Layout(tmp_path / "layout")
    layer = layout.layer({"file": os.urandom(200_000)})
    layout.image("bad", [layer], platform=PLATFORM)
    reference = registry.push(layout.root, "e2e/corrupt:1", source="bad")
    blob = registry.blob(layer.digest)
    data = bytearray(blob.read_bytes())
    data[len(data) // 2] ^= 1
    blob.write_bytes(data)
    error = refused(daemon, "pull", reference)
    assert layer.digest in error


def test_a_wrong_digest(daemon, fake):
    """The registry serves another manifest under the digest that was asked for."""
    asked = digest_of(b"another manifest")
    fake.manifests["some/image", asked] = fake.manifests["some/image", "1"]
    error = refused(daemon, "pull", f"{fake.host}/some/image@{asked}")
    assert asked in error


def test_a_diff_id_that_lies(daemon, fake, tmp_path):
    layout = Layout(tmp_path / "layout")
    honest = layout.layer({"file": b"content"})
    layout.image("lie", [Layer(honest.descriptor, digest_of(b"something else"))], platform=PLATFORM)
    fake.add(layout.root, "some/liar")
    error = refused(daemon, "pull", f"{fake.host}/some/liar:lie")
    assert digest_of(b"something else") in error


def test_a_tar_that_tries_to_leave_its_root(daemon, fake, tmp_path, tmp_path_factory):
    """Names that climb and links that point out resolve inside the layer's own tree, as in a chroot."""
    target = tmp_path_factory.mktemp("out")  # short: a name in a tar has 100 bytes
    archive = tars.tar(
        tars.file(b"../../../../../../../../" + os.fsencode(target).lstrip(b"/") + b"/climbed", b"x"),
        tars.file(os.fsencode(target / "absolute"), b"x"),
        tars.symlink(b"link", os.fsencode(target)),
        tars.file(b"link/through", b"x"),
    )
    layout = Layout(tmp_path / "layout")
    layer = Layer(layout.blob(archive, OCI_LAYER), digest_of(archive))
    layout.image("escape", [layer], platform=PLATFORM)
    fake.add(layout.root, "some/escape")
    daemon.rctl("pull", f"{fake.host}/some/escape:escape")
    assert list(target.iterdir()) == []
    daemon.rctl("rmi", f"{fake.host}/some/escape:escape")


def test_an_id_that_is_taken(daemon, pulled):
    daemon.run("-d", pulled, "taken", "sleep", "600")
    error = refused(daemon, "run", "--cgroup-parent", daemon.cgroup_parent, pulled, "taken", "true")
    assert "taken" in error
    assert "already exists" in error
    daemon.rctl("rm", "-f", "taken")


def test_an_id_that_is_a_path(daemon, pulled):
    assert "../x" in refused(daemon, "run", "--cgroup-parent", daemon.cgroup_parent, pulled, "../x", "true")


def test_a_command_that_the_image_does_not_have(daemon, pulled):
    error = refused(daemon, "run", "--cgroup-parent", daemon.cgroup_parent, pulled, "--", "/no/such/command")
    assert "/no/such/command" in error
    assert "no such file or directory" in error


def test_an_image_that_is_not_there(daemon):
    error = refused(daemon, "run", "--pull", "never", "example.org/nothing:1", "--", "true")
    assert "example.org/nothing:1" in error


def test_a_host_path_that_is_not_there(daemon, pulled):
    arguments = ("--cgroup-parent", daemon.cgroup_parent, "-v", "/no/such/path:/mnt")
    assert "/no/such/path" in refused(daemon, "run", *arguments, pulled, "--", "true")


def test_a_daemon_that_is_not_there(tmp_path):
    rctl = PrivateDaemon(tmp_path, namespace="nobody")
    done = rctl.rctl("ps", check=False)
    assert done.returncode == 1
    assert str(rctl.address) in done.stderr
    assert "hint: " in done.stderr


def test_a_second_daemon_on_the_same_root(daemon):
    other = PrivateDaemon(daemon.base, namespace="other")
    done = subprocess.run(
        [*other.command()[:-2], "--address", str(daemon.base / "other.sock")],
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert done.returncode == 1
    assert str(daemon.root) in done.stderr
    assert str(daemon.pid) in done.stderr
    daemon.rctl("version")


def test_a_runc_that_is_missing(busybox, tmp_path):
    """The daemon's PATH has everything but runc."""
    for directory in ("/usr/bin", "/usr/sbin", "/bin", "/sbin"):
        for program in Path(directory).iterdir():
            link = tmp_path / program.name
            if program.name not in {"runc", "crun"} and not link.is_symlink():
                link.symlink_to(program)
    with private_daemon(start=False) as daemon:
        daemon.environment["PATH"] = str(tmp_path)
        daemon.start()
        daemon.rctl("pull", busybox)
        error = refused(daemon, "run", "--cgroup-parent", daemon.cgroup_parent, busybox, "--", "true")
        assert "runc" in error
        assert "install" in error


def test_a_full_disk(registry, tmp_path):
    """The daemon's root is a small file system; a pull that does not fit fails, and all goes on when there is room."""
    layout = Layout(tmp_path / "layout")
    layout.image("big", [layout.layer({"noise": os.urandom(40 << 20)})], platform=PLATFORM)
    layout.image("small", [layout.layer({"file": b"small"})], platform=PLATFORM)
    big = registry.push(layout.root, "e2e/full:big", source="big")
    small = registry.push(layout.root, "e2e/full:small", source="small")
    image = tmp_path / "disk"
    with image.open("wb") as file:
        file.truncate(64 << 20)
    subprocess.run(["mkfs.ext4", "-q", image], check=True)
    with private_daemon(start=False) as daemon:
        daemon.root.mkdir(mode=0o700)
        subprocess.run(["mount", "-o", "loop", image, daemon.root], check=True)
        try:
            daemon.start()
            error = refused(daemon, "pull", big)
            assert "no space left" in error.lower()
            daemon.rctl("pull", small)
            assert daemon.run("--rm", "runtimed.io/hello:latest", "after").returncode == 0
            daemon.stop()
            daemon.start()
            assert daemon.rctl("images", "-q").stdout.split() == [small, "runtimed.io/hello:latest"]
        finally:
            daemon.stop()
            subprocess.run(["umount", daemon.root], check=True)


def test_the_layer_of_an_archive_is_checked_before_it_is_named(daemon, fake, tmp_path):
    """A layer that is not a tar at all: the error says which, and the image is not there."""
    layout = Layout(tmp_path / "layout")
    junk = b"this is no archive" * 100
    layout.image("junk", [Layer(layout.blob(junk, OCI_LAYER), digest_of(junk))], platform=PLATFORM)
    fake.add(layout.root, "some/junk")
    error = refused(daemon, "pull", f"{fake.host}/some/junk:junk")
    assert digest_of(junk) in error
    assert not tarfile.is_tarfile(layout.path(digest_of(junk)))
