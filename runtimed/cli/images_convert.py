"""``rctl images convert``: the same image with its layers compressed otherwise, or for fewer platforms."""

import hashlib
import io
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import click
import msgspec

from runtimed import labels
from runtimed.api import images_pb2 as images
from runtimed.cli import complete, output
from runtimed.cli.client import Client, Settings, run, service
from runtimed.client import blobs
from runtimed.client.documents import find_image, from_proto, read_blob, to_proto
from runtimed.diff import compression
from runtimed.diff.compressing import compressor
from runtimed.diff.compression import Compression
from runtimed.errors import AlreadyExists, DataLoss, InvalidArgument
from runtimed.images.blobs import gc_labels
from runtimed.oci import digest as digests
from runtimed.oci import manifest
from runtimed.oci import platform as platforms
from runtimed.oci import reference as references
from runtimed.oci.descriptor import Descriptor, Platform
from runtimed.threads import blocking

_MAX_DEPTH = 4  # indexes in indexes
_CHUNK = 256 * 1024
_SUFFIXES = {Compression.NONE: "", Compression.GZIP: "+gzip", Compression.ZSTD: "+zstd"}


@click.command("convert", short_help="Compress the layers of an image otherwise.")
@output.formatted
@click.option(
    "--to", "wanted", type=click.Choice(["gzip", "zstd", "none"]), default="zstd", show_default=True, help="The layers."
)
@click.option("--platform", "platforms_", multiple=True, metavar="OS/ARCH", help="Default: what this machine runs.")
@click.option("--all-platforms", is_flag=True, help="All of a multi-platform image, which must be here.")
@click.argument("image", metavar="IMAGE", shell_complete=complete.images)
@click.argument("name", metavar="NAME")
@click.pass_obj
def convert_command(
    settings: Settings, wanted: str, platforms_: tuple[str, ...], all_platforms: bool, image: str, name: str
) -> int:
    """Make an image called NAME of IMAGE with its layers compressed otherwise.

    Files and configuration stay the same, and so do snapshots. Platforms that are not chosen are left out; for a single
    one the result is a plain manifest.

    \b
    rctl images convert --to zstd app:1.0 app:1.0-zstd
    """
    chosen = [] if all_platforms else [platforms.parse(one) for one in platforms_] or [platforms.host()]
    full = str(references.parse(name))

    async def work(client: Client) -> int:
        source = await find_image(client, image)
        async with client.held_lease():
            conversion = _Conversion(client, Compression(wanted), chosen)
            target = await conversion.convert(from_proto(source.target), 0)
            await _name(client, images.Image(name=full, labels=source.labels, target=to_proto(target)))
        if settings.json:
            output.print_json({"name": full, "digest": target.digest, "media_type": target.media_type})
        else:
            output.print_lines([full])
        return 0

    return run(settings, work)


class _Conversion:
    """One conversion under way; a layer that several manifests have is converted once."""

    def __init__(self, client: Client, wanted: Compression, chosen: Sequence[Platform]) -> None:
        self._client = client
        self._wanted = wanted
        self._chosen = chosen
        self._layers: dict[tuple[str, str], Descriptor] = {}

    async def convert(self, descriptor: Descriptor, depth: int) -> Descriptor:
        """Return what has become of the manifest or index *descriptor*."""
        data = await read_blob(self._client, descriptor, manifest.MAX_SIZE)
        children = manifest.children(descriptor, data)
        document: dict[str, Any] = msgspec.json.decode(data)
        if descriptor.media_type in manifest.MANIFESTS:
            return await self._manifest(descriptor, document, children)
        if descriptor.media_type not in manifest.INDEXES or depth == _MAX_DEPTH:
            raise InvalidArgument(f"{descriptor.digest} is not an image")
        wanted = [platforms.select(children, one, "the image") for one in self._chosen] or [
            child
            for child in children
            if not platforms.is_attestation(child)  # it is about another manifest
        ]
        entries = []
        for child in {child.digest: child for child in wanted}.values():
            made = await self.convert(child, depth + 1)
            entries.append(msgspec.structs.replace(made, platform=child.platform, annotations=child.annotations))
        if self._chosen and len(entries) == 1:
            return msgspec.structs.replace(entries[0], platform=None, annotations={})
        document |= {"mediaType": manifest.OCI_INDEX, "manifests": entries}
        return await self._store(document, manifest.OCI_INDEX, entries)

    async def _manifest(
        self, descriptor: Descriptor, document: dict[str, Any], children: Sequence[Descriptor]
    ) -> Descriptor:
        config, *layers = children
        if config.media_type not in manifest.CONFIGS:
            raise InvalidArgument(f"{descriptor.digest} is not a container image: its config is {config.media_type!r}")
        parsed = manifest.parse_config(config, await read_blob(self._client, config, manifest.MAX_CONFIG_SIZE))
        manifest.check_layers(descriptor, layers)
        diff_ids = parsed.rootfs.diff_ids or ()
        if len(diff_ids) != len(layers):
            raise InvalidArgument(f"manifest {descriptor.digest} and its config do not have the same number of layers")
        made = [await self._layer(layer, diff_id) for layer, diff_id in zip(layers, diff_ids, strict=True)]
        config = msgspec.structs.replace(config, media_type=manifest.OCI_CONFIG)
        document |= {"mediaType": manifest.OCI_MANIFEST, "config": config, "layers": made}
        return await self._store(document, manifest.OCI_MANIFEST, [config, *made])

    async def _layer(self, layer: Descriptor, diff_id: str) -> Descriptor:
        key = (layer.digest, diff_id)
        if key not in self._layers:
            with tempfile.TemporaryDirectory(prefix="rctl-convert-") as directory:
                self._layers[key] = await self._converted(layer, diff_id, Path(directory))
        return msgspec.structs.replace(self._layers[key], annotations=layer.annotations)

    async def _converted(self, layer: Descriptor, diff_id: str, directory: Path) -> Descriptor:
        output.note(f"layer {layer.digest[:19]}: {output.size(layer.size)}")
        with (directory / "from").open("wb") as source:
            await blobs.save(self._client, layer, source)
        with (directory / "to").open("w+b") as target:
            made = await blocking(_recompress, directory / "from", layer, diff_id, self._wanted, target)
            (directory / "from").unlink()
            await blobs.store(self._client, made, target, {labels.UNCOMPRESSED: diff_id})
        return made

    async def _store(self, document: dict[str, Any], media_type: str, children: Sequence[Descriptor]) -> Descriptor:
        data = msgspec.json.encode(document)
        descriptor = Descriptor(media_type=media_type, digest=digests.of(data), size=len(data))
        await blobs.store(self._client, descriptor, io.BytesIO(data), gc_labels(tuple(children)))
        return descriptor


def _recompress(source: Path, layer: Descriptor, diff_id: str, wanted: Compression, target: BinaryIO) -> Descriptor:
    """Write the layer in *source* to *target*, compressed as *wanted*. Raises DataLoss if it is another layer."""
    algorithm = digests.split(diff_id)[0]
    plain, blob = hashlib.new(algorithm), hashlib.sha256()
    making = compressor(wanted)

    def put(data: bytes) -> None:
        blob.update(data)
        target.write(data)

    with compression.opened(source, layer.media_type) as file:
        while data := file.read(_CHUNK):
            plain.update(data)
            put(making.compress(data))
    put(making.flush())
    if f"{algorithm}:{plain.hexdigest()}" != diff_id:
        raise DataLoss(f"layer {layer.digest} is not what the image's config says; get it anew with rctl pull")
    media_type = manifest.OCI_LAYER + _SUFFIXES[wanted]
    return Descriptor(media_type=media_type, digest=f"sha256:{blob.hexdigest()}", size=target.tell())


async def _name(client: Client, image: images.Image) -> None:
    stub = service(images, "Images")
    try:
        await client.call(stub.Create, images.CreateImageRequest(image=image))
    except AlreadyExists:
        await client.call(stub.Update, images.UpdateImageRequest(image=image))
