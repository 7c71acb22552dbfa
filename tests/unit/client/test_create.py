"""What creating a container leaves behind when one of the two calls that are made side by side fails: nothing."""

import asyncio

import pytest

from runtimed.client.connection import Connection
from runtimed.client.create import Plan, create
from runtimed.client.documents import Documents
from runtimed.errors import AlreadyExists, Internal, NotFound, RuntimedError, Unavailable
from runtimed.oci.container_spec import Options
from runtimed.oci.descriptor import Descriptor
from runtimed.oci.manifest import ImageConfig, Manifest, RootFs
from runtimed.rollback import Rollback

RECORD, SNAPSHOT = "Containers/Create", "Snapshots/Prepare"
WITHOUT_RECORD, WITHOUT_SNAPSHOT = "Containers/Delete", "Snapshots/Remove"
BLOB = Descriptor(media_type="application/vnd.oci.image.config.v1+json", digest=f"sha256:{'0' * 64}", size=1)
PLAN = Plan(
    id="c1",
    image_name="image",
    image=Documents(
        descriptor=BLOB,
        manifest=Manifest(schema_version=2, config=BLOB, layers=()),
        config=ImageConfig(architecture="amd64", os="linux", rootfs=RootFs(type="layers", diff_ids=())),
    ),
    snapshotter="overlayfs",
    runtime="io.containerd.runc.v2",
)


class Daemon(Connection):
    """A connection that notes what is called and fails where it is told to; *last* is answered when all else is."""

    def __init__(self, errors, last=""):
        self.called = []
        self._errors = errors
        self._last = last

    async def call(self, method, request, *, patient=False):
        name = method.path.rpartition(".")[2]
        self.called.append(name)
        for _ in range(3 if name == self._last else 1):
            await asyncio.sleep(0)
        if (error := self._errors.get(name)) is not None:
            raise error
        return method.answer()


async def made(daemon, error=None):
    async with Rollback() as steps:
        await create(daemon, PLAN, Options(args=("true",), cgroups_path="/c1"), steps)
        if error is not None:
            raise error
        steps.commit()


@pytest.mark.parametrize("last", [RECORD, SNAPSHOT])
@pytest.mark.parametrize(
    ("errors", "raised", "undone"),
    [
        ({RECORD: AlreadyExists("container 'c1'")}, AlreadyExists, [WITHOUT_SNAPSHOT]),
        ({SNAPSHOT: Internal("no")}, Internal, [WITHOUT_RECORD]),
        ({RECORD: AlreadyExists("container 'c1'"), SNAPSHOT: Internal("no")}, AlreadyExists, []),
        # It may be another's that has been made meanwhile.
        ({RECORD: Unavailable("gone")}, Unavailable, [WITHOUT_SNAPSHOT]),
    ],
)
async def test_what_has_been_made_is_undone_and_nothing_else(errors, raised, undone, last):
    daemon = Daemon(errors, last)
    with pytest.raises(raised):
        await made(daemon)
    assert daemon.called == [RECORD, SNAPSHOT, *undone]


async def test_both_are_undone_when_a_later_step_fails_also_if_one_of_them_cannot_be(caplog):
    daemon = Daemon({WITHOUT_RECORD: Internal("the disk is full")})
    with pytest.raises(RuntimedError, match="a later step"):
        await made(daemon, RuntimedError("a later step"))
    assert daemon.called[:2] == [RECORD, SNAPSHOT]
    assert sorted(daemon.called[2:]) == [WITHOUT_RECORD, WITHOUT_SNAPSHOT]
    assert "the disk is full" in caplog.text


async def test_one_that_is_cancelled_in_the_middle_undoes_what_has_been_made():
    class Slow(Daemon):
        async def call(self, method, request, *, patient=False):
            if method.path.endswith(SNAPSHOT):
                await asyncio.Event().wait()
            answer = await super().call(method, request, patient=patient)
            answered.set()
            return answer

    answered, daemon = asyncio.Event(), Slow({})
    making = asyncio.create_task(made(daemon))
    await answered.wait()
    making.cancel()
    with pytest.raises(asyncio.CancelledError):
        await making
    assert daemon.called == [RECORD, WITHOUT_RECORD]


async def test_an_image_that_is_not_unpacked_is_and_then_the_snapshot_is_made():
    class Packed(Daemon):
        async def call(self, method, request, *, patient=False):
            answer = await super().call(method, request, patient=patient)
            if method.path.endswith(SNAPSHOT) and self.called.count(SNAPSHOT) == 1:
                raise NotFound("parent snapshot")
            return answer

    daemon = Packed({})
    await made(daemon)
    assert daemon.called == [RECORD, SNAPSHOT, SNAPSHOT]
