"""ID maps, and the processes that namespaces are made by."""

import os
import resource
from pathlib import Path

import pytest

from runtimed.linux import idmap
from runtimed.linux.idmap import Range


def test_a_map_is_what_labels_say():
    ranges = idmap.parse("0:100000:1000,1000:5:1")
    assert ranges == (Range(0, 100000, 1000), Range(1000, 5, 1))
    assert idmap.text(ranges) == "0:100000:1000,1000:5:1"
    assert (idmap.shown(999, ranges), idmap.shown(1000, ranges)) == (100999, 5)
    with pytest.raises(ValueError, match="1001 is not in the map"):
        idmap.shown(1001, ranges)


@pytest.fixture
def many_descriptors():
    """As a daemon with hundreds of pods has them: the next ones are above what select(2) takes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard if soft < 2000 else soft, hard))
    held = [os.open("/dev/null", os.O_RDONLY)]
    while held[-1] < 1100:
        held.append(os.dup(held[0]))
    yield
    for fd in held:
        os.close(fd)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_there_may_be_more_descriptors_than_select_takes(many_descriptors):
    with idmap.process_in("env") as pid:
        assert Path(f"/proc/{pid}").exists()
    with pytest.raises(PermissionError, match="false does not work"), idmap.process_in("false"):
        pass
