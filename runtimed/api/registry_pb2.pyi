from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ExplainRequest(_message.Message):
    __slots__ = ("reference",)
    REFERENCE_FIELD_NUMBER: _ClassVar[int]
    reference: str
    def __init__(self, reference: _Optional[str] = ...) -> None: ...

class ExplainResponse(_message.Message):
    __slots__ = ("reference", "hosts")
    REFERENCE_FIELD_NUMBER: _ClassVar[int]
    HOSTS_FIELD_NUMBER: _ClassVar[int]
    reference: str
    hosts: _containers.RepeatedCompositeFieldContainer[RegistryHost]
    def __init__(self, reference: _Optional[str] = ..., hosts: _Optional[_Iterable[_Union[RegistryHost, _Mapping]]] = ...) -> None: ...

class RegistryHost(_message.Message):
    __slots__ = ("url", "source", "capabilities", "credentials", "proxy", "skip_verify", "authorities", "client_certificates", "headers")
    URL_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    CAPABILITIES_FIELD_NUMBER: _ClassVar[int]
    CREDENTIALS_FIELD_NUMBER: _ClassVar[int]
    PROXY_FIELD_NUMBER: _ClassVar[int]
    SKIP_VERIFY_FIELD_NUMBER: _ClassVar[int]
    AUTHORITIES_FIELD_NUMBER: _ClassVar[int]
    CLIENT_CERTIFICATES_FIELD_NUMBER: _ClassVar[int]
    HEADERS_FIELD_NUMBER: _ClassVar[int]
    url: str
    source: str
    capabilities: _containers.RepeatedScalarFieldContainer[str]
    credentials: str
    proxy: str
    skip_verify: bool
    authorities: _containers.RepeatedScalarFieldContainer[str]
    client_certificates: _containers.RepeatedScalarFieldContainer[str]
    headers: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, url: _Optional[str] = ..., source: _Optional[str] = ..., capabilities: _Optional[_Iterable[str]] = ..., credentials: _Optional[str] = ..., proxy: _Optional[str] = ..., skip_verify: _Optional[bool] = ..., authorities: _Optional[_Iterable[str]] = ..., client_certificates: _Optional[_Iterable[str]] = ..., headers: _Optional[_Iterable[str]] = ...) -> None: ...

class ReferrersRequest(_message.Message):
    __slots__ = ("reference", "artifact_type")
    REFERENCE_FIELD_NUMBER: _ClassVar[int]
    ARTIFACT_TYPE_FIELD_NUMBER: _ClassVar[int]
    reference: str
    artifact_type: str
    def __init__(self, reference: _Optional[str] = ..., artifact_type: _Optional[str] = ...) -> None: ...

class ReferrersResponse(_message.Message):
    __slots__ = ("digest", "referrers")
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    REFERRERS_FIELD_NUMBER: _ClassVar[int]
    digest: str
    referrers: _containers.RepeatedCompositeFieldContainer[Referrer]
    def __init__(self, digest: _Optional[str] = ..., referrers: _Optional[_Iterable[_Union[Referrer, _Mapping]]] = ...) -> None: ...

class Referrer(_message.Message):
    __slots__ = ("media_type", "digest", "size", "artifact_type", "annotations")
    class AnnotationsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    MEDIA_TYPE_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    ARTIFACT_TYPE_FIELD_NUMBER: _ClassVar[int]
    ANNOTATIONS_FIELD_NUMBER: _ClassVar[int]
    media_type: str
    digest: str
    size: int
    artifact_type: str
    annotations: _containers.ScalarMap[str, str]
    def __init__(self, media_type: _Optional[str] = ..., digest: _Optional[str] = ..., size: _Optional[int] = ..., artifact_type: _Optional[str] = ..., annotations: _Optional[_Mapping[str, str]] = ...) -> None: ...
