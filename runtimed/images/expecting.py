"""The layers of one image that are put into files while they are fetched."""

from collections.abc import Sequence
from types import TracebackType
from typing import Self

from runtimed.images.unpack import Unpacker
from runtimed.metadata.snapshots import Snapshots
from runtimed.oci import manifest
from runtimed.oci.descriptor import Descriptor
from runtimed.workers.pool import Expected


class Expecting:
    """Says which layers are to be put into files. A context manager: closes what is left."""

    def __init__(self, namespace: str, unpacker: Unpacker) -> None:
        self._namespace = namespace
        self._unpacker = unpacker
        self._snapshots: Snapshots | None = None
        self._chain_ids: dict[str, str] = {}  # of the lowest layer with a digest
        self._expected: dict[str, Expected] = {}  # by chain ID

    def plan(self, snapshots: Snapshots, layers: Sequence[Descriptor], diff_ids: Sequence[str]) -> None:
        """Say what *layers* become."""
        self._snapshots = snapshots
        for layer, chain_id in zip(layers, manifest.chain_ids(diff_ids), strict=True):
            self._chain_ids.setdefault(layer.digest, chain_id)

    async def begin(self, layer: Descriptor) -> None:
        """Expect *layer*, which is about to be fetched, if that can be."""
        chain_id = self._chain_ids.get(layer.digest)
        if self._snapshots is not None and chain_id is not None:
            expected = await self._unpacker.expect(self._namespace, self._snapshots, layer, chain_id)
            if expected is not None:
                self._expected[chain_id] = expected

    def of(self, chain_id: str) -> Expected | None:
        """Return what is expected for the snapshot *chain_id*."""
        return self._expected.get(chain_id)

    async def over(self, chain_id: str) -> None:
        """Let others expect instead: the snapshot *chain_id* is there."""
        if expected := self._expected.pop(chain_id, None):
            await expected.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for chain_id in list(self._expected):
            await self.over(chain_id)
