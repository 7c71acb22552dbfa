"""The calls of a plugin by the events that they are about."""

from dataclasses import dataclass
from typing import Any

from google.protobuf.message import Message

from runtimed.api import nri_pb2 as pb

SERVICE = pb.DESCRIPTOR.services_by_name["Plugin"].full_name
RUNTIME_SERVICE = pb.DESCRIPTOR.services_by_name["Runtime"].full_name
ALL_EVENTS = (1 << (pb.LAST - 1)) - 1  # as bits


@dataclass(frozen=True, slots=True)
class Call:
    """A method of the service ``Plugin``. ``is_state_change``: an older plugin is told by StateChange instead."""

    event: int
    method: str
    request: type[Message]
    response: type[Message]
    is_state_change: bool


def _call(event: int, method: str, *, is_state_change: bool = False) -> Call:
    found: Any = pb
    return Call(event, method, getattr(found, f"{method}Request"), getattr(found, f"{method}Response"), is_state_change)


RUN_POD = _call(pb.RUN_POD_SANDBOX, "RunPodSandbox", is_state_change=True)
STOP_POD = _call(pb.STOP_POD_SANDBOX, "StopPodSandbox", is_state_change=True)
REMOVE_POD = _call(pb.REMOVE_POD_SANDBOX, "RemovePodSandbox", is_state_change=True)
UPDATE_POD = _call(pb.UPDATE_POD_SANDBOX, "UpdatePodSandbox")
POST_UPDATE_POD = _call(pb.POST_UPDATE_POD_SANDBOX, "PostUpdatePodSandbox", is_state_change=True)
CREATE = _call(pb.CREATE_CONTAINER, "CreateContainer")
POST_CREATE = _call(pb.POST_CREATE_CONTAINER, "PostCreateContainer", is_state_change=True)
START = _call(pb.START_CONTAINER, "StartContainer", is_state_change=True)
POST_START = _call(pb.POST_START_CONTAINER, "PostStartContainer", is_state_change=True)
UPDATE = _call(pb.UPDATE_CONTAINER, "UpdateContainer")
POST_UPDATE = _call(pb.POST_UPDATE_CONTAINER, "PostUpdateContainer", is_state_change=True)
STOP = _call(pb.STOP_CONTAINER, "StopContainer")
REMOVE = _call(pb.REMOVE_CONTAINER, "RemoveContainer", is_state_change=True)
VALIDATE = _call(pb.VALIDATE_CONTAINER_ADJUSTMENT, "ValidateContainerAdjustment")

EVERY = (
    *(RUN_POD, STOP_POD, REMOVE_POD, UPDATE_POD, POST_UPDATE_POD, CREATE, POST_CREATE, START, POST_START),
    *(UPDATE, POST_UPDATE, STOP, REMOVE, VALIDATE),
)
BY_EVENT = {call.event: call for call in EVERY}


def bit(event: int) -> int:
    """Return the bit of an event in a subscription."""
    return 1 << (event - 1)
