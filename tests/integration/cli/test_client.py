"""runtimed.client against both daemons: it is a client of the API, whoever serves it."""

import asyncio
import contextlib
import hashlib
import os
import re

import pytest

import runtimed.client
from runtimed.client.records import Completed, Resource
from runtimed.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound
from tests.fakes.registry import serving
from tests.integration.cli.conftest import NAMESPACE, REPO
from tests.integration.cli.conftest import runtimed as ours

pytestmark = pytest.mark.root

IMAGE = "example.org/box:latest"
CGROUPS = f"/{NAMESPACE}"


@pytest.fixture
async def client(daemon, tmp_path, monkeypatch):
    """A client; afterwards no container, lease or FIFO may be left."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    async with runtimed.client.connect(str(daemon.address), namespace=NAMESPACE) as client:
        yield client
        assert [container async for container in client.containers.list()] == []
        assert [lease async for lease in client.leases.list()] == []
    assert list(tmp_path.glob("rctl-*")) == []


@pytest.fixture
async def sleeper(client):
    """A container that sleeps until it is killed, not started yet."""
    container = await client.containers.create(IMAGE, ["sleep", "1000"], cgroup_parent=CGROUPS, labels={"app": "box"})
    yield container
    with contextlib.suppress(NotFound):
        await container.delete(force=True)


# containerd 1.6 has no Transfer service.
with_transfer = pytest.mark.parametrize("daemon", [ours], ids=["runtimed"], indirect=True)


async def test_who_is_not_there_is_said_with_what_to_do(tmp_path):
    with pytest.raises(runtimed.client.DaemonLost) as lost:
        async with runtimed.client.connect(str(tmp_path / "no.sock")):
            pass
    assert lost.value.__notes__ == ["start it with 'runtimed', or give the address of a running one (rctl: --address)"]


async def test_a_container_is_run_to_its_end(client):
    done = await client.containers.run(
        IMAGE, ["sh", "-c", "cat; echo $X; echo oops >&2; exit 3"], input=b"in\n", env={"X": "y"}, cgroup_parent=CGROUPS
    )
    assert done == Completed(exit_status=3, stdout=b"in\ny\n", stderr=b"oops\n")


async def test_much_goes_through_a_process(client):
    data = os.urandom(2 << 20)
    done = await client.containers.run(IMAGE, ["cat"], input=data, cgroup_parent=CGROUPS)
    assert done.stdout == data


async def test_streams_of_a_running_process(client):
    container = await client.containers.create(IMAGE, ["sh"], cgroup_parent=CGROUPS)
    async with container.start(stdin=True) as process:
        assert process.pid > 0
        await process.write(b"echo one\n")
        assert await process.stdout.read() == b"one\n"
        await process.write(b"echo two >&2\n")
        assert await process.stderr.read() == b"two\n"
        await process.write(b"exit 5\n")
        assert await process.wait() == 5
        assert await process.stdout.read_all() == b""
    await container.delete()


async def test_a_process_that_is_left_is_killed(client, sleeper):
    async with sleeper.start():
        found = await sleeper.status()
        assert found
        assert found.status == "running"
        with pytest.raises(AlreadyExists):
            async with sleeper.start():
                pass
    assert await sleeper.status() is None


async def test_who_reads_no_more_is_told(client):
    container = await client.containers.create(IMAGE, ["sh", "-c", "exec <&-; sleep 1000"], cgroup_parent=CGROUPS)
    async with container.start() as process:
        with pytest.raises(BrokenPipeError):
            await process.write(b"x")
    await container.delete()


async def test_exec_beside_it(client, sleeper):
    with pytest.raises(NotFound):
        async with sleeper.exec(["true"]):
            pass
    async with sleeper.start():
        async with sleeper.exec(
            ["sh", "-c", "cat; echo $HERE $FROM_IMAGE; pwd"], env={"HERE": "1"}, cwd="/", stdin=True
        ) as p:
            done = await p.communicate(b"x\n")
        assert (done.exit_status, done.stdout) == (0, b"x\n1 1\n/\n")
        async with sleeper.exec(["sleep", "1000"]) as sleeping:
            await sleeping.kill(9)
            assert await sleeping.wait() == 137
        await sleeper.pause()
        assert (await sleeper.status()).status == "paused"
        await sleeper.resume()
        waiting = asyncio.create_task(sleeper.wait())
        await sleeper.kill(15, everything=True)
        await sleeper.kill(9)
        assert await waiting in (137, 143)


async def test_containers_are_found(client, sleeper):
    assert [one.id async for one in client.containers.list("labels.app==box")] == [sleeper.id]
    assert [one.id async for one in client.containers.list("labels.app==other")] == []
    assert await client.containers.get(sleeper.id) == sleeper
    assert (sleeper.image, sleeper.labels["app"]) == (IMAGE, "box")
    assert sleeper.spec["process"]["args"] == ["sleep", "1000"]
    assert sleeper.created_at is not None
    with pytest.raises(AlreadyExists):
        await client.containers.create(IMAGE, id=sleeper.id)
    with pytest.raises(NotFound):
        await client.containers.create("no/such:image")


async def test_images(client):
    image = await client.images.get(IMAGE)
    assert [one async for one in client.images.list(f"name=={IMAGE}")] == [image]
    assert image.digest.startswith("sha256:")
    assert image.created_at is not None
    labelled = await client.images.label(IMAGE, {"a.b/c": "d"})
    assert labelled.labels["a.b/c"] == "d"
    assert "a.b/c" not in (await client.images.label(IMAGE, {"a.b/c": ""})).labels
    with pytest.raises(NotFound):
        await client.images.get("no/such:image")
    with pytest.raises(InvalidArgument):
        [one async for one in client.images.list("name=")]


async def test_content(client):
    data = os.urandom(3 << 20)
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"

    async def source():
        yield data[:1000]
        yield data[1000:]

    async with client.leases.held() as lease:
        assert await client.content.write(source(), expected=digest, labels={"x": "y"}) == digest
        assert Resource(type="content", id=digest) in [one async for one in client.leases.resources(lease)]
        with pytest.raises(AlreadyExists):
            await client.content.write(data, expected=digest)
        with pytest.raises(FailedPrecondition):
            await client.content.write(b"other", expected=f"sha256:{'0' * 64}")
        info = await client.content.info(digest)
        assert (info.size, info.labels["x"]) == (len(data), "y")
        assert [blob.digest async for blob in client.content.list(f"digest=={digest}")] == [digest]
        assert await client.content.get(digest) == data
        assert b"".join([piece async for piece in client.content.read(digest, offset=5, size=7)]) == data[5:12]
        assert (await client.content.label(digest, {"x": "z"})).labels["x"] == "z"
        assert [one async for one in client.content.ingests()] == []
        await client.content.delete(digest)  # while the lease holds it, or the collector may have been there first
    with pytest.raises(NotFound):
        await client.content.info(digest)


async def test_a_blob_is_written_on_where_it_was_left(client):
    data = os.urandom(2 << 20)

    async def breaking():
        yield data[: 1 << 20]
        raise OSError("the source broke off")

    async with client.leases.held():
        with pytest.raises(OSError, match="broke off"):
            await client.content.write(breaking(), ref="again")
        (left,) = [one async for one in client.content.ingests("ref==again")]
        assert left.offset == 1 << 20
        digest = await client.content.write(data, ref="again")
        assert digest == f"sha256:{hashlib.sha256(data).hexdigest()}"
        await client.content.delete(digest)


async def test_a_writer_that_is_about_to_end_is_waited_for(client):
    """A daemon learns later than its client that a try was given up; the next one may be there first."""
    async with client.leases.held():
        other = client.content._writer("held", "")
        await other.__aenter__()
        writing = asyncio.ensure_future(client.content.write(b"waited for", ref="held"))
        done, _ = await asyncio.wait([writing], timeout=0.2)  # refused meanwhile
        assert not done
        await other.__aexit__(None, None, None)
        digest = await writing
        assert digest == f"sha256:{hashlib.sha256(b'waited for').hexdigest()}"
        await client.content.delete(digest)


async def test_snapshots(client):
    snapshots = client.snapshots("native")
    async with client.leases.held():
        (mount,) = await snapshots.prepare("work")
        assert (mount.type, await snapshots.mounts("work")) == ("bind", [mount])
        await snapshots.commit("done", "work", labels={"a": "b"})
        await snapshots.view("look", "done")
        with pytest.raises(FailedPrecondition):
            await snapshots.remove("done")
        done = await snapshots.stat("done")
        assert (done.kind, done.parent, done.labels["a"]) == ("committed", "", "b")
        assert (await snapshots.label("done", {"a": "c"})).labels["a"] == "c"
        assert (await snapshots.usage("done")).inodes >= 1
        assert {one.name: one.kind async for one in snapshots.list()} == {"done": "committed", "look": "view"}
        await snapshots.remove("look")
        await snapshots.remove("done")


async def test_namespaces(client):
    made = await client.namespaces.create("of-a-test", labels={"a": "b"})
    assert await client.namespaces.get("of-a-test") == made
    assert (await client.namespaces.label("of-a-test", {"a": "c"})).labels == {"a": "c"}
    assert made.name in [one.name async for one in client.namespaces.list()]
    await client.namespaces.delete("of-a-test")
    assert made.name not in [one.name async for one in client.namespaces.list()]
    with pytest.raises(FailedPrecondition):
        await client.namespaces.delete(NAMESPACE)


async def test_leases(client):
    lease = await client.leases.create("of-a-test", labels={"a": "b"})
    assert [one async for one in client.leases.list("id==of-a-test")] == [lease]
    resource = Resource(type="content", id=(await client.images.get(IMAGE)).digest)
    await client.leases.add(lease.id, resource)
    assert [one async for one in client.leases.resources(lease.id)] == [resource]
    await client.leases.remove(lease.id, resource)
    await client.leases.delete(lease.id, sync=True)


async def test_a_lease_is_of_its_task_and_no_other(client):
    async with client.leases.held():
        other = asyncio.create_task(client.content.write(b"held as well"))  # begun within
        held = await other
        await client.content.delete(held)

    async def outside():
        await inside.wait()
        return client.metadata

    inside = asyncio.Event()
    task = asyncio.create_task(outside())
    async with client.leases.held():
        inside.set()
        assert len(client.metadata) == len(await task) + 1


async def test_events(client, sleeper):
    events = client.events(f"namespace=={NAMESPACE},topic~=/tasks/")
    first = asyncio.create_task(anext(events))
    while not first.done():  # nothing says when the subscription stands, so there are some more processes
        async with sleeper.start():
            await asyncio.wait([first], timeout=0.1)
    event = await first
    assert (event.topic, event.namespace) == ("/tasks/create", NAMESPACE) or event.value["container_id"] == sleeper.id
    assert event.timestamp is not None
    await events.aclose()


async def test_who_answers(client, daemon):
    server = await client.server()
    assert server.version
    assert server.uuid
    (plugin,) = await client.plugins("type==io.containerd.snapshotter.v1,id==native")
    assert (plugin.id, plugin.error) == ("native", None)


@with_transfer
async def test_a_pull_with_progress(client, daemon, box):
    with serving(box, "app") as registry:
        pulling = client.images.pull(f"{registry.host}/app")
        steps = [step async for step in pulling]
        image = await pulling
        assert image.name == f"{registry.host}/app:latest"
        assert image.digest == (await client.images.pull(f"{registry.host}/app")).digest
        assert {"saved", "complete"} & {step.event for step in steps}
        await client.images.tag(image.name, f"{registry.host}/other:1")
        archive = b"".join([piece async for piece in client.images.export(image.name)])
        await client.images.delete(image.name)

        async def pieces():
            yield archive

        assert await client.images.import_archive(pieces()) == [image.name]
        with pytest.raises(NotFound):
            await client.images.pull(f"{registry.host}/nothing")
        for name in (image.name, f"{registry.host}/other:1"):
            await client.images.delete(name, sync=True)


@with_transfer
async def test_a_pull_that_is_left_is_given_up(client, daemon, box):
    with serving(box, "app") as registry:
        gate = registry.hold("manifests")
        pulling = asyncio.ensure_future(client.images.pull(f"{registry.host}/app"))
        await asyncio.to_thread(gate.reached.wait)
        pulling.cancel()
        with pytest.raises(asyncio.CancelledError):
            await pulling
        gate.let_go()
        with pytest.raises(NotFound):
            await client.images.get(f"{registry.host}/app")


@with_transfer
def test_the_examples_of_the_documentation_run(daemon, box, tmp_path, monkeypatch):
    """Each is a program of its own; their addresses, images and cgroups are replaced by ours."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    examples = re.findall(r"```python\n(.*?)```", (REPO / "docs/client.md").read_text(), re.DOTALL)
    assert len(examples) > 5
    with serving(box, "busybox") as registry:
        for example in examples:
            text = example.replace("connect(", f'connect("{daemon.address}", namespace="{NAMESPACE}"')
            text = text.replace('"busybox"', f'"{registry.host}/busybox:latest"')
            text = text.replace(", args=", f', cgroup_parent="{CGROUPS}", args=')
            exec(compile(text, "docs/client.md", "exec"), {"__name__": "example"})
