import asyncio
import json

import pytest

from runtimed.content.local import LocalStore
from runtimed.metadata import images
from runtimed.metadata.content import Content
from runtimed.metadata.db import Database
from runtimed.metadata.images import REF_NAME, Image
from runtimed.oci import digest
from runtimed.oci.descriptor import Descriptor
from runtimed.services.layout import keep_index


class WatchedContent(Content):
    """Tells the event loop when the index has been written."""

    def __init__(self, *args):
        super().__init__(*args)
        self.loop, self.written = asyncio.get_running_loop(), asyncio.Event()

    def write_index(self):
        super().write_index()
        self.loop.call_soon_threadsafe(self.written.set)


@pytest.fixture
async def content(tmp_path):
    database = Database(tmp_path / "metadata.db")
    yield WatchedContent(database, LocalStore(tmp_path / "content"))
    database.close()


async def create(content, name):
    target = Descriptor(media_type="m", digest=digest.of(b"x"), size=1)
    await content._db.write(images.create, "ns", Image(name=name, target=target))


def names(content):
    index = json.loads((content.store.root / "index.json").read_text())
    return [one["annotations"][REF_NAME] for one in index["manifests"]]


async def test_the_index_follows_the_images(content):
    queue: asyncio.Queue[str | None] = asyncio.Queue()

    async def changes():
        while (one := await queue.get()) is not None:
            yield one

    keeping = asyncio.create_task(keep_index(content, changes(), delay_s=0.001))
    for name in ("a", "b"):
        await create(content, name)
        queue.put_nowait(name)
        await asyncio.wait_for(content.written.wait(), 5)
        content.written.clear()
        assert name in names(content)
    await create(content, "c")
    queue.put_nowait("c")
    queue.put_nowait(None)
    await keeping
    assert names(content) == ["a", "b", "c"]


async def test_it_can_be_cancelled(content):
    async def changes():
        await asyncio.sleep(60)
        yield None

    keeping = asyncio.create_task(keep_index(content, changes()))
    await asyncio.sleep(0)
    keeping.cancel()
    with pytest.raises(asyncio.CancelledError):
        await keeping
