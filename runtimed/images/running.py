"""How far a pull is that is under way, added up from what it says, for who looks at it from outside."""

import time

from runtimed.images.progress import Progress, Report
from runtimed.oci import manifest


class RunningPull:
    """Hears what one pull says. ``started_at`` is nanoseconds since the epoch, UTC."""

    def __init__(self, namespace: str, image: str, report: Report) -> None:
        self.namespace = namespace
        self.image = image  # the reference that is pulled
        self.started_at = time.time_ns()
        self._report = report
        self._blobs: dict[str, tuple[int, int]] = {}  # by digest: bytes that are here, and of the whole
        self._unpacked: set[str] = set()

    def report(self, progress: Progress) -> None:
        """Note it, and pass it on."""
        descriptor = progress.descriptor
        if descriptor is not None:
            match progress.event:
                case "waiting" | "downloading":
                    self._blobs[descriptor.digest] = (progress.progress, descriptor.size)
                case "complete" | "already exists":
                    self._blobs[descriptor.digest] = (descriptor.size, descriptor.size)
                case "extracted" if descriptor.media_type in manifest.LAYERS:
                    self._unpacked.add(descriptor.digest)
        self._report(progress)

    @property
    def fetched(self) -> int:
        """Bytes of blobs that are here, whether by this pull or before it."""
        return sum(here for here, _ in self._blobs.values())

    @property
    def total(self) -> int:
        """Bytes of the blobs whose turn has come: it grows until the last layer is begun."""
        return sum(size for _, size in self._blobs.values())

    @property
    def unpacked(self) -> int:
        """How many layers are unpacked."""
        return len(self._unpacked)
