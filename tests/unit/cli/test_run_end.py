"""What ``rctl run`` gives back at the end, by the calls it makes."""

import pytest

from runtimed.cli.run import end
from runtimed.client.connection import Connection
from runtimed.client.process import Process
from runtimed.errors import NotFound, Unavailable


class Daemon(Connection):
    """A connection that notes what is called."""

    def __init__(self, error=None):
        self.called = []
        self._error = error

    async def call(self, method, request, *, patient=False):
        self.called.append(method.path.rpartition("/")[2])
        if self._error is not None:
            raise self._error
        return method.answer()


async def test_a_task_is_killed_waited_for_and_deleted():
    daemon = Daemon()
    await end(Process(daemon, "c1"))
    assert daemon.called == ["Kill", "Wait", "Delete"]


@pytest.mark.parametrize("error", [None, NotFound("task 'c1'")])
async def test_one_that_has_been_deleted_is_not_asked_for_again(error):
    daemon = Daemon(error)
    process = Process(daemon, "c1")
    await process.delete()
    await end(process)
    assert daemon.called == ["Delete"]


async def test_one_that_could_not_be_deleted_is_tried_again():
    daemon = Daemon(Unavailable("the daemon is stopping"))
    process = Process(daemon, "c1")
    with pytest.raises(Unavailable):
        await process.delete()
    with pytest.raises(Unavailable):
        await end(process)
    assert daemon.called == ["Delete", "Kill"]
