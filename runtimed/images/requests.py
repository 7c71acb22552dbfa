"""What is asked of a pull or an import, and what comes of it."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from runtimed.metadata.images import Image
from runtimed.oci.descriptor import Platform


@dataclass(frozen=True, slots=True, kw_only=True)
class Unpack:
    """Make snapshots of the layers of what runs on *platform*."""

    snapshotter: str
    platform: Platform


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What to pull and what to make of it."""

    names: tuple[str, ...]  # of the image; one that ends in "@" gets the root's digest
    labels: Mapping[str, str] = field(default_factory=dict)
    platforms: tuple[Platform, ...] = ()  # of an index: the best manifest for each; none: all manifests
    all_metadata: bool = False  # also manifests and configs, without layers, of the other platforms
    manifest_limit: int = 0  # of each index, the first so many of those wanted; 0: all
    unpacks: tuple[Unpack, ...] = ()
    lease: str = ""  # of the client; without it a pull makes its own
    drops_layers: bool = False  # blobs of layers are not kept once these are unpacked; see images/dropping.py


@dataclass(frozen=True, slots=True)
class Pulled:
    """An image as stored; whether the name is new."""

    image: Image
    is_new: bool
