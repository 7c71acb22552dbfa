"""What plugins want of containers that there are, collected: limits, and no two plugins against each other."""

from collections.abc import Iterable

from runtimed.api import nri_pb2 as pb
from runtimed.errors import FailedPrecondition, InvalidArgument
from runtimed.nri import resources
from runtimed.nri.owners import Owners


class Updates:
    """By container. *coming* is one that is being made, which is adjusted, not updated."""

    def __init__(self, owners: Owners | None = None, coming: str = "") -> None:
        self._owners = owners or Owners()
        self._coming = coming
        self._updates: dict[str, pb.ContainerUpdate] = {}
        self.evictions: list[pb.ContainerEviction] = []

    def add(
        self, plugin: str, given: Iterable[pb.ContainerUpdate], evictions: Iterable[pb.ContainerEviction] = ()
    ) -> None:
        """Put a plugin's wishes to those before.

        Raises:
            InvalidArgument: one that cannot be.
            FailedPrecondition: another plugin has set the same.
        """
        for update in given:
            checked(plugin, update)
            if update.container_id == self._coming:
                raise InvalidArgument(f"NRI plugin {plugin}, update: {self._coming} is being made: adjust it instead")
            try:
                resources.claim(update.linux.resources, self._owners, update.container_id, plugin)
            except FailedPrecondition:
                if update.ignore_failure:
                    continue
                raise
            total = self._updates.setdefault(
                update.container_id, pb.ContainerUpdate(container_id=update.container_id, ignore_failure=True)
            )
            resources.merge(total.linux.resources, update.linux.resources)
            total.ignore_failure = total.ignore_failure and update.ignore_failure
        self.evictions.extend(evictions)

    def take(self, id: str) -> pb.LinuxResources:
        """Return what is wanted of one container, which is not among :meth:`all` any more."""
        found = self._updates.pop(id, None)
        return pb.LinuxResources() if found is None else found.linux.resources

    def all(self) -> list[pb.ContainerUpdate]:
        return list(self._updates.values())


def checked(plugin: str, update: pb.ContainerUpdate) -> pb.ContainerUpdate:
    """Return it. Raises InvalidArgument: it cannot be."""
    subject = f"NRI plugin {plugin}, update"
    if not update.container_id:
        raise InvalidArgument(f"{subject}: container_id is empty")
    resources.check(update.linux.resources, f"{subject} of container {update.container_id[:80]}: linux.resources")
    return update
