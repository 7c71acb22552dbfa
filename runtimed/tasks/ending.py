"""The ends of tasks: deleted when somebody asks for it, and cleaned up after when their shim has gone by itself."""

import asyncio
import logging
from dataclasses import replace

from runtimed.errors import DeadlineExceeded, NotFound, RuntimedError, Unavailable
from runtimed.failpoints import hit_async
from runtimed.tasks import client as shims
from runtimed.tasks import pids
from runtimed.tasks.background import Background
from runtimed.tasks.bundle import Bundle
from runtimed.tasks.client import Exit, TaskClient
from runtimed.tasks.exits import Exits
from runtimed.tasks.groups import Groups
from runtimed.tasks.launch import Launcher
from runtimed.tasks.remains import Ended, clean_up, dismiss, end_shim, kill_shim, named
from runtimed.tasks.table import Table, Task, not_found
from runtimed.threads import blocking

log = logging.getLogger(__name__)

CONNECT_WITHIN_S = 5.0
STATE_WITHIN_S = 2.0  # a shim that needs longer to say how its task is, is taken for stuck
_CONNECT_AGAIN_S = 1.0


class Endings:
    """Ends tasks, and notices those that end with their shim."""

    def __init__(self, table: Table, groups: Groups, launcher: Launcher, exits: Exits, background: Background) -> None:
        self._table = table
        self._groups = groups
        self._launcher = launcher
        self._exits = exits
        self._background = background

    def add(self, task: Task) -> None:
        """Put *task* in the table and watch its shim from here on."""
        self._table.add(task)
        self._watch_from_now(task)

    async def delete(self, task: Task) -> Exit:
        """Remove a task that has ended (or was never started), its shim and its bundle; return how it ended.

        One whose shim does not answer is ended from outside first.
        """
        async with task.changing:
            if not self._table.has(task):
                raise not_found(task.bundle.id)
            watch = task.watch
            try:
                try:
                    await task.client.state("", STATE_WITHIN_S)
                except Unavailable:
                    if (exit := await self.outcome(task, watch)) is not None:
                        return exit
            except DeadlineExceeded:
                return await self.end_stuck(task)
            # In a task of its own: once the shim has forgotten the container the rest must follow, client or not.
            return await asyncio.shield(self._background.spawn(self._delete(task)))

    async def outcome(self, task: Task, watch: "asyncio.Task[Exit | None]") -> Exit | None:
        """Return how *task* ended, of whose connection *watch* sees the end; None if there is another connection.

        Raises:
            DeadlineExceeded: there is none, although the shim lives.
        """
        is_stuck = asyncio.create_task(task.stuck.wait())
        try:
            await asyncio.wait([watch, is_stuck], return_when=asyncio.FIRST_COMPLETED)
        finally:
            is_stuck.cancel()
        if watch.done():
            return watch.result()
        raise DeadlineExceeded(f"task {task.bundle.id}: its shim (pid {task.endpoint.pid}) takes no connections")

    async def end_stuck(self, task: Task) -> Exit:
        """Kill a shim that does not answer; what follows is as when it had died by itself.

        The other tasks of the shim end with it: nobody could tell any more how they are.
        """
        log.warning("a shim does not answer and is killed", extra=named(task.bundle, task.endpoint))
        watch = task.watch
        if not await blocking(pids.kill, task.endpoint.pid, task.endpoint.started):
            raise DeadlineExceeded(
                f"task {task.bundle.id}: its shim (pid {task.endpoint.pid}) neither answers nor can it be killed"
            )
        return await asyncio.shield(watch) or shims.killed(task.pid)

    async def clean_up(self, bundle: Bundle) -> Ended:
        """Remove what is left of a task whose shim has gone, or must; return how it ended. Raises RuntimedError."""
        endpoint, group = await blocking(lambda: (bundle.endpoint(), bundle.group()))
        async with self._groups.locked(bundle.namespace, group):
            is_shared = self._groups.leave(bundle, group, endpoint)
            if endpoint is not None and not is_shared:
                await kill_shim(endpoint, bundle.id)
        if endpoint is not None and is_shared:
            await dismiss(endpoint, bundle.id)
        ended = await clean_up(self._launcher, bundle)
        told = self._exits.told(bundle)
        return ended if told is None else Ended(told, is_told=True)

    async def _delete(self, task: Task) -> Exit:
        await hit_async("delete.begun")
        task.is_leaving = True
        try:
            exit = await task.client.delete("")
        except BaseException:
            task.is_leaving = False
            if task.watch.done():  # the shim died of it, and that went unnoticed as intended
                self._watch_from_now(task)
            raise
        self._launcher.logs.close(task.bundle)
        try:
            await hit_async("delete.forgotten")
            async with self._groups.locked(task.bundle.namespace, task.group):
                if not self._groups.leave(task.bundle, task.group, task.endpoint):
                    await end_shim(task.client, task.endpoint, task.bundle)
            await hit_async("delete.shim")
            await blocking(task.bundle.delete)
            await hit_async("delete.bundle")
        except Exception:
            # The task is gone as far as anybody can see; a new one, or the next start, removes the rest.
            log.exception("a bundle is left over", extra=named(task.bundle))
        finally:
            await task.client.close()
            self._remove(task)
        return exit

    def _remove(self, task: Task) -> None:
        self._table.remove(task)
        self._exits.forget(task.bundle)

    def _watch_from_now(self, task: Task) -> None:
        task.watch = self._background.spawn(self._watch(task))

    async def _watch(self, task: Task) -> Exit | None:
        """Wait for the connection to end; return how the task ended with it, or None if it did not."""
        await asyncio.wait([task.client.closed])
        if task.is_leaving:
            return None
        while (is_connected := await self._reconnected(task)) is None:
            task.stuck.set()
            await asyncio.sleep(_CONNECT_AGAIN_S)
        task.stuck.clear()
        if is_connected:
            return None
        bundle = task.bundle
        log.warning("a shim has gone", extra=named(bundle, task.endpoint))
        try:
            ended = await self.clean_up(bundle)
        except Exception:
            log.exception("a bundle is left over", extra=named(bundle))
            ended = Ended(shims.killed(0))
        ended = replace(ended, exit=replace(ended.exit, pid=ended.exit.pid or task.pid))
        self._remove(task)
        self._exits.publish(bundle, ended)
        return ended.exit

    async def _reconnected(self, task: Task) -> bool | None:
        """Connect again, if the shim lives and only the connection was lost: no reason to end a container.

        Returns False when it is gone, or does not know the task; None when it could not be found out.
        """
        await task.client.close()
        try:
            client = await TaskClient.connect(task.endpoint, task.bundle.id, STATE_WITHIN_S)
        except Unavailable:
            return False
        except RuntimedError:
            return None
        try:
            await client.state("", STATE_WITHIN_S)
        except (NotFound, Unavailable):
            await client.close()
            return False
        except RuntimedError:
            pass  # it is there, and stuck
        task.client = client
        self._watch_from_now(task)
        return True
