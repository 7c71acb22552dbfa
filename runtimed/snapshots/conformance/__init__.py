"""The conformance kit: what every snapshotter promises (`snapshotter.py`), as tests for pytest.

To run them on a snapshotter of your own, as root, put into a test module::

    from runtimed.snapshots.conformance import *

    @pytest.fixture
    def implementation():
        return lambda root: MySnapshotter(root, MySnapshotter.Config())

*root* is in pytest's ``tmp_path``. If your snapshotter needs a certain file system, have ``--basetemp`` on it, or a
fixture ``tmp_path`` of your own. `docs/snapshotters.md` tells more. Only tests import this module; it
needs pytest.
"""

# All of them: pytest takes for a module's tests what the module has by name.
from runtimed.snapshots.conformance.contents import *  # noqa: F403
from runtimed.snapshots.conformance.keys import *  # noqa: F403
from runtimed.snapshots.conformance.lasting import *  # noqa: F403
from runtimed.snapshots.conformance.removal import *  # noqa: F403
from runtimed.snapshots.conformance.tools import *  # noqa: F403
from runtimed.snapshots.conformance.tools import commit_layer as commit_layer
