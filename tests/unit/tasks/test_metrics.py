"""Which tasks are asked for metrics, and what becomes of those that do not answer."""

import pytest

from runtimed.errors import DeadlineExceeded, InvalidArgument, NotFound
from runtimed.metadata.containers import Opaque
from runtimed.tasks.metrics import collect


class Shim:
    def __init__(self, answer):
        self.answer = answer
        self.asked = 0

    async def stats(self, timeout_s):
        self.asked += 1
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


def tasks():
    return {"b": Shim(Opaque("kind", b"b")), "a": Shim(Opaque("kind", b"a")), "web-1": Shim(Opaque("kind", b"w"))}


@pytest.mark.parametrize(
    ("filters", "ids"),
    [
        ([], ["a", "b", "web-1"]),
        (["id==a"], ["a"]),
        (['id=="web-1"', "id==b"], ["b", "web-1"]),
        (["id~=^web"], ["web-1"]),
        (["namespace==default,id==a"], ["a"]),
        (["namespace==other"], []),
        (["id==none"], []),
        (["runtime"], []),
    ],
)
async def test_the_filters_are_containerds(filters, ids):
    shims = tasks()
    found = await collect("default", shims, filters)
    assert [(metric.id, metric.data.value[:1].decode()) for metric in found] == [(id, id[0]) for id in ids]
    assert [id for id, shim in sorted(shims.items()) if shim.asked] == ids, "others are not asked"


async def test_a_task_without_metrics_or_answer_is_left_out(caplog):
    shims = {**tasks(), "gone": Shim(NotFound("x")), "stuck": Shim(DeadlineExceeded("no answer"))}
    assert [metric.id for metric in await collect("default", shims, [])] == ["a", "b", "web-1"]
    [record] = caplog.records
    assert (record.message, record.task) == ("a task told no metrics", "stuck")


async def test_a_filter_that_is_none_is_refused():
    with pytest.raises(InvalidArgument):
        await collect("default", tasks(), ["id=="])
