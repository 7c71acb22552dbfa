"""Images: names that point to descriptors. The blobs behind them are the content store's."""

import json
import sqlite3
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from runtimed import identifiers, labels
from runtimed.errors import AlreadyExists, InvalidArgument, NotFound
from runtimed.filters import parse
from runtimed.metadata import leases, namespaces
from runtimed.metadata.db import Tx, frees
from runtimed.oci import digest as digests
from runtimed.oci.descriptor import Descriptor

REF_NAME = "org.opencontainers.image.ref.name"  # OCI image-spec annotations.md

_COLUMNS = "name, media_type, digest, size, annotations, labels, created_at, updated_at"


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """Times are nanoseconds since the epoch, UTC. Of the target its media type, digest, size, annotations are kept."""

    name: str
    target: Descriptor
    labels: Mapping[str, str] = field(default_factory=dict)
    created_at: int = 0
    updated_at: int = 0


def create(tx: Tx, namespace: str, image: Image, *, lease: str = "", now: int | None = None) -> Image:
    """Add *image* and return it as stored; *now* (ns UTC) replaces the clock where a client asks for it.

    An image that expires (``containerd.io/gc.expire``) is also held by *lease*, if there is one.

    Raises:
        AlreadyExists: the name is taken in *namespace*.
        InvalidArgument: the name, the target or a label is not valid.
        NotFound: there is no such lease.
    """
    stored = _checked(image)
    when = time.time_ns() if now is None else now
    stored = replace(stored, created_at=when, updated_at=when)
    namespaces.ensure(tx, namespace)
    try:
        tx.execute(
            f"INSERT INTO images (namespace, {_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", (namespace, *_row(stored))
        )
    except sqlite3.IntegrityError:
        raise AlreadyExists(f"image {image.name!r}") from None
    _hold(tx, namespace, lease, stored)
    return stored


def get(tx: Tx, namespace: str, name: str) -> Image:
    """Return the image. Raises NotFound."""
    row = tx.execute(f"SELECT {_COLUMNS} FROM images WHERE namespace = ? AND name = ?", (namespace, name)).fetchone()
    if row is None:
        raise NotFound(f"image {name!r}")
    return _from_row(row)


def list(tx: Tx, namespace: str, filters: Sequence[str] = ()) -> Sequence[Image]:
    """Return the images that match, by name. Raises InvalidArgument.

    Filters see ``name``, ``target.digest``, ``target.mediatype``, ``labels`` and ``annotations``.
    """
    rows = tx.execute(f"SELECT {_COLUMNS} FROM images WHERE namespace = ? ORDER BY name", (namespace,))
    return parse(filters).select(map(_from_row, rows), _field)


def update(
    tx: Tx, namespace: str, image: Image, paths: Sequence[str] = (), *, lease: str = "", now: int | None = None
) -> Image:
    """Change what *paths* names and return the result; no paths: replace everything but the name and its age.

    ``target``, ``labels``, ``labels.<key>``, ``annotations``, ``annotations.<key>`` (the target's) can be changed.

    Raises:
        NotFound: no such image, or no such lease.
        InvalidArgument: another path, or a value that is not valid.
    """
    identifiers.validate_name(image.name, "image name")
    current = get(tx, namespace, image.name)
    changed = image if not paths else _masked(current, image, paths)
    stored = replace(
        _checked(changed), created_at=current.created_at, updated_at=time.time_ns() if now is None else now
    )
    tx.execute(
        "UPDATE images SET media_type = ?, digest = ?, size = ?, annotations = ?, labels = ?, updated_at = ?"
        " WHERE namespace = ? AND name = ?",
        (*_row(stored)[1:6], stored.updated_at, namespace, stored.name),
    )
    _hold(tx, namespace, lease, stored)
    return stored


@frees
def delete(tx: Tx, namespace: str, name: str, target: str = "") -> None:
    """Remove the name; the blobs stay until they are collected.

    Raises:
        NotFound: no such image, or it points to another digest than *target*, if that is given.
    """
    image = get(tx, namespace, name)
    if target and image.target.digest != target:
        raise NotFound(f"image {name!r} has target {image.target.digest}, not {target}")
    tx.execute("DELETE FROM images WHERE namespace = ? AND name = ?", (namespace, name))


def index(tx: Tx) -> Sequence[Descriptor]:
    """Return a descriptor for each image name of all namespaces, annotated with it, for the store's ``index.json``.

    An OCI layout has no namespaces: of several images with one name the one that was updated last is in it.
    """
    rows = tx.execute(f"SELECT {_COLUMNS}, max(updated_at) FROM images GROUP BY name ORDER BY name")
    images = (_from_row(row[:8]) for row in rows)
    return [
        Descriptor(
            media_type=image.target.media_type,
            digest=image.target.digest,
            size=image.target.size,
            annotations={**image.target.annotations, REF_NAME: image.name},
        )
        for image in images
    ]


def _masked(current: Image, given: Image, paths: Sequence[str]) -> Image:
    result = current
    for path in paths:
        match path.split(".", 1):
            case ["target"]:
                result = replace(result, target=given.target)
            case ["labels", *_]:
                result = replace(result, labels=labels.updated(result.labels, given.labels, [path]))
            case ["annotations", *_]:
                annotations = labels.updated(
                    result.target.annotations, given.target.annotations, [path], field="annotations"
                )
                result = replace(result, target=_annotated(result.target, annotations))
            case _:
                raise InvalidArgument(f"image {current.name!r}: cannot update {path!r}")
    return result


def _annotated(target: Descriptor, annotations: dict[str, str]) -> Descriptor:
    return Descriptor(media_type=target.media_type, digest=target.digest, size=target.size, annotations=annotations)


def _checked(image: Image) -> Image:
    identifiers.validate_name(image.name, "image name")
    digests.validate(image.target.digest)
    if image.target.size <= 0:
        raise InvalidArgument(f"image {image.name!r}: target size {image.target.size} must be greater than zero")
    if not image.target.media_type:
        raise InvalidArgument(f"image {image.name!r}: target must have a media type")
    return replace(
        image,
        target=_annotated(image.target, dict(image.target.annotations)),
        labels=labels.checked(image.labels),
    )


def _hold(tx: Tx, namespace: str, lease: str, image: Image) -> None:
    if lease and labels.GC_EXPIRE in image.labels:
        leases.add_resource(tx, namespace, lease, leases.Resource("images", image.name))


def _row(image: Image) -> tuple[object, ...]:
    target = image.target
    annotations = json.dumps(target.annotations)
    text = json.dumps(dict(image.labels))
    return (
        image.name,
        target.media_type,
        target.digest,
        target.size,
        annotations,
        text,
        image.created_at,
        image.updated_at,
    )


def _from_row(row: tuple[str, str, str, int, str, str, int, int]) -> Image:
    name, media_type, digest, size, annotations, text, created_at, updated_at = row
    return Image(
        name=name,
        target=Descriptor(media_type=media_type, digest=digest, size=size, annotations=json.loads(annotations)),
        labels=json.loads(text),
        created_at=created_at,
        updated_at=updated_at,
    )


def _field(image: Image, path: Sequence[str]) -> str | None:
    match path:
        case ["name"]:
            return image.name
        case ["target", "digest"]:
            return image.target.digest
        case ["target", "mediatype"]:
            return image.target.media_type
        case ["labels", *key]:
            return image.labels.get(".".join(key))
        case ["annotations", *key]:
            return image.target.annotations.get(".".join(key))
    return None
