"""The ``[cri]`` table."""

from pathlib import Path

import pytest

from runtimed import config
from runtimed.errors import InvalidArgument


def load(tmp_path: Path, text: str) -> config.Config:
    path = tmp_path / "config.toml"
    path.write_text(f"version = 1\n{text}")
    return config.load(path)


def test_lists_are_read_and_dumped_again(tmp_path):
    loaded = load(tmp_path, '[cri.cni]\nbin_dirs = ["/a", "/b"]\n[cri.runtimes.x]\npod_annotations = ["one.*"]\n')
    assert loaded.cri.cni.bin_dirs == ("/a", "/b")
    assert loaded.cri.runtimes["x"].pod_annotations == ("one.*",)
    (tmp_path / "again.toml").write_text(config.dump(loaded))
    assert config.load(tmp_path / "again.toml") == loaded


def test_the_default_handler_stays_when_others_are_added(tmp_path):
    assert set(load(tmp_path, '[cri.runtimes.x]\nsnapshotter = "native"\n').cri.runtimes) == {"runc", "x"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[cri.cni]\nbin_dirs = "/a"\n', r"config.toml:3: cri.cni.bin_dirs: must be a list of strings"),
        ('[cri.cni]\nbin_dirs = ["a"]\n', r"cri.cni.bin_dirs: must be absolute paths"),
        ('[cri]\ndefault_handler = "x"\n', r"cri.default_handler: 'x' is none of cri.runtimes: runc"),
        ('[cri.runtimes.x]\nruntime = "y"\n', r"cri.runtimes.x.runtime: 'y' is not among runtimes"),
        ("[cri]\nmax_log_line = 1\n", r"cri.max_log_line: 1 is not between"),
        ("[cri.cni]\nplugin_limit_s = 0\n", r"plugin_limit_s: must be at least 1"),
        ('[cri.streaming]\nkey = "/k"\n', r"cri.streaming.key: there is no cri.streaming.certificate"),
        ('[cri.streaming]\ncertificate = "c.pem"\n', r"cri.streaming.certificate, .*: must be absolute paths"),
        ("[cri.block_io_classes.x]\nweight = 9\n", r"cri.block_io_classes.x.weight: 9 is not between 10 and 1000"),
        ("[cri.block_io_classes.x]\nreads_per_s = -1\n", r"cri.block_io_classes.x: a rate must not be negative"),
        ("[cri.block_io_classes.x]\nreads_per_s = 1\n", r"cri.block_io_classes.x: rates are of devices"),
        ('[cri.block_io_classes.x]\nreads_per_s = 1\ndevices = ["sda"]\n', r"x.devices: must be paths below /dev"),
        ("[cri.streaming]\nport = 65536\n", r"cri.streaming.port: 65536 is not between"),
    ],
)
def test_what_cannot_be_is_refused(tmp_path, text, message):
    with pytest.raises(InvalidArgument, match=message):
        load(tmp_path, text)
