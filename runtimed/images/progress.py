"""What a pull says while it goes on."""

from collections.abc import Callable
from dataclasses import dataclass

from runtimed.oci import manifest
from runtimed.oci.descriptor import Descriptor


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """One step of one thing; events and names are those of containerd's pull, which ``ctr`` draws.

    Of a blob: ``waiting``, ``downloading``, then ``complete`` or ``already exists``; of a layer then ``extracting`` and
    ``extracted``. ``progress`` and ``total`` are bytes of the blob.
    """

    event: str
    name: str = ""
    parents: tuple[str, ...] = ()
    progress: int = 0
    total: int = 0
    descriptor: Descriptor | None = None


# Is called often, from the event loop, and must return at once.
Report = Callable[[Progress], None]


def ref_of(descriptor: Descriptor) -> str:
    """Return the ref that a blob is ingested under: containerd's, so that pulls of either kind resume each other."""
    media_type = descriptor.media_type
    if media_type in manifest.INDEXES:
        return f"index-{descriptor.digest}"
    if media_type in manifest.MANIFESTS:
        return f"manifest-{descriptor.digest}"
    if media_type in manifest.CONFIGS:
        return f"config-{descriptor.digest}"
    if media_type in manifest.LAYERS:
        return f"layer-{descriptor.digest}"
    return f"unknown-{descriptor.digest}"
