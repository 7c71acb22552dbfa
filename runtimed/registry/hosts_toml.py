"""hosts.toml: which hosts stand for a registry, as containerd's docs/hosts.md has it.

A directory has one below it for each registry, named after its host (``registry.example``; with a port
``registry.example_5000_``), and perhaps one for all others, ``_default``. Without a hosts.toml in it, it is one of
docker's: ``*.crt`` are authorities, ``*.cert`` and ``*.key`` are who we are.
"""

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

from yarl import URL

from runtimed.config import dotted, line_of
from runtimed.errors import InvalidArgument, os_errors
from runtimed.registry import hosts
from runtimed.registry.hosts import ALL, Capability, Endpoint
from runtimed.workers.tls import Tls

_MAX_SIZE = 1 << 20  # bytes
_FIELDS = ("capabilities", "ca", "client", "skip_verify", "header", "override_path", "dial_timeout")


def endpoints(directories: Sequence[Path], host: str, default_scheme: str = "") -> list[Endpoint]:
    """Return where the registry *host* is reached, the best first, as the files say now.

    Raises:
        InvalidArgument: what a file says cannot be meant; names file and line.
        PermissionDenied: a file that cannot be read.
    """
    usual = hosts.endpoint(host, default_scheme)
    for directory in directories:
        for name in _names(host):
            if (found := directory / name).is_dir():
                if (file := found / "hosts.toml").exists():
                    return _File(file).endpoints(usual)
                return [_with_certificates(usual, found)]
    return [usual]


def _names(host: str) -> list[str]:
    """Return what the directory of *host* may be called; of no name may a part be ``..``, for no host has a slash."""
    name, colon, port = host.rpartition(":")
    return [*([f"{name}_{port}_"] if colon else []), host, "_default"]


def _with_certificates(usual: Endpoint, directory: Path) -> Endpoint:
    authorities = tuple(map(str, sorted(directory.glob("*.crt"))))
    identities = tuple((str(one), str(one.with_suffix(".key"))) for one in sorted(directory.glob("*.cert")))
    if not authorities and not identities:
        return usual
    base = usual.base
    if not hosts.is_loopback(base):
        base = base.with_scheme("https")
    return replace(usual, base=base, tls=Tls(authorities=authorities, identities=identities), source=str(directory))


class _File:
    """One hosts.toml."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with os_errors(f"registry configuration {path}"), path.open("rb") as file:
            data = file.read(_MAX_SIZE + 1)
        if len(data) > _MAX_SIZE:
            raise InvalidArgument(f"{path}: more than {_MAX_SIZE} bytes")
        try:
            self._text = data.decode()
            self._table = tomllib.loads(self._text)
        except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as exc:
            raise InvalidArgument(f"{path}: not TOML: {exc}") from None

    def endpoints(self, usual: Endpoint) -> list[Endpoint]:
        """Return the hosts in the order of the file, and then the registry itself."""
        table = dict(self._table)
        server, others = table.pop("server", ""), table.pop("host", {})
        if not isinstance(others, Mapping):
            self._refuse(("host",), 'must be tables: [host."https://..."]')
        found = [self._endpoint(url, below, ("host", url)) for url, below in others.items()]
        if not isinstance(server, str):
            self._refuse(("server",), "must be a URL")
        if server:
            return [*found, self._endpoint(server, table, (), at=("server",))]
        own = self._settings(table, ())
        if not self._table.keys() - {"host"}:
            return [*found, usual]
        return [*found, replace(usual, **own, source=str(self._path))]

    def _endpoint(self, url: str, table: Any, key: tuple[str, ...], at: tuple[str, ...] = ()) -> Endpoint:
        at = at or key
        if not isinstance(table, Mapping):
            self._refuse(key, "must be a table")
        settings = self._settings(table, key)
        text = url if "://" in url else f"https://{url}"
        try:
            base = URL(text)
        except ValueError:
            self._refuse(at, f"{url!r} is not a URL")
        if base.scheme not in ("http", "https") or not base.host or base.query_string or base.fragment:
            self._refuse(at, f"{url!r} must be http(s)://HOST[:PORT][/PATH]")
        if base.user is not None or base.password is not None:
            self._refuse(at, "credentials do not belong into a URL; see docs/registries.md for where")
        path = base.path.rstrip("/")
        if not table.get("override_path", False) and not path.endswith("/v2"):
            path += "/v2"
        return Endpoint(base=base.with_path(f"{path}/"), source=f"{self._path}:{self._line(at)}", **settings)

    def _settings(self, table: Mapping[str, Any], key: tuple[str, ...]) -> dict[str, Any]:
        """Return what *table*, at *key*, says about an endpoint beside its URL."""
        for name in table:
            if name not in _FIELDS:
                known = ", ".join(("server", "host", *_FIELDS) if not key else _FIELDS)
                self._refuse((*key, name), f"unknown key; known here are {known}")
        for name in ("skip_verify", "override_path"):
            if type(table.get(name, False)) is not bool:
                self._refuse((*key, name), "must be true or false")
        tls = Tls(
            skip_verify=table.get("skip_verify", False),
            authorities=tuple(self._file(path, (*key, "ca")) for path in self._strings(table, key, "ca")),
            identities=self._identities(table.get("client", []), (*key, "client")),
        )
        return {"capabilities": self._capabilities(table, key), "headers": self._headers(table, key), "tls": tls}

    def _capabilities(self, table: Mapping[str, Any], key: tuple[str, ...]) -> frozenset[Capability]:
        named = self._strings(table, key, "capabilities")
        for one in named:
            if one not in ALL:
                self._refuse((*key, "capabilities"), f"{one!r} is not one of {', '.join(Capability)}")
        return frozenset(map(Capability, named)) if "capabilities" in table else ALL

    def _headers(self, table: Mapping[str, Any], key: tuple[str, ...]) -> dict[str, str]:
        given = table.get("header", {})
        if not isinstance(given, Mapping):
            self._refuse((*key, "header"), "must be a table")
        headers = {}
        for name in given:
            value = ", ".join(self._strings(given, (*key, "header"), name))
            if not name.isascii() or not name.replace("-", "").replace("_", "").isalnum() or not value.isprintable():
                self._refuse((*key, "header", name), "not a header's name and value")
            headers[name] = value
        return headers

    def _identities(self, given: Any, key: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
        """Return certificates and keys: "both.pem", ["both.pem", ...] or [["certificate.pem", "key.pem"], ...]."""
        pairs = [given] if isinstance(given, str) else given
        if not isinstance(pairs, list):
            self._refuse(key, "must be file names, or pairs of them")
        found = []
        for pair in pairs:
            match pair:
                case str(both) | [str(both)] | [str(both), ""]:
                    found.append((self._file(both, key), ""))
                case [str(certificate), str(secret)]:
                    found.append((self._file(certificate, key), self._file(secret, key)))
                case _:
                    self._refuse(key, "must be file names, or pairs of them")
        return tuple(found)

    def _strings(self, table: Mapping[str, Any], key: tuple[str, ...], name: str) -> list[str]:
        given = table.get(name, [])
        values = [given] if isinstance(given, str) else given
        if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
            self._refuse((*key, name), "must be a string or a list of strings")
        return values

    def _file(self, name: str, key: tuple[str, ...]) -> str:
        path = self._path.parent / name  # an absolute one stays what it is
        if not path.is_file():
            self._refuse(key, f"{str(path)!r}: no such file")
        return str(path)

    def _line(self, key: tuple[str, ...]) -> int:
        return line_of(self._text, key)

    def _refuse(self, key: tuple[str, ...], why: str) -> NoReturn:
        raise InvalidArgument(f"{self._path}:{self._line(key)}: {dotted(key)}: {why}")
