"""A plugin of NRI that writes down what it hears and does what a file says: nri_plugin.py DIRECTORY NAME [SOCKET].

NAME is INDEX-NAME. DIRECTORY/NAME.log gets a line of JSON for each event, stdout the event's name. DIRECTORY/NAME.json
says by events' names what is to be done: ``answer`` (the response, as protobuf's JSON), ``raise``, ``hang`` (seconds),
``die``, ``ask`` (updates to ask for once the event is answered).
"""

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any

from google.protobuf import json_format

from runtimed.api import nri_pb2 as pb
from runtimed.errors import FailedPrecondition
from runtimed.nri.plugin import Plugin, run


class Recorder(Plugin):
    def __init__(self, directory: Path, name: str) -> None:
        self._orders = directory / f"{name}.json"
        self._log = directory / f"{name}.log"
        self._asks: asyncio.Task[None] | None = None

    def _note(self, event: str, **what: Any) -> None:
        with self._log.open("a") as file:
            file.write(json.dumps({"event": event, **what}) + "\n")
        print(event, flush=True)

    async def _do(self, event: str, response: type[Any], **what: Any) -> Any:
        orders = json.loads(self._orders.read_text()) if self._orders.exists() else {}
        told = {name: json_format.MessageToDict(one, preserving_proto_field_name=True) for name, one in what.items()}
        order = orders.get(event, {})
        if "die" in order:
            os._exit(1)
        if "hang" in order:
            await asyncio.sleep(order["hang"])
        self._note(event, **told)
        if "raise" in order:
            raise FailedPrecondition(order["raise"])
        if "ask" in order:  # once this has been answered
            updates = [json_format.ParseDict(one, pb.ContainerUpdate()) for one in order["ask"]]
            self._asks = asyncio.create_task(self._ask(updates))
        return json_format.ParseDict(order.get("answer", {}), response())

    async def _ask(self, updates: list[pb.ContainerUpdate]) -> None:
        failed = await self.update_containers(updates)
        self._note("update_containers", failed=[one.container_id for one in failed])

    async def configure(self, config: str, runtime: str, version: str) -> None:
        self._note("configure", config=config, runtime=runtime)

    async def synchronize(self, pods: Any, containers: Any) -> Any:
        self._note("synchronize", pods=[one.id for one in pods], containers=[one.id for one in containers],
                   states=[one.state for one in containers])  # fmt: skip
        return (await self._do("synchronized", pb.SynchronizeResponse)).update

    async def shutdown(self) -> None:
        self._note("shutdown")

    async def run_pod_sandbox(self, pod: Any) -> None:
        await self._do("run_pod_sandbox", pb.RunPodSandboxResponse, pod=pod)

    async def update_pod_sandbox(self, pod: Any, overhead: Any, resources: Any) -> None:
        await self._do("update_pod_sandbox", pb.UpdatePodSandboxResponse, pod=pod, resources=resources)

    async def post_update_pod_sandbox(self, pod: Any) -> None:
        await self._do("post_update_pod_sandbox", pb.PostUpdatePodSandboxResponse, pod=pod)

    async def stop_pod_sandbox(self, pod: Any) -> None:
        await self._do("stop_pod_sandbox", pb.StopPodSandboxResponse, pod=pod)

    async def remove_pod_sandbox(self, pod: Any) -> None:
        await self._do("remove_pod_sandbox", pb.RemovePodSandboxResponse, pod=pod)

    async def create_container(self, pod: Any, container: Any) -> Any:
        return await self._do("create_container", pb.CreateContainerResponse, pod=pod, container=container)

    async def post_create_container(self, pod: Any, container: Any) -> None:
        await self._do("post_create_container", pb.PostCreateContainerResponse, container=container)

    async def start_container(self, pod: Any, container: Any) -> None:
        await self._do("start_container", pb.StartContainerResponse, container=container)

    async def post_start_container(self, pod: Any, container: Any) -> None:
        await self._do("post_start_container", pb.PostStartContainerResponse, container=container)

    async def update_container(self, pod: Any, container: Any, resources: Any) -> Any:
        done = await self._do("update_container", pb.UpdateContainerResponse, container=container, resources=resources)
        return done.update

    async def post_update_container(self, pod: Any, container: Any) -> None:
        await self._do("post_update_container", pb.PostUpdateContainerResponse, container=container)

    async def stop_container(self, pod: Any, container: Any) -> Any:
        return (await self._do("stop_container", pb.StopContainerResponse, container=container)).update

    async def remove_container(self, pod: Any, container: Any) -> None:
        await self._do("remove_container", pb.RemoveContainerResponse, container=container)

    async def validate_container_adjustment(self, request: Any) -> str | None:
        done = await self._do("validate_container_adjustment", pb.ValidateContainerAdjustmentResponse,
                              adjust=request.adjust, owners=request.owners)  # fmt: skip
        return done.reason if done.reject else None


if __name__ == "__main__":
    directory, full_name = Path(sys.argv[1]), sys.argv[2]
    socket = sys.argv[3] if len(sys.argv) > 3 else ""
    index, _, name = full_name.partition("-")
    asyncio.run(run(Recorder(directory, full_name), name=name, index=index, path=socket))
