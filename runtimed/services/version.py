"""The Version service."""

from importlib.metadata import version

from google.protobuf.empty_pb2 import Empty

from runtimed.api import version_pb2 as pb
from runtimed.services.context import Context

# Clients parse the version and switch on it, so it must be a semantic one and say which containerd's API is meant: 2.0
# is the one that brought the Transfer service as it is here. What follows the plus sign is build metadata, which
# comparing ignores (semver.org, 10).
API_VERSION = "2.0.0"
VERSION = f"{API_VERSION}+runtimed.{version('runtimed')}"


class VersionService:
    """Says who is serving; needs no namespace."""

    async def Version(self, request: Empty, context: Context) -> pb.VersionResponse:
        return pb.VersionResponse(version=VERSION, revision="")
