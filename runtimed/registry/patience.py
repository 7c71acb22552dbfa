"""How often and how soon a registry that fails is tried again."""

import asyncio
import logging
import random
from dataclasses import dataclass

from runtimed.errors import Unavailable

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long a registry that does not answer well is given."""

    attempts: int = 5  # requests in all, as long as none gets further than the one before
    first_wait_s: float = 0.5  # doubles with each
    longest_wait_s: float = 60.0  # also of what the registry may ask for by Retry-After

    async def wait(self, failures: int, error: Unavailable) -> None:
        """Wait before trying again after *failures* in a row, or raise *error* if that is enough."""
        asked = error.retry_after_s
        if failures >= self.attempts or (asked is not None and asked > self.longest_wait_s):
            raise error
        wait_s = min(self.first_wait_s * 2 ** (failures - 1), self.longest_wait_s) * random.uniform(0.5, 1.0)
        log.info(
            "registry failed; trying again", extra={"error": str(error), "wait_s": round(max(wait_s, asked or 0), 1)}
        )
        await asyncio.sleep(max(wait_s, asked or 0))


def is_nobody_there(error: Unavailable) -> bool:
    """Whether *error*, of a request, says that nothing listens: that is not going to change in a moment."""
    from aiohttp import ClientConnectorError  # here: who has made a request has loaded it

    return isinstance(error.__cause__, ClientConnectorError)
