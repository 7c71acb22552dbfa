"""The plugins there are: how they come and go, who is asked what, and what happens when one does not answer."""

import asyncio
import logging
from collections.abc import Awaitable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, suppress
from typing import Any, Protocol

from runtimed.api import nri_pb2 as pb
from runtimed.config import Nri
from runtimed.errors import DeadlineExceeded, PermissionDenied, RuntimedError, Unavailable
from runtimed.nri import calls
from runtimed.nri.adjustments import Adjusting
from runtimed.nri.calls import Call
from runtimed.nri.connection import Connection
from runtimed.nri.gate import Gate
from runtimed.nri.launcher import Program, launch, programs
from runtimed.nri.listener import Listener
from runtimed.nri.synchronizing import synchronize
from runtimed.nri.updates import Updates, checked
from runtimed.threads import blocking

log = logging.getLogger(__name__)

_MOST_CONNECTIONS = 64
_MOST_SAID = 4096  # characters of what a plugin has to say
_AGAIN_S, _AGAIN_AT_MOST_S = 1.0, 60.0  # until a plugin that ended is launched again: at first, and in the end
_STEADY_S = 60.0  # one that has lived so long begins anew with that


class Runtime(Protocol):
    """Who has the pods and containers."""

    async def existing(self) -> tuple[Sequence[pb.PodSandbox], Sequence[pb.Container]]:
        """Return all that are listed."""

    async def update_containers(self, updates: Iterable[pb.ContainerUpdate]) -> list[pb.ContainerUpdate]:
        """Change limits; return those that could not be changed."""

    async def evict(self, evictions: Iterable[pb.ContainerEviction]) -> None:
        """End containers."""


class Plugins:
    """All of them. One question is asked at a time, so that every plugin hears of things in the order they happened."""

    def __init__(self, settings: Nri, runtime: Runtime, name: str, version: str) -> None:
        self._settings = settings
        self._runtime = runtime
        self._configuration = pb.ConfigureRequest(
            runtime_name=name,
            runtime_version=version,
            registration_timeout=settings.registration_timeout_ms,
            request_timeout=settings.request_timeout_ms,
        )
        self._gate = Gate()
        self._asking = asyncio.Lock()
        self._plugins: list[Connection] = []
        self._absent: dict[str, str] = {}  # launched ones that are not there, and why
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_closing = False
        self._listener = Listener(settings.socket, self._connected)

    async def start(self) -> None:
        """Launch plugins, and let others connect. Those launched have had their time to come when this returns.

        Raises:
            FailedPrecondition: the socket is another runtime's, or cannot be made.
        """
        found, wrong = await blocking(programs, self._settings.plugin_path, self._settings.config_path)
        for problem in wrong:
            log.error("an NRI plugin is not launched: %s", problem)
        begun = []
        for program in found:
            self._absent[str(program.identity)] = "it has not come yet"
            first = asyncio.get_running_loop().create_future()
            self._spawn(self._keep(program, first))
            begun.append(first)
        if begun:
            await asyncio.wait(begun)
        if self._settings.external_connections:
            await self._listener.start()

    async def close(self) -> None:
        """Tell all plugins that the daemon ends, and end those that were launched."""
        self._is_closing = True
        await self._listener.close()
        plugins, self._plugins = self._plugins, []
        await asyncio.gather(*(plugin.close(shutdown=True) for plugin in plugins))
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    @property
    def is_idle(self) -> bool:
        """Say whether there is nobody to ask, nor anybody missed."""
        return not self._plugins and (not self._absent or self._settings.on_timeout == "open")

    def making(self) -> AbstractAsyncContextManager[None]:
        """From before a pod or container is told of until it is listed: no plugin comes meanwhile."""
        return self._gate.making()

    async def tell(self, call: Call, request: Any) -> None:
        """Have all that want to hear of an event hear of it.

        Raises:
            RuntimedError: a plugin's objection; Unavailable: no answer, and by the policy that means no.
        """
        async with self._asking:
            self._check_present(call)
            for plugin in self._wanting(call):
                await self._ask(plugin, call, request)

    async def create(self, request: pb.CreateContainerRequest) -> Adjusting:
        """Ask what is to be changed of a container that is being made. Raises like :meth:`tell`; conflicts as well."""
        adjusting = Adjusting(request.container)
        asked = []
        async with self._asking:
            self._check_present(calls.CREATE)
            for plugin in self._wanting(calls.CREATE):
                asked.append(plugin.identity)
                now = pb.CreateContainerRequest(pod=request.pod, container=adjusting.container)
                answer = await self._ask(plugin, calls.CREATE, now)
                if answer is not None:
                    adjusting.add(str(plugin), answer)
            validation = pb.ValidateContainerAdjustmentRequest(
                pod=request.pod,
                container=request.container,
                adjust=adjusting.result,
                update=adjusting.updates.all(),
                owners=adjusting.owners.message(),
                plugins=[pb.PluginInstance(name=one.name, index=one.index) for one in asked],
            )
            for plugin in self._wanting(calls.VALIDATE):
                answer = await self._ask(plugin, calls.VALIDATE, validation)
                if answer is not None and answer.reject:
                    raise PermissionDenied(f"NRI plugin {plugin} rejects the adjustment: {answer.reason[:_MOST_SAID]}")
        return adjusting

    async def update(self, request: pb.UpdateContainerRequest) -> Updates:
        """Ask what is to be changed along with an update. Raises like :meth:`create`."""
        updates = Updates()
        async with self._asking:
            self._check_present(calls.UPDATE)
            for plugin in self._wanting(calls.UPDATE):
                answer = await self._ask(plugin, calls.UPDATE, request)
                if answer is not None:
                    updates.add(str(plugin), answer.update, answer.evict)
        return updates

    async def stop(self, request: pb.StopContainerRequest) -> Updates:
        """Tell of a container that ends, and ask who gets what it had. Raises like :meth:`create`."""
        updates = Updates()
        async with self._asking:
            for plugin in self._wanting(calls.STOP):
                answer = await self._ask(plugin, calls.STOP, request)
                if answer is not None:
                    updates.add(str(plugin), answer.update)
        return updates

    def _wanting(self, call: Call) -> list[Connection]:
        return [plugin for plugin in self._plugins if plugin.wants(call)]

    def _check_present(self, call: Call) -> None:
        """Raise Unavailable if a plugin that was to be launched is missing, and things must not go on without it."""
        if self._settings.on_timeout != "open" and call in _CAN_BE_REFUSED:
            for name, reason in self._absent.items():
                raise Unavailable(f"NRI plugin {name} is not running, and nri.on_timeout does not allow that: {reason}")

    async def _ask(self, plugin: Connection, call: Call, request: Any) -> Any:
        """Return the answer, None if things go on without one."""
        policy = self._settings.on_timeout
        for is_last in (policy != "retry", True):
            try:
                return await plugin.ask(call, request)
            except (DeadlineExceeded, Unavailable) as exc:
                problem = exc
            except RuntimedError as exc:
                raise type(exc)(f"NRI plugin {plugin}: {call.method}: {str(exc)[:_MOST_SAID]}") from None
            if is_last:
                break
        log.warning("an NRI plugin has not answered %s", call.method,
                    extra={"plugin": str(plugin), "error": str(problem), "on_timeout": policy})  # fmt: skip
        if policy != "open":
            raise Unavailable(f"NRI plugin {plugin}: {call.method}: {problem}")
        with suppress(ValueError):
            self._plugins.remove(plugin)
        self._spawn(plugin.close())
        return None

    # Coming and going

    async def _keep(self, program: Program, first: "asyncio.Future[None]") -> None:
        """Launch a plugin, and again when it has ended; *first* is done once that has succeeded or failed."""
        wait_s, loop = _AGAIN_S, asyncio.get_running_loop()
        name = str(program.identity)
        while True:
            begun_at = loop.time()
            try:
                await self._run(program, first)
                self._absent[name] = "it has ended"
            except RuntimedError as exc:
                self._absent[name] = str(exc)[:_MOST_SAID]
            except Exception as exc:  # or it would never be launched again, and the daemon's start wait for it
                log.exception("an NRI plugin cannot be kept")
                self._absent[name] = f"{type(exc).__name__}: {exc}"[:_MOST_SAID]
            if not first.done():
                first.set_result(None)
            if self._is_closing:
                return
            wait_s = _AGAIN_S if loop.time() - begun_at > _STEADY_S else wait_s
            log.error("an NRI plugin is not running: launched again in %g s", wait_s,
                      extra={"plugin": name, "error": self._absent[name]})  # fmt: skip
            await asyncio.sleep(wait_s)
            wait_s = min(2 * wait_s, _AGAIN_AT_MOST_S)

    async def _run(self, program: Program, first: "asyncio.Future[None]") -> None:
        process = await blocking(launch, program)
        try:
            reader, writer = await asyncio.open_unix_connection(sock=process.sock)
            plugin = Connection(reader, writer, program.identity, self._updated, self._timeout_s)
            try:
                await self._admit(plugin, program.config)
                self._absent.pop(str(program.identity), None)
                if not first.done():
                    first.set_result(None)
                await asyncio.wait([plugin.closed])
            finally:
                await self._leave(plugin)
        finally:
            await process.end()

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._is_closing:  # it was accepted a moment before
            writer.close()
            return
        if len(self._tasks) >= _MOST_CONNECTIONS:
            log.warning("an NRI plugin was turned away: there are %d connections", len(self._tasks))
            writer.close()
            return
        # Also of a task that is cancelled before it has begun.
        self._spawn(self._serve(reader, writer)).add_done_callback(lambda _: writer.close())

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """A plugin that has connected itself, from its registration to its end."""
        plugin = Connection(reader, writer, None, self._updated, self._timeout_s)
        try:
            await self._admit(plugin, "")
            await asyncio.wait([plugin.closed])
            log.info("an NRI plugin has left", extra={"plugin": str(plugin)})
        except RuntimedError as exc:
            log.warning("an NRI plugin is not taken in", extra={"plugin": str(plugin), "error": str(exc)})
        except Exception:
            log.exception("an NRI plugin is not taken in", extra={"plugin": str(plugin)})
        finally:
            await self._leave(plugin)

    async def _admit(self, plugin: Connection, config: str) -> None:
        """Configure a plugin and tell it what there is; from then on it hears of everything."""
        request = pb.ConfigureRequest(config=config)
        request.MergeFrom(self._configuration)
        await plugin.begin(request)
        async with self._gate.synchronizing(), self._asking:
            pods, containers = await self._runtime.existing()
            updates = await synchronize(plugin, pods, containers, self._timeout_s)
            for update in updates:
                checked(str(plugin), update)
            self._plugins.append(plugin)
            self._plugins.sort(key=lambda one: one.identity.index)
        log.info("an NRI plugin has come", extra={"plugin": str(plugin)})
        await self._runtime.update_containers(updates)

    async def _leave(self, plugin: Connection) -> None:
        with suppress(ValueError):
            self._plugins.remove(plugin)
        await plugin.close()

    async def _updated(self, plugin: str, request: pb.UpdateContainersRequest) -> pb.UpdateContainersResponse:
        """What a plugin asks for whenever it likes."""
        updates = [checked(plugin, update) for update in request.update]
        failed = await self._runtime.update_containers(updates)
        await self._runtime.evict(request.evict)
        return pb.UpdateContainersResponse(failed=failed)

    @property
    def _timeout_s(self) -> float:
        return self._settings.request_timeout_ms / 1000

    def _spawn(self, work: Awaitable[None]) -> asyncio.Future[None]:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


# Whatever ends, ends, whether a plugin is there or not.
_CAN_BE_REFUSED = (calls.RUN_POD, calls.CREATE, calls.START, calls.UPDATE, calls.UPDATE_POD)
