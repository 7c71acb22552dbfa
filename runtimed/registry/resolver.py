"""From a reference to the descriptor it stands for now."""

from runtimed.errors import DataLoss, InvalidArgument
from runtimed.oci import digest as digests
from runtimed.oci import manifest
from runtimed.oci.descriptor import Descriptor
from runtimed.oci.reference import Reference
from runtimed.registry.client import Answer, RegistryClient


async def resolve(client: RegistryClient) -> tuple[Descriptor, bytes]:
    """Return the root descriptor of the client's reference, and the document that it points to.

    The digest is that of the bytes that came. One that the reference or the registry names must agree, so nobody can
    say one thing and send another.

    Raises:
        DataLoss: the bytes have another digest than the reference or the ``Docker-Content-Digest`` header says.
        InvalidArgument: what came is no manifest or index.
        NotFound, Unauthenticated, PermissionDenied, Unavailable: as :meth:`RegistryClient.get`.
    """
    reference = client.reference
    answer = await client.get(
        "manifests",
        reference.object,
        accept=", ".join(manifest.ACCEPTED),
        limit=manifest.MAX_SIZE,
        check=lambda answer: _check(answer, reference),
    )
    media_type = _media_type(answer, f"{reference} from registry {answer.host}")
    digest = _digest(answer, reference)
    return Descriptor(media_type=media_type, digest=digest, size=len(answer.body)), answer.body


def _check(answer: Answer, reference: Reference) -> None:
    subject = f"{reference} from registry {answer.host}"
    digest = _digest(answer, reference)
    if reference.digest and digest != reference.digest:
        raise DataLoss(f"{subject}: the bytes that came have digest {digest}")
    _check_digest_header(answer, subject)
    _media_type(answer, subject)


def _digest(answer: Answer, reference: Reference) -> str:
    return digests.compute(answer.body, digests.split(reference.digest)[0] if reference.digest else "sha256")


def _check_digest_header(answer: Answer, subject: str) -> None:
    said = answer.headers.get("Docker-Content-Digest", "")
    if not said:
        return
    actual = digests.compute(answer.body, digests.split(said)[0])
    if actual != said:
        raise DataLoss(f"{subject}: the registry says {said} but sent bytes with digest {actual}")


def _media_type(answer: Answer, subject: str) -> str:
    """Return the document's own media type, or the header's if it has none; the shape has to fit either."""
    said = answer.headers.get("Content-Type", "").partition(";")[0].strip()
    found = manifest.media_type_of(answer.body, subject)
    known = manifest.INDEXES | manifest.MANIFESTS
    if said in known and (said in manifest.INDEXES) == (found in manifest.INDEXES):
        # A document that names its media type itself is checked against this one when it is parsed.
        return said
    if found not in known:
        raise InvalidArgument(f"{subject} is of media type {found[:128]!r}, which is not an image")
    return found
