"""Plugins as programs, as far as no network is needed; with one: e2e/test_cri_pods.py."""

import json

import pytest

from runtimed.cri.cni import NetworkList, Plugins
from runtimed.errors import Internal


async def test_every_plugin_frees_what_it_can(tmp_path):
    for name, text in (("fails", 'echo \'{"code": 100, "msg": "no disk"}\'; exit 1'), ("frees", "cat > $0.told")):
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    network = NetworkList(name="net", version="1.1.0", plugins=({"type": "fails"}, {"type": "frees"}))
    with pytest.raises(Internal, match="CNI plugin fails GC: no disk"):
        await Plugins([str(tmp_path)], 20).gc(network, [("a", "eth0")])
    told = json.loads((tmp_path / "frees.told").read_text())
    assert told["cni.dev/valid-attachments"] == [{"containerID": "a", "ifname": "eth0"}]
