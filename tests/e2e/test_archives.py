"""Archives of images between rctl, ctr, skopeo and Debian's containerd."""

import json
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import pytest

from runtimed.oci import manifest
from tests.dockerd import IMAGE, private_dockerd
from tests.images.archives import members_of
from tests.images.busybox import PLATFORM
from tests.images.layouts import Layout

pytestmark = [pytest.mark.root, pytest.mark.e2e]


def skopeo(*arguments, cwd):
    command = ["skopeo", "--insecure-policy", "copy", "--src-tls-verify=false", *arguments]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """What skopeo makes an archive for Docker of: an image without zstd. One of its layers is there twice."""
    layout = Layout(tmp_path_factory.mktemp("plain") / "layout")
    base = layout.layer({"bin/busybox": Path("/bin/busybox").read_bytes(), "bin/cat": "busybox"})
    top = layout.layer({"etc/motd": b"welcome\n"})
    layout.image("1", [base, top, base], platform=PLATFORM)
    return f"oci:{layout.root}:1"


@pytest.fixture
def forgotten(daemon):
    """Forget what a test has imported."""
    before = set(daemon.rctl("images", "-q").stdout.split())
    yield
    for name in set(daemon.rctl("images", "-q").stdout.split()) - before:
        daemon.rctl("rmi", name)


def motd(daemon, image):
    return daemon.run("--rm", image, "--", "cat", "/etc/motd").stdout


@pytest.mark.usefixtures("forgotten")
@pytest.mark.parametrize("compress", ["", "gzip", "zstd"])
def test_rctl_imports_what_skopeo_writes_for_docker(daemon, plain, tmp_path, compress):
    skopeo(plain, "docker-archive:image.tar:example.org/docker:1", cwd=tmp_path)
    if compress:
        subprocess.run([compress, "-q", "image.tar"], cwd=tmp_path, check=True)
    archive = tmp_path / {"": "image.tar", "gzip": "image.tar.gz", "zstd": "image.tar.zst"}[compress]
    assert daemon.rctl("images", "import", archive).stdout == "example.org/docker:1\n"
    assert motd(daemon, "example.org/docker:1") == "welcome\n"


@pytest.mark.usefixtures("forgotten")
def test_rctl_imports_what_skopeo_writes_for_oci_from_a_pipe(daemon, busybox, tmp_path):
    skopeo(f"docker://{busybox}", "oci-archive:image.tar:example.org/oci:1", cwd=tmp_path)
    with subprocess.Popen(["cat", tmp_path / "image.tar"], stdout=subprocess.PIPE) as cat:
        done = daemon.rctl("-o", "json", "images", "import", "-", stdin=cat.stdout)
        assert json.loads(done.stdout)["names"] == ["example.org/oci:1"]
    with (tmp_path / "image.tar").open("rb") as file:
        assert daemon.rctl("images", "import", "--no-unpack", "-", stdin=file).stdout == "example.org/oci:1\n"
    assert motd(daemon, "example.org/oci:1") == "welcome\n"


@pytest.mark.usefixtures("forgotten")
def test_an_image_that_is_exported_comes_back(daemon, pulled, tmp_path):
    archive = tmp_path / "image.tar"
    assert daemon.rctl("images", "export", archive, pulled).stdout == f"{archive}\n"
    assert archive.stat().st_mode & 0o777 == 0o644
    with (tmp_path / "piped.tar").open("wb") as file:
        daemon.rctl("images", "export", "-", pulled, stdout=file, stderr=subprocess.PIPE, capture_output=False)
    assert (tmp_path / "piped.tar").read_bytes() == archive.read_bytes()

    daemon.rctl("tag", pulled, "example.org/kept:1")
    daemon.rctl("rmi", pulled)
    assert daemon.rctl("images", "import", archive).stdout == f"{pulled}\n"
    assert motd(daemon, pulled) == "welcome\n"


def test_what_ctr_exports_by_itself_is_what_we_export(daemon, pulled, tmp_path):
    daemon.ctr("images", "export", tmp_path / "theirs.tar", pulled)
    daemon.rctl("images", "export", tmp_path / "ours.tar", pulled)
    theirs, ours = (members_of((tmp_path / name).read_bytes()) for name in ("theirs.tar", "ours.tar"))
    assert list(theirs) == list(ours)
    for name in [name for name in ours if ours[name] != theirs[name]]:
        document = json.loads(ours[name])
        # Containerd says what index.json is since 1.7.
        assert document in (said := json.loads(theirs[name]), said | {"mediaType": manifest.OCI_INDEX})


@pytest.mark.usefixtures("forgotten")
def test_ctr_makes_the_same_image_of_a_docker_archive_as_we_do(daemon, plain, tmp_path):
    skopeo(plain, "docker-archive:image.tar:example.org/docker:1", cwd=tmp_path)
    daemon.ctr("images", "import", tmp_path / "image.tar")
    theirs = daemon.ctr("images", "ls", "name==example.org/docker:1").stdout.split()
    daemon.rctl("rmi", "example.org/docker:1")
    daemon.rctl("images", "import", tmp_path / "image.tar")
    assert daemon.ctr("images", "ls", "name==example.org/docker:1").stdout.split() == theirs
    assert any(word.startswith("sha256:") for word in theirs)


def test_an_import_that_fails_says_why_and_leaves_nothing(daemon, tmp_path):
    (tmp_path / "empty.tar").write_bytes(bytes(10240))
    done = daemon.rctl("images", "import", tmp_path / "empty.tar", check=False)
    assert done.returncode == 1
    assert "neither oci-layout nor manifest.json is in it" in done.stderr
    done = daemon.rctl("images", "import", tmp_path / "nosuch.tar", check=False)
    assert done.returncode == 2
    assert "No such file" in done.stderr


def test_an_import_that_is_refused_does_not_wait_for_the_rest_of_a_pipe(daemon):
    with subprocess.Popen(
        daemon.rctl_command("images", "import", "-"), stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=False
    ) as importing:
        assert importing.stdin
        assert importing.stderr
        importing.stdin.write(b"no tar archive" * 1000)
        importing.stdin.flush()
        assert b"image archive: tar:" in importing.stderr.read()
        assert importing.wait(20) == 1


def test_an_export_that_fails_leaves_no_file(daemon, pulled, tmp_path):
    done = daemon.rctl("images", "export", tmp_path / "x.tar", pulled, "nosuch", check=False)
    assert done.returncode == 1
    assert "nosuch" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_an_import_whose_daemon_is_killed_leaves_nothing_after_the_next_start(fresh, plain, tmp_path):
    skopeo(plain, "docker-archive:image.tar:example.org/docker:1", cwd=tmp_path)
    archive = (tmp_path / "image.tar").read_bytes()
    with subprocess.Popen(
        fresh.rctl_command("images", "import", "-"), stdin=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as importing:
        assert importing.stdin
        importing.stdin.write(archive[: len(archive) // 2])
        importing.stdin.flush()
        while not any((fresh.root / "content/ingest").iterdir()):
            assert importing.poll() is None
            time.sleep(0.01)
        fresh.kill()
        assert importing.wait(60) == 1
    fresh.start()
    assert list((fresh.root / "content/ingest").iterdir()) == []
    assert fresh.ctr("leases", "ls", "-q").stdout == ""
    fresh.rctl("gc", "run")
    assert list((fresh.root / "content/blobs/sha256").iterdir()) == []


@pytest.mark.slow
def test_archives_go_to_docker_and_come_from_it(fresh, plain, tmp_path):
    with private_dockerd(fresh, fresh.base / "docker") as docker:
        docker("tag", IMAGE, "example.org/from-docker:1")
        docker("save", "--output", tmp_path / "saved.tar", "example.org/from-docker:1", IMAGE)
        names = fresh.rctl("images", "import", tmp_path / "saved.tar").stdout.split()
        assert sorted(names) == [f"docker.io/library/{IMAGE}:latest", "example.org/from-docker:1"]
        assert fresh.run("--rm", "example.org/from-docker:1", "--", "id", "-un").stdout == "root\n"

        skopeo(plain, "oci-archive:oci.tar:example.org/to-docker:1", cwd=tmp_path)
        fresh.rctl("images", "import", tmp_path / "oci.tar")
        fresh.rctl("images", "export", tmp_path / "exported.tar", "example.org/to-docker:1")
        assert "Loaded image: example.org/to-docker:1" in docker.out("load", "--input", tmp_path / "exported.tar")
        assert docker.out("run", "--rm", "example.org/to-docker:1", "cat", "/etc/motd") == "welcome"


@pytest.mark.slow
def test_debians_containerd_takes_what_we_export(daemon, plain, tmp_path):
    skopeo(plain, "oci-archive:oci.tar:example.org/both:1", cwd=tmp_path)
    daemon.rctl("images", "import", tmp_path / "oci.tar")
    daemon.rctl("images", "export", tmp_path / "ours.tar", "example.org/both:1")
    (tmp_path / "config.toml").write_text('version = 2\ndisabled_plugins = ["io.containerd.grpc.v1.cri"]\n')
    home = Path(tempfile.mkdtemp(prefix="rtd-"))  # sockets have short names
    flags = ["--config", tmp_path / "config.toml", "--root", tmp_path / "root", "--state", home, "-a", home / "c.sock"]

    def ctr(*arguments, check=True):
        command = ["ctr", "--address", home / "c.sock", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert not check or done.returncode == 0, done.stderr
        return done.returncode

    try:
        with (
            (tmp_path / "log").open("wb") as log,
            subprocess.Popen(["containerd", *flags], stdout=log, stderr=log) as it,
        ):
            try:
                deadline = time.monotonic() + 30
                while ctr("version", check=False):  # its socket is there before anybody listens
                    assert it.poll() is None, (tmp_path / "log").read_text()
                    assert time.monotonic() < deadline
                ctr("images", "import", "--snapshotter", "native", tmp_path / "ours.tar")
                ctr("images", "export", tmp_path / "theirs.tar", "example.org/both:1")
            finally:
                it.terminate()
    finally:
        shutil.rmtree(home)
    assert list(members_of((tmp_path / "theirs.tar").read_bytes())) == list(
        members_of((tmp_path / "ours.tar").read_bytes())
    )
    daemon.rctl("rmi", "example.org/both:1")
    assert daemon.rctl("images", "import", tmp_path / "theirs.tar").stdout == "example.org/both:1\n"
    assert motd(daemon, "example.org/both:1") == "welcome\n"
    daemon.rctl("rmi", "example.org/both:1")
