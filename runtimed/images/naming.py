"""The names that images of an archive get: what their index entries are annotated with, by a client's rules."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from runtimed.images.docker_archive import IMAGE_NAME, REF_NAME
from runtimed.oci.descriptor import Descriptor


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """A prefix for names, as containerd.types.transfer.ImageReference says it.

    A tag alone gets the prefix before it. A full name is taken as it is: any if the prefix may be overwritten, else one
    that begins with the prefix. *add_digest* names the image ``prefix@digest`` as well; *only_if_unnamed*: instead,
    where there is no other name.
    """

    prefix: str
    is_overwritten: bool = False
    add_digest: bool = False
    only_if_unnamed: bool = False


def names(entry: Descriptor, rules: Sequence[Rule]) -> list[str]:
    """Return the names of the index *entry*, each once."""
    found: list[str] = []
    for rule in rules:
        name = _name(entry.annotations, rule)
        if name:
            found.append(name)
        if rule.add_digest and not (name and rule.only_if_unnamed):
            found.append(f"{rule.prefix}@{entry.digest}")
    return list(dict.fromkeys(found))


def _name(annotations: Mapping[str, str], rule: Rule) -> str:
    if full := annotations.get(IMAGE_NAME):
        # This annotation is for full names: a part of one is not completed.
        return full if _translated(full, rule) == full else ""
    name = annotations.get(REF_NAME, "")
    return _translated(name, rule) if name else ""


def _translated(name: str, rule: Rule) -> str:
    if not any(mark in name for mark in "/:@"):
        return f"{rule.prefix}:{name}" if rule.prefix else ""
    return name if rule.is_overwritten or _begins_with(name, rule.prefix) else ""


def _begins_with(name: str, prefix: str) -> bool:
    """Say whether *prefix* is the whole first part of *name*: ``app`` is of ``app:1``, but not of ``apple:1``."""
    return bool(prefix) and name.startswith(prefix) and name[len(prefix) : len(prefix) + 1] in ("", "/", ":", "@")
