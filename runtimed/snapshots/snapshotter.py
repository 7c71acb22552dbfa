"""What a snapshotter is: the contract that every implementation keeps and `tests/conformance` checks."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Protocol, runtime_checkable

from runtimed.errors import FailedPrecondition
from runtimed.mounts import Mount

Mounts = list[Mount]  # a name of its own, because the contract has a method called `list`


class Kind(StrEnum):
    """What may be done with a snapshot."""

    ACTIVE = "active"  # written through its mounts; may be committed
    VIEW = "view"  # read through its mounts; may only be removed
    COMMITTED = "committed"  # never changes again; may be a parent


@dataclass(frozen=True, slots=True, kw_only=True)
class Info:
    """A snapshot as it is recorded."""

    name: str  # the key of an active snapshot or view, the name of a committed one
    parent: str = ""  # "" is none
    kind: Kind
    labels: Mapping[str, str] = field(default_factory=dict)
    created_at: int  # nanoseconds since the epoch, UTC
    updated_at: int


@dataclass(frozen=True, slots=True)
class Usage:
    """What a snapshot takes on disk by itself, without its parents."""

    size: int  # bytes allocated (st_blocks), not the files' lengths; a hard-linked file counts once
    inodes: int


class NotSupported(FailedPrecondition):
    """This host cannot run the snapshotter: not an error of the daemon, clients take another one."""


class Snapshotter(Protocol):
    """Keeps directory trees of which each can build upon another.

    **Terms.** An *active* snapshot is begun with :meth:`prepare`, is written through its mounts, and ends with
    :meth:`commit`, which turns it into a *committed* one under a name of its own, or with :meth:`remove`. A committed
    snapshot never changes; it can be the *parent* of any number of others, and cannot be removed while it is. A
    *view* is like an active snapshot that is only read. Keys and names share one space: any string, with slashes,
    blanks and colons, at most as long as a label. Snapshots cost nothing while nobody mounts them.

    **Mounts** are data. Whoever is given them (the daemon, a shim, or a client in another process) makes them in
    their order on a directory of his choice, and takes them off; the snapshotter never does. They stay valid until the
    snapshot is committed or removed, also over a restart of the daemon and a reboot.

    **Blocking.** All methods are blocking, may be called from several threads at once, and know no event loop. Of two
    calls for one key at the same time one wins, and the other gets the error it would get after it.

    **Durability.** What a method has done when it returns survives a power cut: a committed snapshot with all its
    content. What a method that raised, or a crash, leaves on disk is invisible, is not in the way of a second try,
    and goes with the next :meth:`cleanup`, at the latest with one after the snapshotter was made again.

    **Hostile content.** The trees hold what an image or a container put there. Whatever a method does with them, it
    follows no link and leaves no tree, and it deletes nothing through a mount.

    **Made** by ``Cls(root: Path, config: Cls.Config)``: *root* is a directory for this snapshotter alone, and
    ``Config`` a frozen dataclass with defaults, filled from the table ``[snapshotters.<name>]``. The constructor
    raises NotSupported, with the reason, where the host lacks what the snapshotter needs.
    """

    @property
    def capabilities(self) -> tuple[str, ...]:
        """What clients may ask for beyond this contract, in containerd's words: ``rebase``, ``remap-ids``, ..."""

    def prepare(self, key: str, parent: str, labels: Mapping[str, str]) -> Mounts:
        """Begin an active snapshot with the content of *parent* ("" is an empty directory) and return its mounts.

        The root directory has the mode and owner of the parent's. *labels* are those meant for snapshotters
        (``containerd.io/snapshot/...``); they come back in :meth:`stat`.

        Raises:
            AlreadyExists: *key* is taken. The snapshot there is as it was.
            NotFound: no *parent*.
            InvalidArgument: *parent* is not committed, or *key* is empty.
            ResourceExhausted: the disk is full.
        """

    def view(self, key: str, parent: str, labels: Mapping[str, str]) -> Mounts:
        """Begin a view of *parent* and return its mounts, through which nothing can be written. Raises as prepare."""

    def mounts(self, key: str) -> Mounts:
        """Return the mounts of an active snapshot or view once more; the same as they were.

        Raises NotFound, and FailedPrecondition for a committed snapshot, which is read through a view.
        """

    def commit(self, name: str, key: str, labels: Mapping[str, str]) -> None:
        """Turn the active snapshot *key* into the committed snapshot *name*; *key* is free again.

        Its mounts should be off by then. *labels* replace those of the active snapshot. Blocks until the content is
        on disk.

        Raises:
            AlreadyExists: *name* is taken. The active snapshot goes on.
            NotFound: no *key*.
            FailedPrecondition: *key* is not active.
        """

    def remove(self, key: str) -> None:
        """Remove a snapshot of any kind and free its disk space.

        Raises:
            NotFound: no *key*; also of a second call.
            FailedPrecondition: it has children, or something is mounted inside its own directory; a snapshotter may
                also refuse while it is mounted itself. The snapshot is as it was.
        """

    def stat(self, key: str) -> Info:
        """Return the record of a snapshot of any kind. Raises NotFound."""

    def update(self, key: str, labels: Mapping[str, str]) -> Info:
        """Replace the labels of a snapshot of any kind and return the record. Raises NotFound."""

    def usage(self, key: str) -> Usage:
        """Return what the snapshot takes on disk without its parents.

        An active snapshot is measured as it is now, which takes time in proportion to its files; a committed one was
        measured when it was committed. Raises NotFound.
        """

    def cleanup(self) -> None:
        """Delete what no record explains: the leftovers of failures and crashes. May take long."""

    def close(self) -> None:
        """Let go of files and memory. Nothing may be called after it; snapshots stay for the next start."""

    def list(self) -> Iterator[Info]:
        """Yield the record of every snapshot, as of the call, parents before their children."""


@runtime_checkable
class Checkable(Protocol):
    """What a snapshotter offers beside :class:`Snapshotter` if it can tell damage, and take a snapshot made anew."""

    def check(self, name: str) -> None:
        """Look at the committed snapshot *name*, but not into files whose digest others know.

        Raises DataLoss if it is not there, or less of it than was committed; NotFound.
        """

    def replace(self, name: str, key: str) -> None:
        """Give the committed *name* what the active *key*, of the same parent, holds; *key* goes. Blocks until on disk.

        Mounts that are there stay as they are. Children go on upon the new content where they refer to it, and not
        where they have copied the old. Raises NotFound, FailedPrecondition.
        """


@runtime_checkable
class RemovesMany(Protocol):
    """What a snapshotter offers beside :class:`Snapshotter` if several go faster than one after the other."""

    def remove_many(self, keys: Sequence[str]) -> set[str]:
        """Do :meth:`Snapshotter.remove` with *keys*, in their order; return those that it would have refused.

        One that is not there is as one that is removed. Raises only what made all of them fail.
        """


@runtime_checkable
class LayerFiles(Protocol):
    """What a snapshotter offers beside :class:`Snapshotter` if it takes a layer as one EROFS file.

    Instead of extracting a layer through the mounts of an active snapshot, whoever applies it may write the file. Then
    the snapshot, committed, shows the layer over its parent, and over that what was written through the mounts.
    """

    def layer_target(self, mounts: Sequence[Mount]) -> Path | None:
        """Return where the layer that is to be applied on *mounts* is taken as a file; None: extract it.

        The file gets that name by link(2), when it is whole and on disk. Only for the first layer of an active
        snapshot that is made for unpacking, and that nothing was written to.
        """

    @property
    def layer_directory(self) -> Path | None:
        """A directory to make layer files in (open(2), O_TMPFILE) before their snapshots are; None: extract all."""

    def layer_files(self) -> Mapping[str, Path]:
        """Return the file of each committed snapshot that is one, by its name."""


def layer_target(snapshotters: Iterable[Snapshotter], mounts: Sequence[Mount]) -> Path | None:
    """Return the :meth:`LayerFiles.layer_target` of the snapshotter that gave out *mounts*; None: extract the layer."""
    for snapshotter in snapshotters:
        if isinstance(snapshotter, LayerFiles) and (target := snapshotter.layer_target(mounts)):
            return target
    return None


def layer_directory(snapshotter: Snapshotter) -> Path | None:
    """Return the :attr:`LayerFiles.layer_directory` of *snapshotter*, None if it has none."""
    return snapshotter.layer_directory if isinstance(snapshotter, LayerFiles) else None
