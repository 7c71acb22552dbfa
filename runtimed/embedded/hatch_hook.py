"""Builds the embedded images when hatchling builds the package, for a wheel and for an editable install alike."""

import sys
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class EmbeddedImages(BuildHookInterface[Any]):
    """Found by hatchling as the only hook in this file (pyproject.toml, ``hooks.custom``)."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Write ``runtimed/embedded/layout``, which the wheel then takes along (``artifacts``)."""
        sys.path.insert(0, self.root)
        try:
            from runtimed.embedded.build import build
        finally:
            sys.path.remove(self.root)
        build(Path(self.root) / "runtimed" / "embedded" / "layout")
