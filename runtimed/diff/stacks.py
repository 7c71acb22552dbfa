"""What mounts say of the layers below them: whether one tree is another with a single layer on top."""

from collections.abc import Sequence
from pathlib import Path

from runtimed.linux.overlayfs import escape, split_lowerdir
from runtimed.mounts import Mount

_INDEX = Path("/sys/module/overlay/parameters/index")
_UPPER, _LOWER, _WORK = "upperdir=", "lowerdir=", "workdir="


def read_only(mounts: Sequence[Mount]) -> tuple[Mount, ...]:
    """Return *mounts* as they can be made beside those that are in use: without writing, upperdir and workdir.

    An upperdir is a lowerdir then, on top of the others (overlayfs.rst, "Multiple lower layers").
    """
    return tuple(_read_only(mount) for mount in mounts)


def top_layer(lower: Sequence[Mount], upper: Sequence[Mount]) -> Path | None:
    """Return the directory that is all that *upper* shows beyond *lower*; None if there is no such one.

    It is an upperdir, active or not: with overlayfs' own marks for what is deleted.
    """
    if len(lower) != 1 or len(upper) != 1 or lower[0].target or upper[0].target or upper[0].type != "overlay":
        return None
    if _has_index(upper[0]):  # one name of a file may then change what others show
        return None
    below, above = _layers(lower[0]), _layers(upper[0])
    return Path(above[0]) if below and above[1:] == below else None


def _read_only(mount: Mount) -> Mount:
    if mount.type != "overlay":
        options = [option for option in mount.options if option not in ("rw", "ro")]
        return Mount(mount.type, mount.source, mount.target, (*options, "ro"))
    options = []
    for option in mount.options:
        if option.startswith(_LOWER):
            options.append(_LOWER + ":".join(escape(layer) for layer in _layers(mount)))
        elif option not in ("rw", "ro") and not option.startswith((_UPPER, _WORK)):
            options.append(option)
    return Mount(mount.type, mount.source, mount.target, (*options, "ro"))


def _layers(mount: Mount) -> list[str]:
    """Return the directories that *mount* shows, the uppermost first; none if it is of another kind."""
    if mount.type == "bind" or "bind" in mount.options or "rbind" in mount.options:
        return [mount.source]
    if mount.type != "overlay":
        return []
    upper = [option.removeprefix(_UPPER) for option in mount.options if option.startswith(_UPPER)]
    lowers = [option.removeprefix(_LOWER) for option in mount.options if option.startswith(_LOWER)]
    return [*upper, *(layer for value in lowers for layer in split_lowerdir(value))]


def _has_index(mount: Mount) -> bool:
    stated = [option for option in mount.options if option.startswith("index=")]
    if stated:
        return stated[-1] != "index=off"
    try:
        return _INDEX.read_text().strip() != "N"
    except OSError:
        return True
