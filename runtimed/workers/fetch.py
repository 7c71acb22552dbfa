"""A blob from a registry into a file: GET with resume (OCI distribution-spec, "Pulling blobs"; RFC 9110, "Range")."""

import hashlib
import http.client
import ipaddress
import os
import re
import socket
import ssl
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from urllib.parse import SplitResult, urljoin, urlsplit

from runtimed.errors import (
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    OutOfRange,
    PermissionDenied,
    RuntimedError,
    Unauthenticated,
    Unavailable,
    os_errors,
)
from runtimed.oci import digest as digests
from runtimed.workers import jobs

_CHUNK = 1 << 18
_READ_TIMEOUT_S = 30.0
_MAX_REDIRECTS = 5
_PROGRESS_INTERVAL_S = 0.1
# Below this rate over that time a registry counts as gone: a byte now and then would hold a worker forever.
_MIN_RATE = 1024  # bytes a second
_RATE_WINDOW_S = 60.0

_REDIRECTS = (301, 302, 303, 307, 308)
_CONTENT_RANGE = re.compile(r"bytes ([0-9]{1,19})-([0-9]{1,19})/([0-9]{1,19}|\*)")
_ORIGIN_HEADERS = frozenset(("authorization", "cookie", "proxy-authorization"))

_BY_STATUS: dict[int, type[RuntimedError]] = {
    401: Unauthenticated,
    403: PermissionDenied,
    404: NotFound,
    408: Unavailable,
    410: NotFound,
    429: Unavailable,
}


def fetch(job: jobs.Fetch, progress: Callable[[int], None]) -> jobs.Done:
    """Do *job*; see :meth:`runtimed.workers.pool.Pool.fetch` for what it promises."""
    with _Target(job, progress) as target:
        if target.offset < job.size:
            _download(job, target)
        target.finish()
    return jobs.Done(digest=job.digest, size=job.size)


def _download(job: jobs.Fetch, target: "_Target") -> None:
    with _response(job.url, job.headers, target.offset) as (host, response):
        if response.status == 416 and target.offset:  # what is there is not what the registry has
            target.restart()
        else:
            _receive(host, response, target)
            return
    with _response(job.url, job.headers, 0) as (host, response):
        _receive(host, response, target)


def _receive(host: str, response: http.client.HTTPResponse, target: "_Target") -> None:
    if response.status == 200:
        target.restart()  # a registry without ranges begins at the beginning
    elif response.status == 206:
        _check_range(host, response.getheader("Content-Range", ""), target)
    else:
        raise _refusal(host, response)
    missing = target.job.size - target.offset
    if response.length is not None and response.length != missing:
        raise FailedPrecondition(
            f"{host} has {response.length} more bytes for {target.job.digest}, not the {missing} of its descriptor"
        )
    window_end, window_start_offset = time.monotonic() + _RATE_WINDOW_S, target.offset
    with _connection_errors(host):
        # What has arrived, without waiting for more; and a byte more than is wanted, to notice a body that goes on.
        while data := response.read1(min(_CHUNK, target.job.size - target.offset + 1)):
            target.write(memoryview(data))
            if (now := time.monotonic()) > window_end:
                if target.offset - window_start_offset < _MIN_RATE * _RATE_WINDOW_S:
                    raise Unavailable(f"{host} sends less than {_MIN_RATE} bytes a second; try again later")
                window_end, window_start_offset = now + _RATE_WINDOW_S, target.offset
    if target.offset < target.job.size:
        raise Unavailable(f"{host} closed the connection after {target.offset} of {target.job.size} bytes; try again")


def _check_range(host: str, value: str, target: "_Target") -> None:
    match = _CONTENT_RANGE.fullmatch(value)
    size = target.job.size
    if match is None or int(match[1]) != target.offset or int(match[2]) != size - 1 or match[3] not in ("*", str(size)):
        raise FailedPrecondition(
            f"{host} answered with range {value[:64]!r}, not the one from {target.offset} to the end of {size} bytes"
        )


def _refusal(host: str, response: http.client.HTTPResponse) -> RuntimedError:
    status = response.status
    message = f"{host} answered {status} {response.reason[:64]!r}"
    if status >= 500:
        return Unavailable(f"{message}; try again later")
    if status == 429 and (wait := response.getheader("Retry-After", "")):
        message = f"{message}, retry after {wait[:32]!r}"
    return _BY_STATUS.get(status, FailedPrecondition)(message)


@contextmanager
def _response(url: str, headers: Mapping[str, str], offset: int) -> Iterator[tuple[str, http.client.HTTPResponse]]:
    """Hold the answer to a GET of *url* from *offset* on, after redirects, with the host that gave it.

    Raises:
        InvalidArgument, PermissionDenied: a URL or redirect that is not followed.
        Unavailable: no connection, or too many redirects.
    """
    headers = dict(headers)
    if offset:
        headers["Range"] = f"bytes={offset}-"
    is_local = None
    for _ in range(_MAX_REDIRECTS + 1):
        parts = _parse(url)
        host = parts.netloc
        connection = _connect(parts)
        try:
            with _connection_errors(host):
                connection.connect()
                is_local = _check_peer(host, connection.sock, is_local)
                target = parts._replace(scheme="", netloc="", fragment="").geturl() or "/"
                connection.request("GET", target, headers={"User-Agent": "runtimed", **headers})
                response = connection.getresponse()
            with response:
                location = response.getheader("Location")
                if response.status not in _REDIRECTS or location is None:
                    yield host, response
                    return
        finally:
            connection.close()
        url = _redirected(url, location)
        if _origin(urlsplit(url)) != _origin(parts):
            headers = {name: value for name, value in headers.items() if name.lower() not in _ORIGIN_HEADERS}
    raise Unavailable(f"{host} redirects for the {_MAX_REDIRECTS + 1}th time; that is not followed")


def _parse(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        raise InvalidArgument("the URL of a blob does not parse") from None
    if parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc:
        raise InvalidArgument(f"the URL of a blob is not a plain http or https one: {parts.scheme[:16]!r}")
    return parts


def _connect(parts: SplitResult) -> http.client.HTTPConnection:
    assert parts.hostname is not None
    if parts.scheme == "https":
        context = ssl.create_default_context()
        return http.client.HTTPSConnection(parts.hostname, parts.port, timeout=_READ_TIMEOUT_S, context=context)
    return http.client.HTTPConnection(parts.hostname, parts.port, timeout=_READ_TIMEOUT_S)


def _check_peer(host: str, connected: socket.socket, is_local: bool | None) -> bool:
    """Return whether *connected* goes to this machine or its link, to which nobody else may redirect."""
    address = ipaddress.ip_address(connected.getpeername()[0].partition("%")[0])
    mapped = getattr(address, "ipv4_mapped", None) or address
    is_local_now = mapped.is_loopback or mapped.is_link_local or mapped.is_unspecified
    if is_local_now and is_local is False:
        raise PermissionDenied(f"a registry redirects to {host}, which is this machine or its link; not followed")
    return bool(is_local_now)


def _redirected(url: str, location: str) -> str:
    target = urljoin(url, location)
    if urlsplit(url).scheme == "https" and urlsplit(target).scheme != "https":
        raise PermissionDenied(f"{urlsplit(url).netloc} redirects from https to something else; not followed")
    return target


def _origin(parts: SplitResult) -> tuple[str, str | None, int | None]:
    return parts.scheme, parts.hostname, parts.port


@contextmanager
def _connection_errors(host: str) -> Iterator[None]:
    """Raise what goes wrong on the way to *host* as Unavailable, but a certificate that is not trusted as it is."""
    try:
        yield
    except ssl.SSLCertVerificationError as exc:
        raise PermissionDenied(f"{host}: certificate not trusted: {exc.verify_message}") from exc
    except ValueError:  # from http.client, about a name or a header that may hold a token: not to be shown
        raise InvalidArgument(f"{host[:128]!r}: not a host name, or a header for it has control characters") from None
    except (OSError, http.client.HTTPException) as exc:
        raise Unavailable(f"{host}: {str(exc)[:128] or type(exc).__name__}; try again later") from exc


class _Target:
    """The file that grows, and the hash of all that is in it."""

    def __init__(self, job: jobs.Fetch, progress: Callable[[int], None]) -> None:
        self.job = job
        self.offset = 0
        self._algorithm = digests.split(job.digest)[0]
        self._hash = hashlib.new(self._algorithm)
        self._progress = progress
        self._next_report = 0.0
        if not 0 <= job.offset <= job.size:
            raise OutOfRange(f"offset {job.offset} in a blob of {job.size} bytes")
        with os_errors(f"ingest of {job.digest}"):
            self._fd = os.open(job.path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)

    def __enter__(self) -> "_Target":
        try:
            self._resume()
        except BaseException:
            os.close(self._fd)
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        os.close(self._fd)

    def restart(self) -> None:
        """Forget everything."""
        with os_errors(f"ingest of {self.job.digest}"):
            os.ftruncate(self._fd, 0)
        self.offset = 0
        self._hash = hashlib.new(self._algorithm)

    def write(self, data: memoryview) -> None:
        """Append *data*.

        Raises:
            FailedPrecondition: that is more than the blob has.
            ResourceExhausted: no space left.
        """
        if self.offset + len(data) > self.job.size:
            raise FailedPrecondition(f"the registry sends more than the {self.job.size} bytes of {self.job.digest}")
        self._hash.update(data)
        with os_errors(f"ingest of {self.job.digest}"):
            while data:
                written = os.pwrite(self._fd, data, self.offset)
                self.offset += written
                data = data[written:]
        if (now := time.monotonic()) >= self._next_report:
            self._next_report = now + _PROGRESS_INTERVAL_S
            self._progress(self.offset)

    def finish(self) -> None:
        """Check the digest and bring the bytes to disk. Raises FailedPrecondition; the file is empty then."""
        found = f"{self._algorithm}:{self._hash.hexdigest()}"
        if found != self.job.digest:
            self.restart()  # nothing to resume from: some of it is wrong
            raise FailedPrecondition(f"the registry's content has digest {found}, not {self.job.digest}; pull again")
        with os_errors(f"ingest of {self.job.digest}"):
            os.fdatasync(self._fd)

    def _resume(self) -> None:
        with os_errors(f"ingest of {self.job.digest}"):
            if os.fstat(self._fd).st_size < self.job.offset:
                raise OutOfRange(f"offset {self.job.offset} is past the end of the ingest of {self.job.digest}")
            os.ftruncate(self._fd, self.job.offset)
            while self.offset < self.job.offset:
                data = os.pread(self._fd, min(_CHUNK, self.job.offset - self.offset), self.offset)
                if not data:
                    raise OutOfRange(f"the ingest of {self.job.digest} shrinks while it is read")
                self._hash.update(data)
                self.offset += len(data)
