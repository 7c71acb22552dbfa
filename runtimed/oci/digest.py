"""Digests: ``sha256:<hex>``, the identity of a blob (OCI image-spec descriptor.md, "Digests")."""

import hashlib
import re

from runtimed.errors import InvalidArgument

# The registered algorithms. Shorter ones are refused: an image must not choose how weakly it is checked.
_HEX_LENGTH = {"sha256": 64, "sha384": 96, "sha512": 128}
_HEX = re.compile(r"[0-9a-f]+")


def validate(digest: str) -> str:
    """Return *digest* if it is well formed; paths and URLs are made of it, so nothing else may get through.

    Raises:
        InvalidArgument: unknown algorithm, wrong length, or other characters than lower-case hex.
    """
    algorithm, _, encoded = digest.partition(":")
    length = _HEX_LENGTH.get(algorithm)
    if length is None or len(encoded) != length or not _HEX.fullmatch(encoded):
        raise InvalidArgument(f"digest {digest[:160]!r} is not of the form sha256:<64 hex digits>")
    return digest


def split(digest: str) -> tuple[str, str]:
    """Return algorithm and hex of a valid *digest*. Raises InvalidArgument."""
    algorithm, _, encoded = validate(digest).partition(":")
    return algorithm, encoded


def of(data: bytes) -> str:
    """Return the sha256 digest of *data*."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def compute(data: bytes, algorithm: str) -> str:
    """Return the digest of *data* by one of the registered algorithms. Raises InvalidArgument for any other."""
    if algorithm not in _HEX_LENGTH:
        raise InvalidArgument(f"digest algorithm {algorithm[:32]!r} is not one of {', '.join(_HEX_LENGTH)}")
    return f"{algorithm}:{hashlib.new(algorithm, data).hexdigest()}"
