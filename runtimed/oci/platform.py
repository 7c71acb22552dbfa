"""Platforms: which of an image's manifests a machine runs (OCI image-spec image-index.md, "platform").

Names, normal forms and the order of preference are those of containerd/platforms, so that clients and daemon choose
alike.
"""

import os
import re
from collections.abc import Iterable, Sequence

import msgspec

from runtimed.errors import InvalidArgument, NotFound
from runtimed.oci.descriptor import Descriptor, Platform

_PART = re.compile(r"[A-Za-z0-9_.-]{1,64}")

# fmt: off
_SYSTEMS = frozenset({
    "aix", "android", "darwin", "dragonfly", "freebsd", "illumos", "ios", "js", "linux", "netbsd", "openbsd", "plan9",
    "solaris", "wasip1", "windows",
})
_ARCHITECTURES = frozenset({
    "386", "amd64", "arm", "arm64", "loong64", "mips", "mips64", "mips64le", "mipsle", "ppc64", "ppc64le", "riscv64",
    "s390x", "wasm",
})
# fmt: on
# What uname(2) and people say -> architecture and variant.
_ALIASES = {
    "i386": ("386", ""),
    "i686": ("386", ""),
    "x86_64": ("amd64", ""),
    "x86-64": ("amd64", ""),
    "aarch64": ("arm64", ""),
    "armhf": ("arm", "v7"),
    "armel": ("arm", "v6"),
    "armv7l": ("arm", "v7"),
    "armv6l": ("arm", "v6"),
    "armv8l": ("arm", "v8"),
    "loongarch64": ("loong64", ""),
}


def parse(text: str) -> Platform:
    """Return the platform that *text* names: ``linux/arm64/v8``, ``linux/amd64``, or one of ``linux``, ``arm64`` alone.

    Raises:
        InvalidArgument: more than three parts, odd characters, or a single one that is neither system nor architecture.
    """
    parts = text.split("/")
    if not 1 <= len(parts) <= 3 or not all(_PART.fullmatch(part) for part in parts):
        raise InvalidArgument(f"platform {text[:200]!r} is not of the form os/architecture[/variant], as linux/amd64")
    if len(parts) > 1:
        return normalize(Platform(os=parts[0], architecture=parts[1], variant=parts[2] if len(parts) == 3 else ""))
    name = parts[0].lower()
    if name in _SYSTEMS:
        return normalize(Platform(os=name, architecture=host().architecture, variant=host().variant))
    if name in _ARCHITECTURES or name in _ALIASES:
        return normalize(Platform(os=host().os, architecture=name))
    raise InvalidArgument(f"platform {text!r} is neither an operating system nor an architecture; write linux/amd64")


def format(platform: Platform) -> str:
    """Return *platform* as people write it."""
    return "/".join(part for part in (platform.os, platform.architecture, platform.variant) if part) or "unknown"


def normalize(platform: Platform) -> Platform:
    """Return *platform* with one name for each thing: ``x86_64`` is ``amd64``, ``arm64/v8`` is ``arm64``."""
    system = platform.os.lower()
    architecture, variant = platform.architecture.lower(), platform.variant.lower()
    if architecture in _ALIASES:
        architecture, alias_variant = _ALIASES[architecture]
        variant = variant or alias_variant
    if architecture in {"arm", "arm64", "amd64"} and variant.isdigit():
        variant = f"v{variant}"
    if (architecture, variant) in {("arm64", "v8"), ("amd64", "v1")}:
        variant = ""
    if architecture == "arm" and not variant:
        variant = "v7"
    return msgspec.structs.replace(
        platform, os="darwin" if system == "macos" else system, architecture=architecture, variant=variant
    )


def host() -> Platform:
    """Return the platform of the machine we run on."""
    return normalize(Platform(os="linux", architecture=os.uname().machine))


def matches(platform: Platform, wanted: Platform) -> bool:
    """Say whether a machine of platform *wanted* runs images for *platform*."""
    return _rank(platform, wanted) is not None


def matching(descriptors: Iterable[Descriptor], wanted: Platform) -> list[Descriptor]:
    """Return the entries of an index that *wanted* runs, the best first.

    Attestations are left out. An entry that does not say its platform comes last: it may fit.
    """
    ranked = []
    for position, descriptor in enumerate(descriptors):
        if is_attestation(descriptor):
            continue
        rank = _rank(descriptor.platform, wanted) if descriptor.platform else _UNSAID
        if rank is not None:
            ranked.append((rank, position, descriptor))
    return [descriptor for _, _, descriptor in sorted(ranked, key=lambda entry: entry[:2])]


def select(descriptors: Sequence[Descriptor], wanted: Platform, subject: str) -> Descriptor:
    """Return the entry of an index that fits *wanted* best; *subject* names the image in the error.

    Raises:
        NotFound: none fits; the message lists the platforms that there are.
    """
    found = matching(descriptors, wanted)
    if not found:
        there = sorted({format(d.platform) for d in descriptors if d.platform and not is_attestation(d)})
        shown = ", ".join(there[:20]) + (", ..." if len(there) > 20 else "")
        raise NotFound(f"{subject} has nothing for {format(wanted)}; it has: {shown or 'no platforms at all'}")
    return found[0]


def is_attestation(descriptor: Descriptor) -> bool:
    """Say whether an index entry describes another one (BuildKit's provenance) and can never be run."""
    if descriptor.annotations.get("vnd.docker.reference.type") == "attestation-manifest":
        return True
    platform = descriptor.platform
    return platform is not None and platform.os == "unknown" and platform.architecture == "unknown"


_UNSAID = 1000  # after every platform that is said


def _rank(platform: Platform, wanted: Platform) -> int | None:
    """Return the place of *platform* among those that *wanted* runs, 0 the best; None if it does not run it."""
    candidate = normalize(platform)
    if not set(candidate.os_features) <= set(wanted.os_features):
        return None
    key = (candidate.os, candidate.architecture, candidate.variant)
    order = _runnable(normalize(wanted))
    return order.index(key) if key in order else None


def _runnable(platform: Platform) -> list[tuple[str, str, str]]:
    """List what *platform* runs, best first: itself, its older variants, and its 32-bit ancestor."""
    system, architecture, variant = platform.os, platform.architecture, platform.variant
    order = [(system, architecture, variant)]
    level = int(variant[1:]) if re.fullmatch(r"v\d", variant) else 0
    if architecture == "amd64":
        order += [(system, "amd64", f"v{older}" if older > 1 else "") for older in range(level - 1, 0, -1)]
        order += [(system, "386", "")]
    elif architecture == "arm":
        order += [(system, "arm", f"v{older}") for older in range(level - 1, 4, -1)]
    elif architecture == "arm64":
        order += [(system, "arm64", f"v{older}" if older > 8 else "") for older in range(level - 1, 7, -1)]
        order += [(system, "arm", f"v{older}") for older in range(8, 4, -1)]
    return order
