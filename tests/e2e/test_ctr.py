"""Debian's own ctr (containerd 1.6) against our socket: it must not notice the difference."""

import json
import select
import subprocess
from collections.abc import Iterator

import grpc
import pytest

from runtimed.api import content_pb2, leases_pb2
from runtimed.api.content_pb2_grpc import ContentStub
from runtimed.api.leases_pb2_grpc import LeasesStub
from tests.clients import unwarned
from tests.daemon import PrivateDaemon

pytestmark = [pytest.mark.root, pytest.mark.e2e]


@pytest.fixture(scope="module")
def image(daemon: PrivateDaemon, busybox: str) -> str:
    """The busybox image as ctr itself pulled and unpacked it."""
    daemon.ctr("images", "pull", "--plain-http", busybox)
    return busybox


@pytest.fixture
def box(daemon: PrivateDaemon, image: str) -> Iterator[str]:
    """A container that ctr started in the background."""
    daemon.ctr("run", "-d", "--null-io", image, "box", "sh", "-c", "trap 'exit 3' TERM; sleep 600 & wait")
    yield "box"
    daemon.ctr("tasks", "rm", "-f", "box", check=False)
    daemon.ctr("containers", "rm", "box", check=False)


def table(text: str) -> list[dict[str, str]]:
    """Return the rows of what ctr prints as a table, by the names in its first line."""
    head, *rows = text.splitlines()
    return [dict(zip(head.split(), row.split(), strict=False)) for row in rows]


def test_images_pull_and_ls(daemon, image):
    again = daemon.ctr("images", "pull", "--plain-http", image).stdout
    assert "done" in again
    (row,) = [row for row in table(daemon.ctr("images", "ls").stdout) if row["REF"] == image]
    assert row["TYPE"] == "application/vnd.oci.image.manifest.v1+json"
    assert row["DIGEST"].startswith("sha256:")
    assert image in daemon.ctr("images", "check").stdout
    assert "complete" in daemon.ctr("images", "check").stdout


def test_run_to_the_end(daemon, image):
    done = daemon.ctr("run", "--rm", image, "once", "cat", "/etc/motd")
    assert done.stdout == "welcome\n"
    failed = daemon.ctr("run", "--rm", image, "failing", "sh", "-c", "echo err >&2; exit 7", check=False)
    assert (failed.returncode, unwarned(failed.stderr)) == (7, "err\n")
    assert daemon.ctr("containers", "ls", "-q").stdout == ""
    assert daemon.ctr("tasks", "ls", "-q").stdout == ""


def test_run_with_a_log_uri(daemon, image, tmp_path):
    """A file, whose directories are made, and a program; ctr names the same for stdout and stderr."""
    daemon.ctr("run", "--rm", "--log-uri", f"file://{tmp_path}/a/log", image, "filed", "sh", "-c", "echo o; echo e >&2")
    assert (tmp_path / "a" / "log").read_text() == "o\ne\n"
    program = tmp_path / "logger"
    script = 'exec 5<&-\ncat <&4 >"$2/e" & cat <&3 >"$2/o"\nwait; echo "$CONTAINER_ID" >"$2/id"\n'
    program.write_text(f"#!/bin/sh\n{script}")
    program.chmod(0o755)
    uri = f"binary://{program}?to={tmp_path}"
    daemon.ctr("run", "--rm", "--log-uri", uri, image, "piped", "sh", "-c", "echo o; echo e >&2")
    assert [(tmp_path / name).read_text() for name in ("o", "e", "id")] == ["o\n", "e\n", "piped\n"]


def test_run_with_the_options_of_a_runtime(daemon, image, tmp_path):
    """Another program in runc's place and its root; no pivot_root, with which ctr sends no others.

    What of it reaches the program is in tests/integration/shim/test_options.py.
    """
    program, said = tmp_path / "another", tmp_path / "said"
    program.write_text(f'#!/bin/sh\necho "$@" >>{said}\nexec runc "$@"\n')
    program.chmod(0o755)
    options = ("--runc-binary", program, "--runc-root", tmp_path / "root")
    done = daemon.ctr("run", "--rm", *options, image, "optional", "sh", "-c", "echo done; exit 3", check=False)
    assert (done.returncode, done.stdout) == (3, "done\n"), done.stderr
    commands = [line for line in said.read_text().splitlines() if f"--root {tmp_path}/root/{daemon.namespace}" in line]
    assert any(" create " in line for line in commands), commands
    assert list((tmp_path / "root" / daemon.namespace).iterdir()) == []
    assert daemon.ctr("run", "--rm", "--no-pivot", image, "optional", "echo", "done").stdout == "done\n"


def test_exec_with_a_log_uri(daemon, box, tmp_path):
    daemon.ctr("tasks", "exec", "--exec-id", "e1", "--log-uri", f"file://{tmp_path}/log", box, "echo", "hello")
    assert (tmp_path / "log").read_text() == "hello\n"


def test_run_with_environment_mount_and_host_network(daemon, image, tmp_path):
    (tmp_path / "file").write_text("from the host\n")
    mount = f"type=bind,src={tmp_path},dst=/mnt,options=rbind:ro"
    arguments = [
        "--rm",
        "--net-host",
        "--env",
        "A=b c",
        "--mount",
        mount,
        image,
        "opts",
        "sh",
        "-c",
        'echo "$A"; cat /mnt/file',
    ]
    assert daemon.ctr("run", *arguments).stdout == "b c\nfrom the host\n"


def test_a_command_that_is_not_there(daemon, image):
    done = daemon.ctr("run", "--rm", image, "nosuch", "/no/such/command", check=False)
    assert done.returncode == 1
    assert "no such file or directory" in done.stderr
    assert "failed to create shim task: OCI runtime create failed" in done.stderr
    assert daemon.ctr("containers", "ls", "-q").stdout == ""


def test_tasks_ls_ps_exec_kill_rm(daemon, box):
    (row,) = table(daemon.ctr("tasks", "ls").stdout)
    assert (row["TASK"], row["STATUS"]) == ("box", "RUNNING")
    assert row["PID"] in daemon.ctr("tasks", "ps", box).stdout

    done = daemon.ctr("tasks", "exec", "--exec-id", "e1", box, "sh", "-c", "cat /etc/motd; exit 5", check=False)
    assert (done.stdout, done.returncode) == ("welcome\n", 5)

    refused = daemon.ctr("tasks", "rm", box, check=False)
    assert refused.returncode == 1

    daemon.ctr("tasks", "kill", "-s", "SIGTERM", box)
    while table(daemon.ctr("tasks", "ls").stdout)[0]["STATUS"] != "STOPPED":
        pass
    assert "exit code 3" in daemon.ctr("tasks", "rm", box).stderr
    assert daemon.ctr("tasks", "ls", "-q").stdout == ""


def test_tasks_pause_and_resume(daemon, box):
    daemon.ctr("tasks", "pause", box)
    assert table(daemon.ctr("tasks", "ls").stdout)[0]["STATUS"] == "PAUSED"
    daemon.ctr("tasks", "resume", box)
    assert table(daemon.ctr("tasks", "ls").stdout)[0]["STATUS"] == "RUNNING"


def test_a_container_that_is_created_first_and_started_later(daemon, image):
    daemon.ctr("containers", "create", image, "later", "cat", "/etc/motd", "/no/such/file")
    started = daemon.ctr("tasks", "start", "later", check=False)
    assert (started.stdout, started.returncode) == ("welcome\n", 1)
    assert "/no/such/file" in started.stderr
    daemon.ctr("containers", "rm", "later")


def test_containers_ls_info_label_rm(daemon, image):
    daemon.ctr("containers", "create", "--label", "a=b", image, "record", "true")
    (row,) = table(daemon.ctr("containers", "ls").stdout)
    assert (row["CONTAINER"], row["IMAGE"], row["RUNTIME"]) == ("record", image, "io.containerd.runc.v2")
    info = json.loads(daemon.ctr("containers", "info", "record").stdout)
    assert info["Spec"]["process"]["args"] == ["true"]
    assert info["Labels"]["a"] == "b"
    daemon.ctr("containers", "label", "record", "c=d")
    assert json.loads(daemon.ctr("containers", "info", "record").stdout)["Labels"]["c"] == "d"
    assert table(daemon.ctr("containers", "ls", "labels.c==d").stdout)[0]["CONTAINER"] == "record"
    again = daemon.ctr("containers", "create", image, "record", "true", check=False)
    assert "already exists" in again.stderr
    daemon.ctr("containers", "rm", "record")
    missing = daemon.ctr("containers", "info", "record", check=False)
    assert "not found" in missing.stderr


def test_snapshots_ls_tree_info_usage_mounts(daemon, image):
    rows = [line.split() for line in daemon.ctr("snapshots", "ls").stdout.splitlines()[1:]]
    layers = [row for row in rows if row[-1] == "Committed"]
    assert len(layers) == 3
    top = ({row[0] for row in layers} - {row[1] for row in layers if len(row) == 3}).pop()
    assert json.loads(daemon.ctr("snapshots", "info", top).stdout)["Kind"] == "Committed"
    assert top in daemon.ctr("snapshots", "tree").stdout
    assert top in daemon.ctr("snapshots", "usage").stdout
    mounts = daemon.ctr("snapshots", "view", "--mounts", "--target", "/nowhere", "a-view", top).stdout
    assert "lowerdir=" in mounts
    daemon.ctr("snapshots", "rm", "a-view")


def test_content_ls_get_fetch_and_labels(daemon, image):
    rows = table(daemon.ctr("content", "ls").stdout)
    target = next(row["DIGEST"] for row in table(daemon.ctr("images", "ls").stdout) if row["REF"] == image)
    assert target in [row["DIGEST"] for row in rows]
    manifest = json.loads(daemon.ctr("content", "get", target).stdout)
    assert len(manifest["layers"]) == 3
    assert manifest["layers"][0]["digest"] in [row["DIGEST"] for row in rows]
    daemon.ctr("content", "label", target, "x=y")
    assert (
        "x=y" in daemon.ctr("content", "ls", f"digest=={target}").stdout or "x=y" in daemon.ctr("content", "ls").stdout
    )


def test_content_ingest_and_rm(daemon):
    digest = "sha256:" + "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03"  # "hello\n"
    # Without a lease it could be collected at any moment after the ingest.
    daemon.ctr("leases", "create", "--id", "for-hello")
    with grpc.insecure_channel(f"unix:{daemon.address}") as channel:
        held = leases_pb2.AddResourceRequest(id="for-hello", resource=leases_pb2.Resource(id=digest, type="content"))
        LeasesStub(channel).AddResource(held, metadata=[("containerd-namespace", daemon.namespace)])
    daemon.ctr("content", "ingest", "--expected-digest", digest, "--expected-size", "6", "a-ref", input="hello\n")
    assert daemon.ctr("content", "get", digest).stdout == "hello\n"
    daemon.ctr("content", "ingest", "--expected-digest", digest, "b-ref", input="never read: it is there already")
    daemon.ctr("leases", "rm", "for-hello")
    daemon.ctr("content", "rm", digest, check=False)  # if it has not been collected yet
    assert "not found" in daemon.ctr("content", "get", digest, check=False).stderr
    wrong = daemon.ctr("content", "ingest", "--expected-digest", digest, "b-ref", input="other\n", check=False)
    assert f"{digest} expected: failed precondition" in wrong.stderr
    assert "b-ref" in daemon.ctr("content", "active").stdout  # the bytes are kept for who wants to try again
    with grpc.insecure_channel(f"unix:{daemon.address}") as channel:
        request = content_pb2.AbortRequest(ref="b-ref")  # ctr has no command for it
        ContentStub(channel).Abort(request, metadata=[("containerd-namespace", daemon.namespace)])
    assert "b-ref" not in daemon.ctr("content", "active").stdout


def test_namespaces(daemon):
    name = f"{daemon.namespace}-other"
    daemon.ctr("namespaces", "create", name, "k=v")
    assert name in daemon.ctr("namespaces", "ls").stdout
    daemon.ctr("namespaces", "label", name, "k=w")
    assert "k=w" in daemon.ctr("namespaces", "ls").stdout
    daemon.ctr("namespaces", "rm", name)
    assert name not in daemon.ctr("namespaces", "ls", "-q").stdout.split()
    refused = daemon.ctr("namespaces", "rm", daemon.namespace, check=False)
    assert "must be empty" in refused.stderr


def test_leases(daemon):
    daemon.ctr("leases", "create", "--id", "a-lease", "--expires", "1h", "k=v")
    listed = daemon.ctr("leases", "ls").stdout
    assert "a-lease" in listed
    assert "containerd.io/gc.expire" in listed
    daemon.ctr("leases", "rm", "a-lease")
    assert "a-lease" not in daemon.ctr("leases", "ls").stdout


def test_version(daemon):
    shown = daemon.ctr("version").stdout
    assert "Server:" in shown
    assert "runtimed" in shown


def test_plugins_ls(daemon):
    rows = table(daemon.ctr("plugins", "ls").stdout)
    assert {"overlayfs", "native"} <= {row["ID"] for row in rows if row["TYPE"] == "io.containerd.snapshotter.v1"}
    assert [row for row in rows if row["TYPE"] == "io.containerd.runtime.v2"]
    assert "ok" in {row.get("STATUS") or row.get("PLATFORMS") for row in rows}


def test_events(daemon, image):
    with subprocess.Popen(daemon.ctr_command("events"), stdout=subprocess.PIPE, text=True) as following:
        try:
            assert following.stdout
            lines: list[str] = []
            # Until the first line comes the subscription may not stand yet: namespaces are labelled until it does.
            number = 0
            while not select.select([following.stdout], [], [], 0.3)[0]:
                daemon.ctr("namespaces", "label", daemon.namespace, f"n={number}")
                number += 1
            daemon.ctr("run", "--rm", image, "watched", "true")
            for line in following.stdout:
                lines.append(line)
                if "/containers/delete" in line:
                    break
            text = "".join(lines)
            wanted = [
                "/containers/create",
                "/snapshot/prepare",
                "/tasks/create",
                "/tasks/start",
                "/tasks/exit",
                "/tasks/delete",
            ]
            positions = [text.index(topic) for topic in wanted]
            assert sorted(positions[2:]) == positions[2:]
        finally:
            following.terminate()


def test_images_tag_label_rm(daemon, image):
    daemon.ctr("images", "tag", image, "example.org/copy:1")
    assert "example.org/copy:1" in daemon.ctr("images", "ls", "-q").stdout
    daemon.ctr("images", "label", "example.org/copy:1", "a=b")
    assert "a=b" in daemon.ctr("images", "ls", "name==example.org/copy:1").stdout
    daemon.ctr("images", "rm", "--sync", "example.org/copy:1")
    assert "example.org/copy:1" not in daemon.ctr("images", "ls", "-q").stdout


def test_install_of_an_image_mount(daemon, image, tmp_path):
    target = tmp_path / "mounted"
    target.mkdir()
    daemon.ctr("images", "mount", image, target)
    try:
        assert (target / "etc/motd").read_text() == "welcome\n"
        assert not (target / "etc/removed").exists()
    finally:
        daemon.ctr("images", "unmount", "--rm", target)
