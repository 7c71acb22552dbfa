import pytest

from runtimed.errors import InvalidArgument
from runtimed.oci import whiteout


@pytest.mark.parametrize(("name", "hidden"), [(b".wh.a", b"a"), (b".wh..hidden", b".hidden"), (b".wh....", b"...")])
def test_a_whiteout_hides_one_name(name, hidden):
    found = whiteout.parse(name)
    assert found is not None
    assert (found.name, found.is_opaque) == (hidden, False)


def test_the_opaque_whiteout_hides_everything():
    found = whiteout.parse(b".wh..wh..opq")
    assert found is not None
    assert found.is_opaque


@pytest.mark.parametrize("name", [b".wh..wh.plnk", b".wh..wh.aufs", b".wh..wh.orph", b".wh..wh."])
def test_metadata_of_aufs_means_nothing(name):
    assert whiteout.parse(name) is None


@pytest.mark.parametrize("name", [b".wh.", b".wh..", b".wh...", b".wh.a/b", b".wh./"])
def test_a_whiteout_of_no_name_is_refused(name):
    with pytest.raises(InvalidArgument, match="whiteout"):
        whiteout.parse(name)
