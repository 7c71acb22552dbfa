import datetime

from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class DiskUsageRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class DiskUsageResponse(_message.Message):
    __slots__ = ("images", "blobs", "ingests", "layers", "active", "other", "total")
    IMAGES_FIELD_NUMBER: _ClassVar[int]
    BLOBS_FIELD_NUMBER: _ClassVar[int]
    INGESTS_FIELD_NUMBER: _ClassVar[int]
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    ACTIVE_FIELD_NUMBER: _ClassVar[int]
    OTHER_FIELD_NUMBER: _ClassVar[int]
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    images: _containers.RepeatedCompositeFieldContainer[ImageUsage]
    blobs: UsageGroup
    ingests: UsageGroup
    layers: UsageGroup
    active: UsageGroup
    other: int
    total: int
    def __init__(self, images: _Optional[_Iterable[_Union[ImageUsage, _Mapping]]] = ..., blobs: _Optional[_Union[UsageGroup, _Mapping]] = ..., ingests: _Optional[_Union[UsageGroup, _Mapping]] = ..., layers: _Optional[_Union[UsageGroup, _Mapping]] = ..., active: _Optional[_Union[UsageGroup, _Mapping]] = ..., other: _Optional[int] = ..., total: _Optional[int] = ...) -> None: ...

class UsageGroup(_message.Message):
    __slots__ = ("count", "size", "unused")
    COUNT_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    UNUSED_FIELD_NUMBER: _ClassVar[int]
    count: int
    size: int
    unused: int
    def __init__(self, count: _Optional[int] = ..., size: _Optional[int] = ..., unused: _Optional[int] = ...) -> None: ...

class ImageUsage(_message.Message):
    __slots__ = ("digest", "names", "blobs", "layers", "unique", "shared")
    class Name(_message.Message):
        __slots__ = ("namespace", "name")
        NAMESPACE_FIELD_NUMBER: _ClassVar[int]
        NAME_FIELD_NUMBER: _ClassVar[int]
        namespace: str
        name: str
        def __init__(self, namespace: _Optional[str] = ..., name: _Optional[str] = ...) -> None: ...
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    NAMES_FIELD_NUMBER: _ClassVar[int]
    BLOBS_FIELD_NUMBER: _ClassVar[int]
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    UNIQUE_FIELD_NUMBER: _ClassVar[int]
    SHARED_FIELD_NUMBER: _ClassVar[int]
    digest: str
    names: _containers.RepeatedCompositeFieldContainer[ImageUsage.Name]
    blobs: int
    layers: int
    unique: int
    shared: int
    def __init__(self, digest: _Optional[str] = ..., names: _Optional[_Iterable[_Union[ImageUsage.Name, _Mapping]]] = ..., blobs: _Optional[int] = ..., layers: _Optional[int] = ..., unique: _Optional[int] = ..., shared: _Optional[int] = ...) -> None: ...

class RepairLayersRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class RepairLayersResponse(_message.Message):
    __slots__ = ("layers",)
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    layers: _containers.RepeatedCompositeFieldContainer[RepairedLayer]
    def __init__(self, layers: _Optional[_Iterable[_Union[RepairedLayer, _Mapping]]] = ...) -> None: ...

class RepairedLayer(_message.Message):
    __slots__ = ("snapshotter", "name", "found", "error")
    SNAPSHOTTER_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    FOUND_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    snapshotter: str
    name: str
    found: str
    error: str
    def __init__(self, snapshotter: _Optional[str] = ..., name: _Optional[str] = ..., found: _Optional[str] = ..., error: _Optional[str] = ...) -> None: ...

class CheckLayersRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class CheckLayersResponse(_message.Message):
    __slots__ = ("layers",)
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    layers: _containers.RepeatedCompositeFieldContainer[Layer]
    def __init__(self, layers: _Optional[_Iterable[_Union[Layer, _Mapping]]] = ...) -> None: ...

class Layer(_message.Message):
    __slots__ = ("snapshotter", "namespace", "name", "path", "size", "error")
    SNAPSHOTTER_FIELD_NUMBER: _ClassVar[int]
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    snapshotter: str
    namespace: str
    name: str
    path: str
    size: int
    error: str
    def __init__(self, snapshotter: _Optional[str] = ..., namespace: _Optional[str] = ..., name: _Optional[str] = ..., path: _Optional[str] = ..., size: _Optional[int] = ..., error: _Optional[str] = ...) -> None: ...

class CheckRequest(_message.Message):
    __slots__ = ("repair",)
    REPAIR_FIELD_NUMBER: _ClassVar[int]
    repair: bool
    def __init__(self, repair: _Optional[bool] = ...) -> None: ...

class CheckResponse(_message.Message):
    __slots__ = ("findings", "facts")
    FINDINGS_FIELD_NUMBER: _ClassVar[int]
    FACTS_FIELD_NUMBER: _ClassVar[int]
    findings: _containers.RepeatedCompositeFieldContainer[Finding]
    facts: _containers.RepeatedCompositeFieldContainer[Fact]
    def __init__(self, findings: _Optional[_Iterable[_Union[Finding, _Mapping]]] = ..., facts: _Optional[_Iterable[_Union[Fact, _Mapping]]] = ...) -> None: ...

class Finding(_message.Message):
    __slots__ = ("kind", "what", "detail", "since", "action", "error")
    KIND_FIELD_NUMBER: _ClassVar[int]
    WHAT_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    SINCE_FIELD_NUMBER: _ClassVar[int]
    ACTION_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    kind: str
    what: str
    detail: str
    since: _timestamp_pb2.Timestamp
    action: str
    error: str
    def __init__(self, kind: _Optional[str] = ..., what: _Optional[str] = ..., detail: _Optional[str] = ..., since: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., action: _Optional[str] = ..., error: _Optional[str] = ...) -> None: ...

class Fact(_message.Message):
    __slots__ = ("name", "value", "warning")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    WARNING_FIELD_NUMBER: _ClassVar[int]
    name: str
    value: str
    warning: str
    def __init__(self, name: _Optional[str] = ..., value: _Optional[str] = ..., warning: _Optional[str] = ...) -> None: ...
