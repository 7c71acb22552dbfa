"""What a valid identifier, namespace and label is.

The limits are containerd's; clients rely on both what is taken and what is
refused, and file names are made of these strings, so nothing that could be a path gets through.
"""

import re
from collections.abc import Mapping

from runtimed.errors import InvalidArgument

MAX_LENGTH = 76
MAX_LABEL_LENGTH = 4096  # key and value together
MAX_NAME_LENGTH = 4096

# Possessive-free but linear: each separator must be followed by an alphanumeric, so there is one way to match.
_IDENTIFIER = re.compile(r"[A-Za-z0-9]+(?:[._-][A-Za-z0-9]+)*")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


def validate(value: str, what: str = "identifier") -> str:
    """Return *value* if it can name a container, namespace, lease, exec or sandbox.

    Raises:
        InvalidArgument: empty, longer than 76 characters, or other characters than letters, digits and single
            inner ``.``, ``_`` and ``-``.
    """
    if not value:
        raise InvalidArgument(f"{what} must not be empty")
    if len(value) > MAX_LENGTH:
        raise InvalidArgument(f"{what} {value[:MAX_LENGTH]!r}... is longer than {MAX_LENGTH} characters")
    if not _IDENTIFIER.fullmatch(value):
        raise InvalidArgument(
            f"{what} {value!r} must consist of letters and digits, with single '.', '_' or '-' between them"
        )
    return value


def validate_labels(labels: Mapping[str, str]) -> None:
    """Check every label. Raises InvalidArgument if a key and its value together exceed 4096 characters."""
    for key, value in labels.items():
        if len(key) + len(value) > MAX_LABEL_LENGTH:
            raise InvalidArgument(f"label {key[:64]!r}: key and value exceed {MAX_LABEL_LENGTH} characters together")


def validate_name(value: str, what: str) -> str:
    """Return *value* if it can name an image, a lease, an ingest or a snapshot: names that clients choose freely.

    containerd takes any text here, and real names have slashes, colons and blanks in them. Such a name must never
    become part of a path.

    Raises:
        InvalidArgument: empty, longer than 4096 characters, or with control characters (they would reach terminals).
    """
    if not value:
        raise InvalidArgument(f"{what} must not be empty")
    if len(value) > MAX_NAME_LENGTH:
        raise InvalidArgument(f"{what} {value[:64]!r}... is longer than {MAX_NAME_LENGTH} characters")
    if _CONTROL.search(value):
        raise InvalidArgument(f"{what} {value[:160]!r} has control characters")
    return value
