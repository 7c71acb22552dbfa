"""Every command of Debian's ctr: which test shows it, and those that nothing else has a use for."""

import ast
import hashlib
import json
import re
import subprocess
import urllib.request
from pathlib import Path

import pytest

from tests.clients import unwarned
from tests.daemon import PrivateDaemon

pytestmark = [pytest.mark.root, pytest.mark.e2e]

_TESTS = Path(__file__).parents[1]
_CTR, _GUEST = "e2e/test_ctr.py", "vm/inside/test_checkpoint_streams.py"
_HERE = "e2e/test_ctr_commands.py"

# Command -> the test that shows it, as file::function.
SHOWN = {
    "containers checkpoint": f"{_GUEST}::test_ctr_checkpoints_to_an_image_with_what_was_written_and_restores_from_it",
    "containers create": f"{_CTR}::test_a_container_that_is_created_first_and_started_later",
    "containers delete": f"{_CTR}::test_containers_ls_info_label_rm",
    "containers info": f"{_CTR}::test_containers_ls_info_label_rm",
    "containers label": f"{_CTR}::test_containers_ls_info_label_rm",
    "containers list": f"{_CTR}::test_containers_ls_info_label_rm",
    "containers restore": f"{_GUEST}::test_ctr_checkpoints_to_an_image_with_what_was_written_and_restores_from_it",
    "content active": f"{_CTR}::test_content_ingest_and_rm",
    "content delete": f"{_CTR}::test_content_ingest_and_rm",
    "content edit": f"{_HERE}::test_content_edit",
    "content fetch": f"{_HERE}::test_content_fetch_and_prune",
    "content fetch-object": f"{_HERE}::test_content_fetch_object_and_push_object",
    "content get": f"{_CTR}::test_content_ls_get_fetch_and_labels",
    "content ingest": f"{_CTR}::test_content_ingest_and_rm",
    "content label": f"{_CTR}::test_content_ls_get_fetch_and_labels",
    "content list": f"{_CTR}::test_content_ls_get_fetch_and_labels",
    "content prune references": f"{_HERE}::test_content_fetch_and_prune",
    "content push-object": f"{_HERE}::test_content_fetch_object_and_push_object",
    "events": f"{_CTR}::test_events",
    "images check": f"{_CTR}::test_images_pull_and_ls",
    "images convert": f"{_HERE}::test_images_convert",
    "images delete": f"{_CTR}::test_images_tag_label_rm",
    "images export": f"{_HERE}::test_images_export_import_and_push",
    "images import": f"{_HERE}::test_images_export_import_and_push",
    "images label": f"{_CTR}::test_images_tag_label_rm",
    "images list": f"{_CTR}::test_images_pull_and_ls",
    "images mount": f"{_CTR}::test_install_of_an_image_mount",
    "images pull": f"{_CTR}::test_images_pull_and_ls",
    "images push": f"{_HERE}::test_images_export_import_and_push",
    "images tag": f"{_CTR}::test_images_tag_label_rm",
    "images unmount": f"{_CTR}::test_install_of_an_image_mount",
    "install": f"{_HERE}::test_install",
    "leases create": f"{_CTR}::test_leases",
    "leases delete": f"{_CTR}::test_leases",
    "leases list": f"{_CTR}::test_leases",
    "namespaces create": f"{_CTR}::test_namespaces",
    "namespaces label": f"{_CTR}::test_namespaces",
    "namespaces list": f"{_CTR}::test_namespaces",
    "namespaces remove": f"{_CTR}::test_namespaces",
    "plugins list": f"{_CTR}::test_plugins_ls",
    "run": f"{_CTR}::test_run_to_the_end",
    "snapshots commit": f"{_HERE}::test_snapshots_prepare_label_commit_and_rm",
    "snapshots delete": f"{_HERE}::test_snapshots_prepare_label_commit_and_rm",
    "snapshots diff": "e2e/test_diff.py::test_ctr_shows_what_a_running_container_has_changed",
    "snapshots info": f"{_CTR}::test_snapshots_ls_tree_info_usage_mounts",
    "snapshots label": f"{_HERE}::test_snapshots_prepare_label_commit_and_rm",
    "snapshots list": f"{_CTR}::test_snapshots_ls_tree_info_usage_mounts",
    "snapshots mounts": f"{_HERE}::test_snapshots_prepare_label_commit_and_rm",
    "snapshots prepare": f"{_HERE}::test_snapshots_prepare_label_commit_and_rm",
    "snapshots tree": f"{_CTR}::test_snapshots_ls_tree_info_usage_mounts",
    "snapshots unpack": f"{_HERE}::test_snapshots_unpack",
    "snapshots usage": f"{_CTR}::test_snapshots_ls_tree_info_usage_mounts",
    "snapshots view": f"{_CTR}::test_snapshots_ls_tree_info_usage_mounts",
    "tasks attach": f"{_HERE}::test_tasks_attach",
    "tasks checkpoint": f"{_GUEST}::test_ctr_checkpoints_to_an_image_with_what_was_written_and_restores_from_it",
    "tasks delete": f"{_CTR}::test_tasks_ls_ps_exec_kill_rm",
    "tasks exec": f"{_CTR}::test_tasks_ls_ps_exec_kill_rm",
    "tasks kill": f"{_CTR}::test_tasks_ls_ps_exec_kill_rm",
    "tasks list": f"{_CTR}::test_tasks_ls_ps_exec_kill_rm",
    "tasks metrics": f"{_HERE}::test_tasks_metrics",
    "tasks pause": f"{_CTR}::test_tasks_pause_and_resume",
    "tasks ps": f"{_CTR}::test_tasks_ls_ps_exec_kill_rm",
    "tasks resume": f"{_CTR}::test_tasks_pause_and_resume",
    "tasks start": f"{_CTR}::test_a_container_that_is_created_first_and_started_later",
    "version": f"{_CTR}::test_version",
}

_PROFILES = ("block", "goroutines", "heap", "profile", "threadcreate", "trace")

# What a daemon has no part in, or one that is no Go program.
OTHERS = {
    "oci spec": "asks no daemon",
    **dict.fromkeys((f"pprof {kind}" for kind in _PROFILES), "Go's profiler"),
    **{
        f"shim {verb}": "computes where containerd keeps the sockets of its own shims"
        for verb in ["delete", "exec", "start", "state"]
    },
}

# Of ctr 1.7, Debian 13's.
NEWER = {
    *("content fetch-blob", "deprecations list", "images prune", "images usage", "info"),
    *("sandboxes list", "sandboxes remove", "sandboxes run"),
}


def commands(path: tuple[str, ...] = ()) -> list[str]:
    """Return what ctr offers below *path*, as its help tells it."""
    help = subprocess.run(["ctr", *path, "--help"], capture_output=True, text=True, check=True).stdout
    section = re.search(r"^COMMANDS:\n(.*?)\n\n", help, re.DOTALL | re.MULTILINE)
    if section is None:
        return [" ".join(path)]
    names = [line.split()[0].rstrip(",") for line in section[1].splitlines() if line[:3] == "   " and line[3:4].strip()]
    below = [name for name in names if not name.endswith(":") and name != "help"]
    # In the list of all commands those of a category are two further in.
    grouped = [line.split()[0].rstrip(",") for line in section[1].splitlines() if re.match(r"     \w", line)]
    return [command for name in [*below, *grouped] if name != "help" for command in commands((*path, name))]


def test_every_command_is_shown_by_a_test():
    assert sorted(set(commands()) - NEWER) == sorted([*SHOWN, *OTHERS])
    for command, test in SHOWN.items():
        file, _, name = test.partition("::")
        tree = ast.parse((_TESTS / file).read_text())
        functions = {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
        assert name in functions, f"{command}: {test} is not there"


@pytest.fixture(scope="module")
def image(daemon: PrivateDaemon, busybox: str) -> str:
    daemon.ctr("images", "pull", "--plain-http", busybox)
    return busybox


@pytest.fixture(scope="module")
def target(daemon: PrivateDaemon, image: str) -> str:
    """The digest of the image's manifest."""
    (row,) = [line.split() for line in daemon.ctr("images", "ls").stdout.splitlines() if line.startswith(image)]
    return row[2]


@pytest.fixture(scope="module")
def layers(daemon: PrivateDaemon, target: str) -> list[str]:
    manifest = json.loads(daemon.ctr("content", "get", target).stdout)
    return [layer["digest"] for layer in manifest["layers"]]


def top_of(daemon: PrivateDaemon) -> str:
    """Return the committed snapshot that no other is on."""
    rows = [line.split() for line in daemon.ctr("snapshots", "ls").stdout.splitlines()[1:]]
    committed = [row for row in rows if row[-1] == "Committed"]
    return ({row[0] for row in committed} - {row[1] for row in rows if len(row) == 3}).pop()


def test_content_edit(daemon, target, tmp_path):
    editor = tmp_path / "editor"
    editor.write_text('#!/bin/sh\necho >>"$1"\n')
    editor.chmod(0o755)
    edited = daemon.ctr("content", "edit", "--editor", editor, target).stdout.strip()
    assert re.fullmatch(r"sha256:[0-9a-f]{64}", edited)
    assert edited != target


def test_content_fetch_and_prune(daemon, busybox, layers):
    name = f"{daemon.namespace}-fetched"
    for arguments in (["content", "fetch", "--plain-http", busybox], ["content", "prune", "references"]):
        command = daemon.ctr_command(*arguments)
        command[command.index(daemon.namespace)] = name
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert unwarned(done.stderr) == ""
    listed = daemon.ctr_command("content", "ls", "-q")
    listed[listed.index(daemon.namespace)] = name
    found = subprocess.run(listed, capture_output=True, text=True, check=True).stdout.split()
    assert not set(layers) & set(found)  # nothing is unpacked there, and the references to the layers are gone
    removed = daemon.ctr_command("images", "rm", "--sync", busybox)
    removed[removed.index(daemon.namespace)] = name
    subprocess.run(removed, check=True, capture_output=True)
    daemon.ctr("namespaces", "rm", name)


def test_content_fetch_object_and_push_object(daemon, busybox, target, layers):
    got = daemon.ctr("content", "fetch-object", "--plain-http", busybox, target).stdout
    assert json.loads(got)["layers"][0]["digest"] == layers[0]
    repository = busybox.rpartition(":")[0] + "-objects"
    kind = "application/vnd.oci.image.layer.v1.tar+gzip"
    daemon.ctr("content", "push-object", "--plain-http", repository, layers[0], kind)
    host, _, path = repository.partition("/")
    with urllib.request.urlopen(f"http://{host}/v2/{path}/blobs/{layers[0]}") as answer:
        assert f"sha256:{hashlib.sha256(answer.read()).hexdigest()}" == layers[0]


def test_images_convert(daemon, image):
    name = "example.org/uncompressed:1"
    daemon.ctr("images", "convert", "--uncompress", "--oci", image, name)
    assert daemon.ctr("run", "--rm", name, "converted", "cat", "/etc/motd").stdout == "welcome\n"
    daemon.ctr("images", "rm", "--sync", name)


def test_images_export_import_and_push(daemon, image, tmp_path):
    archive = tmp_path / "image.tar"
    daemon.ctr("images", "export", archive, image)
    daemon.ctr("images", "import", "--base-name", "example.org/imported", archive)
    assert image in daemon.ctr("images", "ls", "-q").stdout.split()
    pushed = image.rpartition(":")[0] + "-pushed:1"
    daemon.ctr("images", "push", "--plain-http", pushed, image)
    daemon.ctr("images", "pull", "--plain-http", pushed)
    assert daemon.ctr("run", "--rm", pushed, "pushed", "cat", "/etc/motd").stdout == "welcome\n"
    daemon.ctr("images", "rm", "--sync", pushed)


def test_install(daemon, image, tmp_path):
    done = daemon.ctr("install", "--path", tmp_path, "--replace", image)
    assert done.returncode == 0
    assert list((tmp_path / "bin").iterdir())


def test_snapshots_prepare_label_commit_and_rm(daemon, image):
    top = top_of(daemon)
    daemon.ctr("snapshots", "prepare", "an-active", top)
    daemon.ctr("snapshots", "label", "an-active", "containerd.io/gc.root=yes")
    assert json.loads(daemon.ctr("snapshots", "info", "an-active").stdout)["Parent"] == top
    assert "mount -t overlay overlay /there" in daemon.ctr("snapshots", "mounts", "/there", "an-active").stdout
    daemon.ctr("snapshots", "commit", "a-commit", "an-active")
    assert json.loads(daemon.ctr("snapshots", "info", "a-commit").stdout)["Kind"] == "Committed"
    daemon.ctr("snapshots", "rm", "a-commit")
    assert "a-commit" not in daemon.ctr("snapshots", "ls").stdout


def test_snapshots_unpack(daemon, image, target):
    assert "...done" in daemon.ctr("snapshots", "unpack", target).stdout


def test_tasks_attach(daemon, image):
    daemon.ctr("run", "-d", image, "attached", "sh", "-c", "read line; echo got $line; exit 3")
    done = daemon.ctr("tasks", "attach", "attached", check=False, input="something\n")
    assert (done.returncode, done.stdout) == (3, "got something\n")
    daemon.ctr("tasks", "rm", "attached", check=False)
    daemon.ctr("containers", "rm", "attached")


def test_tasks_metrics(daemon, image):
    daemon.ctr("run", "-d", "--null-io", image, "measured", "sleep", "600")
    shown = daemon.ctr("tasks", "metrics", "measured").stdout
    assert re.search(r"^(memory.usage_in_bytes|memory.usage) +\d+", shown, re.MULTILINE), shown
    daemon.ctr("tasks", "rm", "-f", "measured")
    daemon.ctr("containers", "rm", "measured")
