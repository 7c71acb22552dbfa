"""How long the stages of a pull took, from what it says while it goes on."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from runtimed.images.progress import Progress, Report
from runtimed.oci import manifest

# The annotation of the last progress message's descriptor that holds a Timings as JSON.
ANNOTATION = "runtimed.timings"


class Layer(msgspec.Struct, kw_only=True):
    """What became of one layer. Times are seconds."""

    digest: str
    size: int  # bytes, as in the registry
    begun_s: float  # since the pull's begin, when its turn came
    download_s: float = 0.0
    unpack_s: float = 0.0  # with waiting for those below it; 0: its snapshot was there
    was_here: bool = False  # its bytes were


class Timings(msgspec.Struct, kw_only=True):
    """Where the time of a pull went. Stages of different layers overlap."""

    resolve_s: float = 0.0  # until the registry had said what the reference stands for
    manifests_s: float = 0.0  # from then until the first layer's turn
    layers_s: float = 0.0  # from then until the end
    total_s: float = 0.0
    downloaded: int = 0  # bytes of layers
    layers: list[Layer]


@dataclass(slots=True)
class _Times:
    size: int
    begun: float
    arrived: float = 0.0
    was_here: bool = False
    unpacking: float = 0.0
    unpacked: float = 0.0


class Clock:
    """Hears what a pull says, and notes when."""

    def __init__(self, report: Report, now: Callable[[], float] = time.monotonic) -> None:
        self._report = report
        self._now = now
        self._begun = now()
        self._resolved = 0.0
        self._layers: dict[str, _Times] = {}

    def report(self, progress: Progress) -> None:
        """Note it, and pass it on."""
        if progress.event == "fetching image content":
            self._resolved = self._now()
        elif progress.descriptor and progress.descriptor.media_type in manifest.LAYERS:
            self._note(progress.event, progress.descriptor.digest, progress.descriptor.size)
        self._report(progress)

    def _note(self, event: str, digest: str, size: int) -> None:
        now = self._now()
        layer = self._layers.setdefault(digest, _Times(size, now))
        match event:
            case "complete" | "already exists":
                layer.arrived = layer.arrived or now
                layer.was_here = event == "already exists"
            case "extracting":
                layer.unpacking = layer.unpacking or now
            case "extracted":
                layer.unpacked = now

    def timings(self) -> Timings:
        """Return what has been heard until now."""
        end = self._now()
        resolved = self._resolved or end
        first = min((layer.begun for layer in self._layers.values()), default=end)
        return Timings(
            resolve_s=_rounded(resolved - self._begun),
            manifests_s=_rounded(first - resolved),
            layers_s=_rounded(end - first),
            total_s=_rounded(end - self._begun),
            downloaded=sum(layer.size for layer in self._layers.values() if not layer.was_here),
            layers=[
                Layer(
                    digest=digest,
                    size=layer.size,
                    begun_s=_rounded(layer.begun - self._begun),
                    download_s=0.0 if layer.was_here else _rounded((layer.arrived or end) - layer.begun),
                    unpack_s=_rounded((layer.unpacked or end) - layer.unpacking) if layer.unpacking else 0.0,
                    was_here=layer.was_here,
                )
                for digest, layer in self._layers.items()
            ],
        )


def _rounded(seconds: float) -> float:
    return round(max(0.0, seconds), 4)
