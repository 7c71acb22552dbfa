"""Verifier programs: asked before a layer is fetched, bounded, remembered."""

import json
from pathlib import Path

import pytest

from runtimed import labels
from runtimed.config import ImageVerification
from runtimed.errors import FailedPrecondition, PermissionDenied
from runtimed.images.pull import Puller
from runtimed.images.verifying import Verifier
from tests.fakes.registry import serving

pytestmark = pytest.mark.root


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    path = tmp_path / "verifiers"
    path.mkdir()
    return path


@pytest.fixture
def calls(tmp_path: Path) -> Path:
    """What the programs that `add` makes were called with, a line each."""
    return tmp_path / "calls"


@pytest.fixture
def add(programs: Path, calls: Path):
    def add(name: str, script: str, mode: int = 0o755) -> Path:
        path = programs / name
        path.write_text(f'#!/bin/sh\necho "{name} $@ $(cat)" >> {calls}\n{script}\n')
        path.chmod(mode)
        return path

    return add


@pytest.fixture
def image(layout):
    layers = [layout.layer({"file": b"data"})]
    return layers, layout.image("1", layers)


@pytest.fixture
def remote(layout, image):
    with serving(layout.root, "app") as registry:
        yield registry


def verify_with(store, directory: Path, **options) -> None:
    config = ImageVerification(directory=str(directory), **options)
    snapshotters = {store.snapshots.name: store.snapshots}
    store.puller = Puller(store.content, store.db, snapshotters, store.pool, None, Verifier(config, store.content))


async def test_a_program_gets_name_digest_and_descriptor_and_its_reason_is_a_label(
    store, programs, calls, add, image, remote
):
    add("policy", "echo signed by us; env >> " + str(calls))
    verify_with(store, programs)
    reference = f"{remote.host}/app:1"
    pulled = await store.pull(reference)
    line, *environment = calls.read_text().splitlines()
    digest = image[1]["digest"]
    assert line.startswith(
        f"policy -name {reference} -digest {digest} -stdin-media-type application/vnd.oci.descriptor.v1+json "
    )
    assert json.loads(line[line.index("{") :])["digest"] == digest == pulled.image.target.digest
    assert {one.partition("=")[0] for one in environment} <= {"PATH", "PWD", "SHLVL", "_", "OLDPWD"}
    label = store.content.info("ns", digest).labels[labels.IMAGE_VERIFICATION]
    assert label.endswith(f" {reference} policy: signed by us")


async def test_it_is_asked_once_about_a_digest_and_again_when_it_changes(store, programs, calls, add, image, remote):
    add("policy", "echo fine")
    verify_with(store, programs)
    for _ in range(2):
        await store.pull(f"{remote.host}/app:1")
    assert len(calls.read_text().splitlines()) == 1
    add("policy", "echo not any more; exit 1")
    with pytest.raises(PermissionDenied, match="refused by the verifier policy: not any more"):
        await store.pull(f"{remote.host}/app:1")


async def test_one_no_is_enough_and_no_layer_is_fetched(store, programs, add, image, remote):
    add("a", "echo fine")
    add("b", r"printf 'no \033[31msignature\n\nat all'; exit 3")
    verify_with(store, programs)
    with pytest.raises(PermissionDenied, match=r"refused by the verifier b: no +\[31msignature at all$"):
        await store.pull(f"{remote.host}/app:1")
    assert store.snapshots.list("ns") == []
    assert store.content.list("ns") == []
    assert store.left_over() == []


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("kill -9 $$", "ended by signal 9"),
        ("while :; do read x </dev/zero; done", "took longer than 1 s"),
        ("sleep 60 & exit 0", "took longer than 1 s"),  # who holds its output
    ],
)
async def test_a_program_without_a_verdict_refuses_or_not(store, programs, add, image, remote, script, reason):
    add("broken", script)
    verify_with(store, programs, timeout_s=1)
    with pytest.raises(PermissionDenied, match=f"for want of a verdict of the verifier broken: it .*{reason}"):
        await store.pull(f"{remote.host}/app:1")
    verify_with(store, programs, timeout_s=1, fail_closed=False)
    pulled = await store.pull(f"{remote.host}/app:1")
    assert labels.IMAGE_VERIFICATION not in store.content.info("ns", pulled.image.target.digest).labels


async def test_one_that_cannot_be_run_has_no_verdict_and_one_that_others_may_write_to_is_refused(
    store, programs, add, image, remote
):
    (programs / "text").write_text("#!/does/not/exist\n")
    (programs / "text").chmod(0o755)
    (programs / "README").write_text("no program")
    verify_with(store, programs)
    with pytest.raises(PermissionDenied, match="verifier text: it cannot be run"):
        await store.pull(f"{remote.host}/app:1")
    (programs / "text").unlink()
    add("loose", "exit 0", 0o777)
    with pytest.raises(PermissionDenied, match="loose: others than root may change it"):
        await store.pull(f"{remote.host}/app:1")


async def test_endless_output_is_read_and_dropped(store, programs, add, image, remote):
    add("talks", "head -c 3000000 /dev/zero | tr '\\0' x")
    verify_with(store, programs)
    pulled = await store.pull(f"{remote.host}/app:1")
    assert len(store.content.info("ns", pulled.image.target.digest).labels[labels.IMAGE_VERIFICATION]) < 500


async def test_no_programs_are_no_to_all_only_where_that_is_asked_for(store, programs, image, remote):
    verify_with(store, programs)
    with pytest.raises(FailedPrecondition, match="there is no verifier in"):
        await store.pull(f"{remote.host}/app:1")
    verify_with(store, programs / "missing", fail_closed=False)
    await store.pull(f"{remote.host}/app:1")
