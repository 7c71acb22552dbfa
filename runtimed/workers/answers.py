"""What the answer to a request for (a part of) a blob says, beside its bytes."""

import http.client
import re
import time
from email.utils import parsedate_to_datetime

from runtimed.errors import (
    FailedPrecondition,
    NotFound,
    PermissionDenied,
    RuntimedError,
    Unauthenticated,
    Unavailable,
)

_CONTENT_RANGE = re.compile(r"bytes ([0-9]{1,19})-([0-9]{1,19})/([0-9]{1,19}|\*)")

_BY_STATUS: dict[int, type[RuntimedError]] = {
    401: Unauthenticated,
    403: PermissionDenied,
    404: NotFound,
    408: Unavailable,
    410: NotFound,
    429: Unavailable,
}


def check_range(host: str, response: http.client.HTTPResponse, begin: int, end: int, size: int) -> None:
    """Check that *response* is the bytes from *begin* to before *end* of *size*. Raises FailedPrecondition."""
    value = response.getheader("Content-Range", "")
    match = _CONTENT_RANGE.fullmatch(value)
    if match is None or int(match[1]) != begin or int(match[2]) != end - 1 or match[3] not in ("*", str(size)):
        raise FailedPrecondition(
            f"{host} answered with range {value[:64]!r}, not the one from {begin} to {end} of {size} bytes"
        )


def refusal(host: str, response: http.client.HTTPResponse) -> RuntimedError:
    """Return the error that an answer without the bytes stands for."""
    status = response.status
    message = f"{host} answered {status} {response.reason[:64]!r}"
    if status >= 500:
        message = f"{message}; try again later"
    kind = Unavailable if status >= 500 else _BY_STATUS.get(status, FailedPrecondition)
    error = kind(message)
    if isinstance(error, Unavailable):
        error.retry_after_s = retry_after_s(response.getheader("Retry-After", ""))
    return error


def retry_after_s(header: str) -> float | None:
    """Return the seconds that a Retry-After header asks for (RFC 9110 10.2.3); None if it is absent or nonsense."""
    header = header[:64].strip()
    if header.isascii() and header.isdigit():
        return float(header[:9])
    try:
        return max(0.0, parsedate_to_datetime(header).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return None
