"""Which of the processes of ``make test`` runs what: a file at a time, in the order in which the tests stand."""

from typing import Any

import pytest
from xdist.scheduler import LoadScopeScheduling

# Has fixtures for the whole session that are dear, and made anew for each of their parameters.
_IN_ONE_PROCESS = ("tests/integration/cli/",)


class ByFile(LoadScopeScheduling):  # type: ignore[misc]  # xdist has no types
    """Gives a process a file at a time, and some directories whole."""

    def __init__(self, config: pytest.Config, log: Any) -> None:
        config.option.loadscopereorder = False
        super().__init__(config, log)

    def _split_scope(self, nodeid: str) -> str:
        return next(filter(nodeid.startswith, _IN_ONE_PROCESS), nodeid.partition("::")[0])
