"""The closed set of errors that mean something to a client.

Each class is a status code of google.rpc.Code; gRPC and ttrpc carry the same numbers. Raise them where the fact is
known, with the subject (``NotFound(f"container {id!r}")``); the gRPC interceptor and the ttrpc server turn them into
statuses. Anything else that escapes a handler is a bug: logged with its traceback, UNKNOWN on the wire.
"""

import errno
from collections.abc import Iterator
from contextlib import contextmanager


class RuntimedError(Exception):
    """Base of the errors that have a meaning for a client. Raise a subclass.

    Raised as such it is UNKNOWN, which is what clients expect of an error that runc reported.
    """

    code = 2


class InvalidArgument(RuntimedError):
    """The request is wrong whatever the state."""

    code = 3


class DeadlineExceeded(RuntimedError):
    """The time that was given ran out; the operation may or may not have happened."""

    code = 4


class NotFound(RuntimedError):
    """The named thing does not exist in this namespace."""

    code = 5


class AlreadyExists(RuntimedError):
    """The name is taken, or the blob is already committed."""

    code = 6


class PermissionDenied(RuntimedError):
    """The kernel or a registry refused."""

    code = 7


class ResourceExhausted(RuntimedError):
    """No disk, quota, memory or IDs left."""

    code = 8


class FailedPrecondition(RuntimedError):
    """A right request in the wrong state; also a request that gives no namespace."""

    code = 9


class Aborted(RuntimedError):
    """Lost a race; may be tried again."""

    code = 10


class OutOfRange(RuntimedError):
    """An offset past the end."""

    code = 11


class Unimplemented(RuntimedError):
    """Part of the API, but not of this plugin."""

    code = 12


class Internal(RuntimedError):
    """A promise broken by us or by a program we call."""

    code = 13


class Unavailable(RuntimedError):
    """The peer or resource is not there now; trying again may help."""

    code = 14
    retry_after_s: float | None = None  # how long to wait first, when the peer said so


class DataLoss(RuntimedError):
    """Stored bytes do not match their digest."""

    code = 15


class Unauthenticated(RuntimedError):
    """A registry wants (other) credentials."""

    code = 16


# What codes are called in logs, and by gRPC (grpc/doc/statuscodes.md).
STATUSES = (
    *("OK", "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND", "ALREADY_EXISTS"),
    *("PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "ABORTED", "OUT_OF_RANGE", "UNIMPLEMENTED"),
    *("INTERNAL", "UNAVAILABLE", "DATA_LOSS", "UNAUTHENTICATED"),
)

_BY_CODE: dict[int, type[RuntimedError]] = {
    cls.code: cls
    for cls in (
        InvalidArgument,
        DeadlineExceeded,
        NotFound,
        AlreadyExists,
        PermissionDenied,
        ResourceExhausted,
        FailedPrecondition,
        Aborted,
        OutOfRange,
        Unimplemented,
        Internal,
        Unavailable,
        DataLoss,
        Unauthenticated,
    )
}

_BY_ERRNO: dict[int, type[RuntimedError]] = {
    errno.ENOENT: NotFound,
    errno.EEXIST: AlreadyExists,
    errno.EPERM: PermissionDenied,
    errno.EACCES: PermissionDenied,
    errno.EROFS: PermissionDenied,
    errno.ENOSPC: ResourceExhausted,
    errno.EDQUOT: ResourceExhausted,
    errno.ENOMEM: ResourceExhausted,
    errno.EMFILE: ResourceExhausted,
    errno.ENFILE: ResourceExhausted,
    errno.EBUSY: FailedPrecondition,
    errno.EINVAL: InvalidArgument,
    errno.ENAMETOOLONG: InvalidArgument,
    errno.ECONNREFUSED: Unavailable,
    errno.ECONNRESET: Unavailable,
    errno.EPIPE: Unavailable,
    errno.ETIMEDOUT: Unavailable,
}


def from_code(code: int, message: str) -> RuntimedError:
    """Return a peer's status as the class with that code; an unknown code becomes the base class (UNKNOWN)."""
    return _BY_CODE.get(code, RuntimedError)(message)


def from_os_error(exc: OSError, subject: str) -> RuntimedError:
    """Return *exc*, which happened to *subject*, as the class that its errno stands for."""
    return _BY_ERRNO.get(exc.errno or 0, Internal)(f"{subject}: {exc.strerror or exc}")


@contextmanager
def os_errors(subject: str) -> Iterator[None]:
    """Raise an OSError about *subject* as the class that its errno stands for."""
    try:
        yield
    except OSError as exc:
        raise from_os_error(exc, subject) from exc


@contextmanager
def about(subject: str) -> Iterator[None]:
    """Say of an error of ours, which keeps its class, that it is about *subject*."""
    try:
        yield
    except RuntimedError as exc:
        raise type(exc)(f"{subject}: {exc}") from exc
