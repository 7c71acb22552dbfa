import pytest

from runtimed.linux.overlayfs import escape, split_lowerdir


@pytest.mark.parametrize(
    ("value", "lowers"),
    [
        ("/a", ["/a"]),
        ("/a:/b", ["/a", "/b"]),
        (r"/a\:b:/c\\d:/e\,f", ["/a:b", r"/c\d", "/e,f"]),
    ],
)
def test_lowerdir_is_split_at_unescaped_colons(value, lowers):
    assert split_lowerdir(value) == lowers
    assert ":".join(map(escape, lowers)) == value


@pytest.mark.parametrize("value", ["", "/a::/b", ":/a", "/a:"])
def test_an_empty_lowerdir_is_an_error(value):
    with pytest.raises(OSError, match="empty path"):
        split_lowerdir(value)
