import pytest
from elsewhere import ElsewhereSnapshotter  # yours, wherever it is installed

from runtimed.snapshots.conformance import *  # noqa: F403


@pytest.fixture
def implementation(tmp_path):
    config = ElsewhereSnapshotter.Config(directory=str(tmp_path))
    return lambda root: ElsewhereSnapshotter(root, config)
