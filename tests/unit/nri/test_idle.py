"""Who has no plugins pays nothing for them."""

import subprocess
import sys


def test_cri_without_plugins_loads_nothing_of_nri():
    code = (
        "import sys, runtimed.cri.start, runtimed.server.parts; print([name for name in sys.modules if 'nri' in name])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
