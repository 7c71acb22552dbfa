"""Images as CRI sees them: one per image config, whose digest is its identity, under all the names it has.

containerd's store has names that point to manifests or indexes. Here names whose image for this machine's platform has
the same config are one image: removed as one, listed once.
"""

import base64
import binascii
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import msgspec
from yarl import URL

from runtimed.api import images_pb2
from runtimed.embedded import images as embedded
from runtimed.errors import InvalidArgument, NotFound, RuntimedError
from runtimed.events import EventBus
from runtimed.images.holding import lease_of
from runtimed.images.joining import Joint
from runtimed.images.pull import Puller
from runtimed.images.requests import Pulled, Request, Unpack
from runtimed.images.sources import LayoutSource, RegistrySource, Source
from runtimed.images.visiting import Visit
from runtimed.metadata import images
from runtimed.metadata.content import Content
from runtimed.metadata.db import Database, Tx, frees
from runtimed.oci import manifest
from runtimed.oci import platform as platforms
from runtimed.oci import reference as references
from runtimed.oci.descriptor import Descriptor
from runtimed.oci.manifest import ImageConfig
from runtimed.oci.reference import Reference
from runtimed.registry import hosts
from runtimed.registry.auth import AskCredentials, Credentials
from runtimed.registry.registries import Registries
from runtimed.threads import blocking
from runtimed.workers.pool import Pool

NAMESPACE = "k8s.io"
MANAGED = {"io.cri-containerd.image": "managed"}
PINNED = {"io.cri-containerd.pinned": "pinned"}

_CHECKPOINT = frozenset(("org.criu.checkpoint.container.name", "io.kubernetes.cri-o.annotations.checkpoint.name"))
_HEX = frozenset("0123456789abcdef")
_DOCKER_HUB = frozenset({"docker.io", "index.docker.io", "registry-1.docker.io", "auth.docker.io"})
_LARGEST_UID = 2**32 - 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Contents:
    """What a target holds for this machine's platform. Never changes: it is named by its digest."""

    id: str  # the digest of the image config
    config: ImageConfig
    chain_id: str  # of the top layer; "" without layers
    size: int  # bytes of config and layers, as they are kept
    config_json: bytes
    is_checkpoint: bool = False  # of a container, rather than an image to make one of


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """An image with all its names."""

    contents: Contents
    names: tuple[str, ...]  # in the image store
    tags: tuple[str, ...]
    digests: tuple[str, ...]
    pinned: bool

    @property
    def id(self) -> str:
        return self.contents.id


@dataclass(frozen=True, slots=True, kw_only=True)
class Auth:
    """Credentials that came with a request (CRI AuthConfig)."""

    username: str = ""
    password: str = field(default="", repr=False)
    auth: str = field(default="", repr=False)  # base64 of name:password
    server_address: str = ""
    identity_token: str = field(default="", repr=False)
    registry_token: str = field(default="", repr=False)


class Images:
    """The images of the namespace ``k8s.io``."""

    def __init__(
        self,
        db: Database,
        content: Content,
        puller: Puller,
        pool: Pool,
        events: EventBus,
        collect: Callable[[], Awaitable[None]],
        registries: Registries,
    ) -> None:
        self._db = db
        self._content = content
        self._puller = puller
        self._pool = pool
        self._events = events
        self._collect = collect
        self._registries = registries
        self._known: dict[str, Contents] = {}  # by digest of the target
        self._pulls = Joint()

    async def list(self) -> Sequence[Image]:
        """Return every image that is here for this machine's platform, by ID."""
        return await blocking(self._list)

    async def find(self, name: str) -> Image | None:
        """Return the image that *name* means: a reference, an ID, or the unique beginning of an ID.

        Raises:
            InvalidArgument: it is none of these.
        """
        wanted = name.removeprefix("sha256:")
        is_id = bool(wanted) and _HEX.issuperset(wanted)
        found = await self.list()
        if is_id and (name.startswith("sha256:") or len(wanted) == 64):
            matches = [image for image in found if image.id.removeprefix("sha256:").startswith(wanted)]
            return matches[0] if len(matches) == 1 else None
        try:
            full = _store_name(references.parse(name))
        except InvalidArgument:
            if not is_id:
                raise
            full = ""
        for image in found:
            if full in image.names or name in image.names:
                return image
        if is_id:
            matches = [image for image in found if image.id.removeprefix("sha256:").startswith(wanted)]
            return matches[0] if len(matches) == 1 else None
        return None

    async def get(self, name: str) -> Image:
        """Return the image that *name* means. Raises NotFound, InvalidArgument."""
        image = await self.find(name)
        if image is None:
            raise NotFound(f"image {name!r} is not here: pull it first")
        return image

    async def remove(self, name: str) -> None:
        """Remove the image that *name* means under all its names; fine if it is not there."""
        image = await self.find(name)
        if image is None:
            return
        for removed in await self._db.write(_delete, image.names):
            self._events.publish(NAMESPACE, "/images/delete", images_pb2.ImageDelete(name=removed))
        await self._collect()

    async def pull(self, name: str, auth: Auth, snapshotter: str, *, pinned: bool = False) -> Image:
        """Pull an image, joining a pull of the same with the same credentials; return it.

        Raises as :meth:`Puller.pull`.
        """
        reference = references.parse(name)

        async def job(_: object) -> None:
            await self._pull(reference, auth, snapshotter, MANAGED | (PINNED if pinned else {}))

        await self._pulls.run((str(reference), auth, snapshotter, pinned), job)
        return await self.get(_store_name(reference))

    def pulls(self, name: str = "") -> Sequence[Mapping[str, object]]:
        """Return how far each pull is that is under way, the oldest first; with *name*, those of that reference."""
        try:
            wanted = str(references.parse(name)) if name else ""
        except InvalidArgument:
            return []  # an ID
        return [
            {
                "image": one.image,
                "startedAt": one.started_at,
                "fetchedBytes": one.fetched,
                "totalBytes": one.total,
                "unpackedLayers": one.unpacked,
            }
            for one in sorted(self._puller.running, key=lambda one: one.started_at)
            if one.namespace == NAMESPACE and wanted in ("", one.image)
        ]

    async def unpack(self, image: Image, snapshotter: str) -> None:
        """Unpack an image that is here for one more snapshotter, joining who is at it.

        Raises:
            NotFound: it has been removed, or blobs of its layers are not kept: what to do.
            Otherwise as :meth:`Puller.pull`.
        """

        async def job(_: object) -> None:
            await self._unpack(image.names[0], snapshotter)

        await self._pulls.run((image.id, snapshotter), job)

    async def _unpack(self, name: str, snapshotter: str) -> None:
        async def fetch(descriptor: Descriptor, _: tuple[str, ...]) -> None:
            try:
                await blocking(self._content.info, NAMESPACE, descriptor.digest)
            except NotFound:
                raise NotFound(
                    f"image {name} is not unpacked for snapshotter {snapshotter!r}, and blob {descriptor.digest} of it"
                    " is not here: pull it for the runtime handler"
                ) from None

        request = Request(names=(name,), platforms=(platforms.host(),), unpacks=(_for(snapshotter),))
        self._puller.check(request)
        target = (await self._db.read(images.get, NAMESPACE, name)).target
        async with lease_of(self._db, NAMESPACE, "", fetches=False) as lease:
            visit = Visit(
                namespace=NAMESPACE,
                subject=f"image {name}",
                request=request,
                fetch=fetch,
                lease=lease,
                report=lambda _: None,
            )
            await self._puller.visitor(visit).visit(target, (), name)

    async def _pull(self, reference: Reference, auth: Auth, snapshotter: str, marks: Mapping[str, str]) -> None:
        by_digest = f"{reference.name}@"
        request = Request(
            names=(by_digest,) if reference.digest else (str(reference), by_digest),
            labels=marks,
            platforms=(platforms.host(),),
            unpacks=(_for(snapshotter),),
        )
        source = await self._source(reference, auth)
        for one in await self._puller.pull(NAMESPACE, source, request, lambda _: None):
            self._publish(one)

    async def _source(self, reference: Reference, auth: Auth) -> Source:
        if reference.host == embedded.HOST:
            return LayoutSource(embedded.layout(), reference)
        self._pool.warm()  # beside the rest of what it takes to begin
        client = await self._registries.client(reference, credentials_of_caller=_asked(reference.host, auth))
        return RegistrySource(client, self._pool)

    def _publish(self, one: Pulled) -> None:
        image = one.image
        if one.is_new:
            created = images_pb2.ImageCreate(name=image.name, labels=image.labels)
            self._events.publish(NAMESPACE, "/images/create", created)
        else:
            updated = images_pb2.ImageUpdate(name=image.name, labels=image.labels)
            self._events.publish(NAMESPACE, "/images/update", updated)

    def _list(self) -> Sequence[Image]:
        with self._db.reading() as tx:
            named = images.list(tx, NAMESPACE)
        known: dict[str, Contents] = {}
        by_id: dict[str, list[images.Image]] = {}
        for image in named:
            digest = image.target.digest
            contents = known.get(digest) or self._known.get(digest)
            try:
                contents = contents or self._contents(image.target)
            except RuntimedError:
                continue  # of another platform, not an image, or on its way out
            known[digest] = contents
            by_id.setdefault(contents.id, []).append(image)
        self._known = known  # what has no name any more is forgotten
        return [_joined(known[group[0].target.digest], group) for _, group in sorted(by_id.items())]

    def _contents(self, target: Descriptor) -> Contents:
        descriptor = target
        annotations: set[str] = set()
        document = self._read(descriptor, manifest.MAX_SIZE)
        if descriptor.media_type in manifest.INDEXES:
            index = manifest.parse_index(descriptor, document)
            annotations.update(index.annotations or ())
            descriptor = platforms.select(index.manifests, platforms.host(), f"image {target.digest}")
            document = self._read(descriptor, manifest.MAX_SIZE)
        parsed = manifest.parse_manifest(descriptor, document)
        annotations.update(parsed.annotations or ())
        data = self._read(parsed.config, manifest.MAX_CONFIG_SIZE)
        config = manifest.parse_config(parsed.config, data)
        chain = manifest.chain_ids(config.rootfs.diff_ids or ())
        return Contents(
            id=parsed.config.digest,
            config=config,
            chain_id=chain[-1] if chain else "",
            size=parsed.config.size + sum(layer.size for layer in parsed.layers or ()),
            config_json=data,
            is_checkpoint=not _CHECKPOINT.isdisjoint(annotations),
        )

    def _read(self, descriptor: Descriptor, limit: int) -> bytes:
        return self._content.read(NAMESPACE, descriptor.digest, limit)


def user_of(config: ImageConfig) -> tuple[int | None, str]:
    """Return the numeric user of an image, or else its name; neither if the config names none.

    Only what is nothing but digits, and can be a user's number, is one (CRI api.proto, Image.uid).
    """
    user = ((config.config.user if config.config else None) or "").partition(":")[0]
    if user.isascii() and user.isdigit() and len(user) <= 10 and int(user) <= _LARGEST_UID:
        return int(user), ""
    return None, user


def _for(snapshotter: str) -> Unpack:
    return Unpack(snapshotter=snapshotter, platform=platforms.host())


def _joined(contents: Contents, group: Sequence[images.Image]) -> Image:
    parsed = [(image.name, _parsed(image.name)) for image in group]
    return Image(
        contents=contents,
        names=tuple(name for name, _ in parsed),
        tags=tuple(name for name, reference in parsed if reference and not reference.digest),
        digests=tuple(name for name, reference in parsed if reference and reference.digest),
        pinned=any(PINNED.items() <= image.labels.items() for image in group),
    )


def _parsed(name: str) -> Reference | None:
    try:
        reference = references.parse(name)
    except InvalidArgument:
        return None  # containerd's own CRI also names images by their ID
    return reference if str(reference) == name else None


def _store_name(reference: Reference) -> str:
    """Return what an image is called after it was pulled by *reference*: with a digest, the tag does not count."""
    return str(reference.with_digest(reference.digest) if reference.digest else reference)


@frees
def _delete(tx: Tx, names: Iterable[str]) -> list[str]:
    """Delete those of *names* that are there; return them."""
    gone = []
    for name in names:
        try:
            images.delete(tx, NAMESPACE, name)
        except NotFound:
            continue
        gone.append(name)
    return gone


def _asked(host: str, auth: Auth) -> AskCredentials | None:
    """Return what answers a registry that asks, from what came with the request; None if that has nothing for it.

    Raises InvalidArgument: `auth` is not what it should be.
    """
    if auth.server_address and not _is_meant(host, auth.server_address):
        return None
    credentials = _credentials(auth)
    if credentials is None:
        return None

    own = {host, hosts.endpoint(host).authority}

    async def ask(asking: str, _challenges: tuple[str, ...]) -> Credentials | None:
        return credentials if asking in own else None  # mirrors are not who they were given for

    return ask


def _credentials(auth: Auth) -> Credentials | None:
    if auth.registry_token:
        return Credentials(header=f"Bearer {auth.registry_token}")
    if auth.identity_token:
        return Credentials(secret=auth.identity_token)
    if auth.username:
        return Credentials(username=auth.username, secret=auth.password)
    if auth.auth:
        try:
            name, colon, secret = base64.b64decode(auth.auth, validate=True).decode().partition(":")
        except (binascii.Error, UnicodeDecodeError):
            colon = ""
        if not colon:
            raise InvalidArgument("auth.auth must be the base64 of user name, colon and password")
        return Credentials(username=name, secret=secret.rstrip("\0"))
    return None


def _is_meant(host: str, address: str) -> bool:
    """Say whether credentials for the server *address* are for the registry *host* of a reference."""
    try:
        authority = URL(address if "://" in address else f"https://{address}").authority
    except ValueError:
        return False
    return authority == host or (authority in _DOCKER_HUB and host in _DOCKER_HUB)


def info_of(image: Image) -> dict[str, str]:
    """Return what a verbose ImageStatus tells: as containerd does, a JSON document under ``info``."""
    spec = msgspec.json.decode(image.contents.config_json)
    return {"info": msgspec.json.encode({"chainID": image.contents.chain_id, "imageSpec": spec}).decode()}
