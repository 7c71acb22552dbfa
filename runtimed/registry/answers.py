"""What a registry's answers say, and what its refusals mean."""

from collections.abc import Mapping
from dataclasses import dataclass

import msgspec
from yarl import URL

from runtimed.errors import NotFound, PermissionDenied, RuntimedError, Unauthenticated, Unavailable


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer: headers (case does not matter) and body, and the host that gave it."""

    headers: Mapping[str, str]
    body: bytes
    host: str


@dataclass(frozen=True, slots=True)
class Sent:
    """How a registry answered what was sent to it: the status and headers (case does not matter)."""

    status: int
    headers: Mapping[str, str]
    url: URL  # that answered


def error_for(status: int, subject: str, said: str = "") -> RuntimedError:
    """Return the error that HTTP *status* of a registry stands for; *said* is what its body adds."""
    detail = f" (it says {said!r})" if said else ""
    match status:
        case 401:
            return Unauthenticated(
                f"{subject}: not authorized{detail}; give credentials for this registry, and check the name:"
                " some registries answer so for what does not exist"
            )
        case 403:
            return PermissionDenied(f"{subject}: access denied{detail}; the credentials do not reach this repository")
        case 404:
            return NotFound(f"{subject}: not found{detail}; check name and tag")
        case 429:
            return Unavailable(f"{subject}: too many requests{detail}; wait, or give credentials")
        case _ if status >= 500:
            return Unavailable(f"{subject}: the registry failed with {status}{detail}; try again later")
    return Unavailable(f"{subject}: unexpected answer {status}{detail}")


class _RegistryError(msgspec.Struct):
    code: str = ""
    message: str = ""


class _RegistryErrors(msgspec.Struct):
    errors: list[_RegistryError] = []


def first_error(body: bytes) -> str:
    """Return what a registry's error body says first (distribution-spec, "Error Codes"), cut short; "" if nothing."""
    try:
        errors = msgspec.json.decode(body, type=_RegistryErrors).errors
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return ""
    return (errors[0].message or errors[0].code)[:200] if errors else ""
