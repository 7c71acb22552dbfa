"""Field masks: which fields of a record an update means (google.protobuf.FieldMask).

The paths go down to the stores, which know what may be changed: ``labels`` replaces all labels, ``labels.<key>`` sets
one (keys have dots and slashes of their own, so everything after the first dot is the key), no path at all means
every field that can change. An unknown or immutable field is InvalidArgument.
"""

from google.protobuf.field_mask_pb2 import FieldMask

from runtimed.errors import InvalidArgument

_MOST_PATHS = 10_000


def paths_of(mask: FieldMask) -> tuple[str, ...]:
    """Return the paths of *mask*, each once and in order; () if there is no mask.

    Raises:
        InvalidArgument: an empty path, or more than 10,000.
    """
    if len(mask.paths) > _MOST_PATHS:
        raise InvalidArgument(f"update mask has {len(mask.paths)} paths, {_MOST_PATHS} are allowed")
    paths = tuple(dict.fromkeys(mask.paths))
    if "" in paths:
        raise InvalidArgument("update mask has an empty path")
    return paths
