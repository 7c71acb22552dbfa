"""Whom a connection to a registry trusts, and what it shows of itself."""

import ssl

import msgspec

from runtimed.errors import InvalidArgument, os_errors


class Tls(msgspec.Struct, frozen=True, kw_only=True):
    """What is configured for one host. The files are PEM, and read for each connection: new ones count at once."""

    skip_verify: bool = False
    authorities: tuple[str, ...] = ()  # trusted beside the system's
    identities: tuple[tuple[str, str], ...] = ()  # certificate and key; "" as the key: in the certificate's file

    def elsewhere(self) -> "Tls":
        """Return what holds for a host that the configured one sends us to: it is verified, and not told who we are."""
        return Tls(authorities=self.authorities)


def context(tls: Tls) -> ssl.SSLContext:
    """Return a context as *tls* has it, of the files as they are now.

    Raises:
        NotFound, PermissionDenied: a file that cannot be read.
        InvalidArgument: a file that is not PEM, or a key that is not the certificate's.
    """
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
