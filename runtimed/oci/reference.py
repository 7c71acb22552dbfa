"""References: what a user calls an image, as Docker writes them.

The grammar is that of distribution/reference (reference.go)::

    reference  = [host "/"] path [":" tag] ["@" digest]
    host       = (domain | IPv4 | "[" IPv6 "]") [":" port]
    path       = component ("/" component)*

The parser cuts the text at its separators first and checks each part by one linear pattern, so no reference, however
long or odd, makes it slow.
"""

import ipaddress
import re
from typing import NoReturn

import msgspec

from runtimed.errors import InvalidArgument
from runtimed.oci import digest as digests

DEFAULT_HOST = "docker.io"
DEFAULT_TAG = "latest"
_OFFICIAL = "library/"  # where docker.io keeps names without a slash

_MAX_REFERENCE = 1024  # characters; more than the longest host, path, tag and digest together
_MAX_PATH = 255  # characters; distribution/reference RepositoryNameTotalLengthMax

# Every repetition starts with a character that the one before cannot take: one way to match, so linear.
_COMPONENT = re.compile(r"[a-z0-9]+(?:(?:\.|__?|-+)[a-z0-9]+)*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_HOST_LABEL = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?")
_IMAGE_ID = re.compile(r"[0-9a-f]{64}")


class Reference(msgspec.Struct, frozen=True, kw_only=True):
    """Where an image is kept and which one is meant. ``str()`` is the full name, which images have in the store."""

    host: str  # with the port, if one was given
    repository: str
    tag: str = ""
    digest: str = ""

    def __str__(self) -> str:
        tag = f":{self.tag}" if self.tag else ""
        digest = f"@{self.digest}" if self.digest else ""
        return f"{self.host}/{self.repository}{tag}{digest}"

    @property
    def name(self) -> str:
        """Host and repository, without tag and digest."""
        return f"{self.host}/{self.repository}"

    @property
    def object(self) -> str:
        """What to ask the registry for: the digest if there is one, else the tag."""
        return self.digest or self.tag

    def with_digest(self, digest: str) -> "Reference":
        """Return the reference to exactly *digest* in the same repository."""
        return msgspec.structs.replace(self, tag="", digest=digest)


def parse(text: str) -> Reference:
    """Return the full reference that *text* is short for: ``busybox`` is ``docker.io/library/busybox:latest``.

    A tag beside a digest is kept; the digest decides what is pulled.

    Raises:
        InvalidArgument: it does not parse; the message quotes it and says which part is wrong.
    """
    if not text:
        raise InvalidArgument("image reference is empty; give one like 'docker.io/library/busybox:latest'")
    if len(text) > _MAX_REFERENCE:
        raise InvalidArgument(f"image reference {text[:64]!r}... is longer than {_MAX_REFERENCE} characters")
    if "://" in text:
        _refuse(text, f"leave out the {text.partition('://')[0][:16] + '://'!r}")

    name, at, digest = text.partition("@")
    if at:
        _check_digest(text, digest)
    host, path = _split_host(text, name)
    path, tag = _split_tag(text, path)
    if host == DEFAULT_HOST and "/" not in path:
        path = _OFFICIAL + path
    if not tag and not digest:
        tag = DEFAULT_TAG
    return Reference(host=host, repository=path, tag=tag, digest=digest)


def _split_host(text: str, name: str) -> tuple[str, str]:
    """Cut the host off *name*; a first component is a host if it could not be one of a path (Docker's rule)."""
    first, slash, rest = name.partition("/")
    is_host = slash and (first == "localhost" or any(c in ".:[" or c.isupper() for c in first))
    if not is_host:
        if _IMAGE_ID.fullmatch(name):
            _refuse(text, "64 hex digits are an image ID; give a name, or a digest as name@sha256:...")
        return DEFAULT_HOST, name
    _check_host(text, first)
    if first in {"index.docker.io", "registry-1.docker.io"}:
        first = DEFAULT_HOST
    return first, rest


def _check_host(text: str, host: str) -> None:
    if host.startswith("["):
        address, bracket, port = host[1:].partition("]")
        try:
            ipaddress.IPv6Address(address)
        except ValueError:
            _refuse(text, f"{host!r} is not an IPv6 address in brackets")
        if not bracket or (port and not port.startswith(":")):
            _refuse(text, f"{host!r} is not an IPv6 address in brackets, with or without a port")
        if "%" in address:
            _refuse(text, f"a zone ({address!r}) cannot be part of a registry's name")
        port, colon = port[1:], port[:1]
    else:
        domain, colon, port = host.partition(":")
        if len(domain) > 253 or not all(_HOST_LABEL.fullmatch(label) for label in domain.split(".")):
            _refuse(text, f"{domain!r} is not a host name")
    if colon and not (port.isascii() and port.isdigit() and 0 < int(port[:6]) <= 65535):
        _refuse(text, f"{port!r} is not a port (1 to 65535)")


def _split_tag(text: str, path: str) -> tuple[str, str]:
    path, colon, tag = path.partition(":")
    if colon and not _TAG.fullmatch(tag):
        _refuse(text, f"tag {tag!r} must be 1 to 128 letters, digits, '_', '.' and '-', not beginning with '.' or '-'")
    if len(path) > _MAX_PATH:
        _refuse(text, f"the repository is longer than {_MAX_PATH} characters")
    for component in path.split("/"):
        if _COMPONENT.fullmatch(component):
            continue
        if not component:
            _refuse(text, "a part of the repository is empty")
        if component != component.lower():
            _refuse(text, f"the repository must be in lower case, {component!r} is not")
        _refuse(text, f"{component!r} must be letters and digits, with '.', '_', '__' or '-' between them")
    return path, tag


def _check_digest(text: str, digest: str) -> None:
    try:
        digests.validate(digest)
    except InvalidArgument as exc:
        _refuse(text, str(exc))


def _refuse(text: str, why: str) -> NoReturn:
    raise InvalidArgument(f"image reference {text!r}: {why}")
