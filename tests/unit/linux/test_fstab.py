import pytest

from runtimed.linux import fstab
from runtimed.linux.mount import (
    MOUNT_ATTR__ATIME,
    MOUNT_ATTR_NOATIME,
    MOUNT_ATTR_NOSUID,
    MOUNT_ATTR_RDONLY,
    MS_BIND,
    MS_NODEV,
    MS_NOEXEC,
    MS_NOSUID,
    MS_PRIVATE,
    MS_RDONLY,
    MS_REC,
    MS_SHARED,
    MS_SLAVE,
    attributes_of,
)


@pytest.mark.parametrize(
    ("options", "flags", "propagation", "data"),
    [
        ([], 0, 0, ()),
        (["rbind", "ro"], MS_BIND | MS_REC | MS_RDONLY, 0, ()),
        (["ro", "rw"], 0, 0, ()),
        (["nosuid", "nodev", "noexec", "exec"], MS_NOSUID | MS_NODEV, 0, ()),
        (["noexec", "mode=755", "size=64k"], MS_NOEXEC, 0, ("mode=755", "size=64k")),
        (["bind", "rprivate"], MS_BIND, MS_PRIVATE | MS_REC, ()),
        (["shared", "rslave"], 0, MS_SLAVE | MS_REC, ()),
        (["shared"], 0, MS_SHARED, ()),
        (["", "defaults", "lowerdir=a:b"], 0, 0, ("lowerdir=a:b",)),
    ],
)
def test_options_are_sorted_into_flags_and_data(options, flags, propagation, data):
    assert fstab.parse(options) == fstab.Options(flags, propagation, data)


def test_a_choice_of_atime_replaces_the_other():
    assert attributes_of(fstab.parse(["noatime"]).flags) == (MOUNT_ATTR_NOATIME, MOUNT_ATTR__ATIME)
    assert attributes_of(fstab.parse(["relatime"]).flags) == (0, MOUNT_ATTR__ATIME)
    assert attributes_of(fstab.parse(["ro", "nosuid"]).flags) == (MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID, 0)
