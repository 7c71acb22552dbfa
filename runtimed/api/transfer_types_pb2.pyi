import datetime

from google.protobuf import timestamp_pb2 as _timestamp_pb2
from runtimed.api import types_pb2 as _types_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class HTTPDebug(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    DISABLED: _ClassVar[HTTPDebug]
    DEBUG: _ClassVar[HTTPDebug]
    TRACE: _ClassVar[HTTPDebug]
    BOTH: _ClassVar[HTTPDebug]

class AuthType(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    NONE: _ClassVar[AuthType]
    CREDENTIALS: _ClassVar[AuthType]
    REFRESH: _ClassVar[AuthType]
    HEADER: _ClassVar[AuthType]
DISABLED: HTTPDebug
DEBUG: HTTPDebug
TRACE: HTTPDebug
BOTH: HTTPDebug
NONE: AuthType
CREDENTIALS: AuthType
REFRESH: AuthType
HEADER: AuthType

class ContainerPath(_message.Message):
    __slots__ = ("container_id", "path", "no_walk", "preserve_ownership")
    CONTAINER_ID_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    NO_WALK_FIELD_NUMBER: _ClassVar[int]
    PRESERVE_OWNERSHIP_FIELD_NUMBER: _ClassVar[int]
    container_id: str
    path: str
    no_walk: bool
    preserve_ownership: bool
    def __init__(self, container_id: _Optional[str] = ..., path: _Optional[str] = ..., no_walk: _Optional[bool] = ..., preserve_ownership: _Optional[bool] = ...) -> None: ...

class ImageStore(_message.Message):
    __slots__ = ("name", "labels", "platforms", "all_metadata", "manifest_limit", "extra_references", "unpacks")
    class LabelsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    NAME_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    PLATFORMS_FIELD_NUMBER: _ClassVar[int]
    ALL_METADATA_FIELD_NUMBER: _ClassVar[int]
    MANIFEST_LIMIT_FIELD_NUMBER: _ClassVar[int]
    EXTRA_REFERENCES_FIELD_NUMBER: _ClassVar[int]
    UNPACKS_FIELD_NUMBER: _ClassVar[int]
    name: str
    labels: _containers.ScalarMap[str, str]
    platforms: _containers.RepeatedCompositeFieldContainer[_types_pb2.Platform]
    all_metadata: bool
    manifest_limit: int
    extra_references: _containers.RepeatedCompositeFieldContainer[ImageReference]
    unpacks: _containers.RepeatedCompositeFieldContainer[UnpackConfiguration]
    def __init__(self, name: _Optional[str] = ..., labels: _Optional[_Mapping[str, str]] = ..., platforms: _Optional[_Iterable[_Union[_types_pb2.Platform, _Mapping]]] = ..., all_metadata: _Optional[bool] = ..., manifest_limit: _Optional[int] = ..., extra_references: _Optional[_Iterable[_Union[ImageReference, _Mapping]]] = ..., unpacks: _Optional[_Iterable[_Union[UnpackConfiguration, _Mapping]]] = ...) -> None: ...

class UnpackConfiguration(_message.Message):
    __slots__ = ("platform", "snapshotter")
    PLATFORM_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOTTER_FIELD_NUMBER: _ClassVar[int]
    platform: _types_pb2.Platform
    snapshotter: str
    def __init__(self, platform: _Optional[_Union[_types_pb2.Platform, _Mapping]] = ..., snapshotter: _Optional[str] = ...) -> None: ...

class ImageReference(_message.Message):
    __slots__ = ("name", "is_prefix", "allow_overwrite", "add_digest", "skip_named_digest")
    NAME_FIELD_NUMBER: _ClassVar[int]
    IS_PREFIX_FIELD_NUMBER: _ClassVar[int]
    ALLOW_OVERWRITE_FIELD_NUMBER: _ClassVar[int]
    ADD_DIGEST_FIELD_NUMBER: _ClassVar[int]
    SKIP_NAMED_DIGEST_FIELD_NUMBER: _ClassVar[int]
    name: str
    is_prefix: bool
    allow_overwrite: bool
    add_digest: bool
    skip_named_digest: bool
    def __init__(self, name: _Optional[str] = ..., is_prefix: _Optional[bool] = ..., allow_overwrite: _Optional[bool] = ..., add_digest: _Optional[bool] = ..., skip_named_digest: _Optional[bool] = ...) -> None: ...

class ImageImportStream(_message.Message):
    __slots__ = ("stream", "media_type", "force_compress")
    STREAM_FIELD_NUMBER: _ClassVar[int]
    MEDIA_TYPE_FIELD_NUMBER: _ClassVar[int]
    FORCE_COMPRESS_FIELD_NUMBER: _ClassVar[int]
    stream: str
    media_type: str
    force_compress: bool
    def __init__(self, stream: _Optional[str] = ..., media_type: _Optional[str] = ..., force_compress: _Optional[bool] = ...) -> None: ...

class ImageExportStream(_message.Message):
    __slots__ = ("stream", "media_type", "platforms", "all_platforms", "skip_compatibility_manifest", "skip_non_distributable")
    STREAM_FIELD_NUMBER: _ClassVar[int]
    MEDIA_TYPE_FIELD_NUMBER: _ClassVar[int]
    PLATFORMS_FIELD_NUMBER: _ClassVar[int]
    ALL_PLATFORMS_FIELD_NUMBER: _ClassVar[int]
    SKIP_COMPATIBILITY_MANIFEST_FIELD_NUMBER: _ClassVar[int]
    SKIP_NON_DISTRIBUTABLE_FIELD_NUMBER: _ClassVar[int]
    stream: str
    media_type: str
    platforms: _containers.RepeatedCompositeFieldContainer[_types_pb2.Platform]
    all_platforms: bool
    skip_compatibility_manifest: bool
    skip_non_distributable: bool
    def __init__(self, stream: _Optional[str] = ..., media_type: _Optional[str] = ..., platforms: _Optional[_Iterable[_Union[_types_pb2.Platform, _Mapping]]] = ..., all_platforms: _Optional[bool] = ..., skip_compatibility_manifest: _Optional[bool] = ..., skip_non_distributable: _Optional[bool] = ...) -> None: ...

class Progress(_message.Message):
    __slots__ = ("event", "name", "parents", "progress", "total", "desc")
    EVENT_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    PARENTS_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    DESC_FIELD_NUMBER: _ClassVar[int]
    event: str
    name: str
    parents: _containers.RepeatedScalarFieldContainer[str]
    progress: int
    total: int
    desc: _types_pb2.Descriptor
    def __init__(self, event: _Optional[str] = ..., name: _Optional[str] = ..., parents: _Optional[_Iterable[str]] = ..., progress: _Optional[int] = ..., total: _Optional[int] = ..., desc: _Optional[_Union[_types_pb2.Descriptor, _Mapping]] = ...) -> None: ...

class OCIRegistry(_message.Message):
    __slots__ = ("reference", "resolver")
    REFERENCE_FIELD_NUMBER: _ClassVar[int]
    RESOLVER_FIELD_NUMBER: _ClassVar[int]
    reference: str
    resolver: RegistryResolver
    def __init__(self, reference: _Optional[str] = ..., resolver: _Optional[_Union[RegistryResolver, _Mapping]] = ...) -> None: ...

class RegistryResolver(_message.Message):
    __slots__ = ("auth_stream", "headers", "host_dir", "default_scheme", "http_debug", "logs_stream")
    class HeadersEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    AUTH_STREAM_FIELD_NUMBER: _ClassVar[int]
    HEADERS_FIELD_NUMBER: _ClassVar[int]
    HOST_DIR_FIELD_NUMBER: _ClassVar[int]
    DEFAULT_SCHEME_FIELD_NUMBER: _ClassVar[int]
    HTTP_DEBUG_FIELD_NUMBER: _ClassVar[int]
    LOGS_STREAM_FIELD_NUMBER: _ClassVar[int]
    auth_stream: str
    headers: _containers.ScalarMap[str, str]
    host_dir: str
    default_scheme: str
    http_debug: HTTPDebug
    logs_stream: str
    def __init__(self, auth_stream: _Optional[str] = ..., headers: _Optional[_Mapping[str, str]] = ..., host_dir: _Optional[str] = ..., default_scheme: _Optional[str] = ..., http_debug: _Optional[_Union[HTTPDebug, str]] = ..., logs_stream: _Optional[str] = ...) -> None: ...

class AuthRequest(_message.Message):
    __slots__ = ("host", "reference", "wwwauthenticate")
    HOST_FIELD_NUMBER: _ClassVar[int]
    REFERENCE_FIELD_NUMBER: _ClassVar[int]
    WWWAUTHENTICATE_FIELD_NUMBER: _ClassVar[int]
    host: str
    reference: str
    wwwauthenticate: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, host: _Optional[str] = ..., reference: _Optional[str] = ..., wwwauthenticate: _Optional[_Iterable[str]] = ...) -> None: ...

class AuthResponse(_message.Message):
    __slots__ = ("authType", "secret", "username", "expire_at")
    AUTHTYPE_FIELD_NUMBER: _ClassVar[int]
    SECRET_FIELD_NUMBER: _ClassVar[int]
    USERNAME_FIELD_NUMBER: _ClassVar[int]
    EXPIRE_AT_FIELD_NUMBER: _ClassVar[int]
    authType: AuthType
    secret: str
    username: str
    expire_at: _timestamp_pb2.Timestamp
    def __init__(self, authType: _Optional[_Union[AuthType, str]] = ..., secret: _Optional[str] = ..., username: _Optional[str] = ..., expire_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class Data(_message.Message):
    __slots__ = ("data",)
    DATA_FIELD_NUMBER: _ClassVar[int]
    data: bytes
    def __init__(self, data: _Optional[bytes] = ...) -> None: ...

class WindowUpdate(_message.Message):
    __slots__ = ("update",)
    UPDATE_FIELD_NUMBER: _ClassVar[int]
    update: int
    def __init__(self, update: _Optional[int] = ...) -> None: ...

class ReadStream(_message.Message):
    __slots__ = ("stream", "media_type")
    STREAM_FIELD_NUMBER: _ClassVar[int]
    MEDIA_TYPE_FIELD_NUMBER: _ClassVar[int]
    stream: str
    media_type: str
    def __init__(self, stream: _Optional[str] = ..., media_type: _Optional[str] = ...) -> None: ...

class WriteStream(_message.Message):
    __slots__ = ("stream", "media_type")
    STREAM_FIELD_NUMBER: _ClassVar[int]
    MEDIA_TYPE_FIELD_NUMBER: _ClassVar[int]
    stream: str
    media_type: str
    def __init__(self, stream: _Optional[str] = ..., media_type: _Optional[str] = ...) -> None: ...
