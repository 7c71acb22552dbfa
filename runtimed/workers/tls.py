"""Whom a connection to a registry trusts, and what it shows of itself."""

import ssl
from pathlib import Path

import msgspec

from runtimed.errors import InvalidArgument, os_errors


class Tls(msgspec.Struct, frozen=True, kw_only=True):
    """What is configured for one host. The files are PEM; for each connection those count that are there then."""

    skip_verify: bool = False
    authorities: tuple[str, ...] = ()  # trusted beside the system's
    identities: tuple[tuple[str, str], ...] = ()  # certificate and key; "" as the key: in the certificate's file

    def elsewhere(self) -> "Tls":
        """Return what holds for a host that the configured one sends us to: it is verified, and not told who we are."""
        return Tls(authorities=self.authorities)


_MOST = 32
# By what it is made of: to read the system's authorities takes 20 ms, which is as long as a small layer.
_contexts: dict[tuple[Tls, tuple[object, ...]], ssl.SSLContext] = {}


def context(tls: Tls) -> ssl.SSLContext:
    """Return a context as *tls* has it, of the files as they are now. Not to be changed: others may have the same.

    Raises:
        NotFound, PermissionDenied: a file that cannot be read.
        InvalidArgument: a file that is not PEM, or a key that is not the certificate's.
    """
    usual = ssl.get_default_verify_paths()
    files = [usual.cafile, usual.capath, *tls.authorities, *(path for pair in tls.identities for path in pair)]
    key = tls, tuple(_identity(path) for path in files if path)
    if key not in _contexts:
        if len(_contexts) >= _MOST:
            _contexts.clear()
        _contexts[key] = _made(tls)
    return _contexts[key]


def _identity(path: str) -> tuple[object, ...]:
    """Return what changes when the file, or the directory's list of files, does."""
    try:
        status = Path(path).stat()
    except OSError:
        return (path,)
    return path, status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _made(tls: Tls) -> ssl.SSLContext:
    made = ssl.create_default_context()
    if tls.skip_verify:
        made.check_hostname = False
        made.verify_mode = ssl.CERT_NONE
    for path in tls.authorities:
        with os_errors(f"CA file {path}"):
            try:
                made.load_verify_locations(cafile=path)
            except ssl.SSLError as exc:
                raise InvalidArgument(f"CA file {path}: holds no certificate in PEM: {exc.reason or exc}") from None
    for certificate, key in tls.identities:
        with os_errors(f"client certificate {certificate}"):
            try:
                made.load_cert_chain(certificate, key or None, password=_no_password)
            except ssl.SSLError as exc:
                raise InvalidArgument(
                    f"client certificate {certificate}: no certificate and key of it in PEM: {exc.reason or exc}"
                ) from None
    return made


def _no_password() -> str:
    """Answer OpenSSL, which would ask at the terminal for an encrypted key."""
    return ""
