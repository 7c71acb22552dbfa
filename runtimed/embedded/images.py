"""The images that come with the package: ``runtimed.io/hello:latest`` and ``runtimed.io/pause:latest``."""

from pathlib import Path

from runtimed.embedded.build import HOST as HOST
from runtimed.errors import NotFound


def layout() -> Path:
    """Return the OCI image layout that holds them; its index names each by ``org.opencontainers.image.ref.name``.

    Raises:
        NotFound: the package was not built; a checkout is built by installing it.
    """
    directory = Path(__file__).parent / "layout"
    if not (directory / "index.json").is_file():
        raise NotFound(f"embedded images in {directory}: install the package (pip install -e .) to build them")
    return directory
