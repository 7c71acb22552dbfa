"""Images whose dev, proc, sys and etc are links to the host's, or to places of an attacker's choice."""

from pathlib import Path

import pytest

from tests.daemon import PrivateDaemon
from tests.fakes.registry import serving
from tests.images.busybox import PLATFORM
from tests.images.layouts import Layout

pytestmark = [pytest.mark.root, pytest.mark.e2e]


@pytest.mark.parametrize("name", ["dev", "proc", "sys", "etc"])
def test_nothing_is_made_or_mounted_where_a_link_leads(daemon: PrivateDaemon, tmp_path: Path, name: str):
    """The container fails, or runs with what it should have had there; the host's directory stays as it was."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "mark").write_text("host")
    layout = Layout(tmp_path / "layout")
    programs: dict[str, bytes | str] = {
        "bin/busybox": Path("/bin/busybox").read_bytes(),
        "bin/sh": "busybox",
        "bin/ls": "busybox",
    }
    layer = layout.layer({**programs, name: str(outside)}, "")
    layout.image(name, [layer], platform=PLATFORM, run={"Env": ["PATH=/bin"]})
    before = Path("/proc/self/mountinfo").read_text().count(str(outside))
    with serving(layout.root, "app") as registry:
        reference = f"{registry.host}/app:{name}"
        daemon.rctl("pull", reference)
        ran = daemon.run("--rm", reference, "--", "sh", "-c", f"ls /{name}/; ls {outside}", check=False)
    assert "mark" not in ran.stdout
    assert name == "etc" or f"/{name} of the root file system is a symbolic link" in ran.stderr
    assert [path.name for path in outside.iterdir()] == ["mark"]
    assert (outside / "mark").read_text() == "host"
    assert Path("/proc/self/mountinfo").read_text().count(str(outside)) == before
