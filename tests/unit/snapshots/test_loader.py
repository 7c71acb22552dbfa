from dataclasses import dataclass
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from runtimed.config import ProxyPlugin
from runtimed.errors import InvalidArgument
from runtimed.snapshots.loader import GROUP, close, load
from runtimed.snapshots.snapshotter import NotSupported

NATIVE = EntryPoint("native", "snapshotters.native:NativeSnapshotter", GROUP)


class Unsupported:
    @dataclass(frozen=True, kw_only=True)
    class Config:
        mount_options: tuple[str, ...] = ()
        depth: int = 1

    def __init__(self, root: Path, config: Config) -> None:
        raise NotSupported(f"no file system for {config.depth}, {config.mount_options}")


class Broken:
    @dataclass(frozen=True)
    class Config:
        pass

    def __init__(self, root: Path, config: Config) -> None:
        raise ValueError("a bug")


def point(name: str, cls: str) -> EntryPoint:
    return EntryPoint(name, f"{__name__}:{cls}", GROUP)


def test_a_snapshotter_gets_a_directory_of_its_own(tmp_path):
    loaded = load(tmp_path, {}, [NATIVE])
    assert loaded["native"].error == ""
    assert type(loaded["native"].snapshotter).__name__ == "NativeSnapshotter"
    assert (tmp_path / "native" / "records.db").exists()
    close(loaded)


def test_one_that_the_host_cannot_run_is_skipped_with_the_reason(tmp_path):
    tables = {"none": {"mount_options": ["a", "b"], "depth": 3}}
    loaded = load(tmp_path, tables, [point("none", "Unsupported")])
    assert loaded["none"].snapshotter is None
    assert loaded["none"].error == "no file system for 3, ('a', 'b'): skip plugin"


def test_one_behind_a_socket_is_there_before_its_process_is(tmp_path):
    proxies = {"remote": ProxyPlugin(address=str(tmp_path / "s"), capabilities=("remap-ids",))}
    loaded = load(tmp_path, {}, [], proxies)
    assert loaded["remote"].snapshotter is not None
    assert loaded["remote"].snapshotter.capabilities == ("remap-ids",)
    close(loaded)
    with pytest.raises(InvalidArgument, match=r"proxy_plugins\.native: a snapshotter of that name is installed"):
        load(tmp_path, {}, [NATIVE], {"native": ProxyPlugin(address="/s")})


def test_one_that_is_broken_costs_nobody_else(tmp_path, caplog):
    missing = EntryPoint("gone", "no.such.module:Class", GROUP)
    loaded = load(tmp_path, {}, [point("broken", "Broken"), missing, NATIVE])
    assert loaded["broken"].error == "snapshotter broken: a bug"
    assert "no.such.module" in loaded["gone"].error
    assert "skip plugin" not in loaded["broken"].error + loaded["gone"].error
    assert loaded["native"].snapshotter is not None
    close(loaded)


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ({"native": {"foo": 1}}, "snapshotters.native.foo: unknown key; known are: none"),
        (
            {"none": {"mount_option": []}},
            "snapshotters.none.mount_option: unknown key; known are: mount_options, depth",
        ),
        ({"none": {"depth": "deep"}}, "snapshotters.none: Expected `int`, got `str` - at `$.depth`"),
        ({"zfs": {}}, "snapshotters.zfs: no such snapshotter is installed; there are native, none"),
    ],
)
def test_a_wrong_table_is_refused_by_its_full_name(tmp_path, tables, message):
    with pytest.raises(InvalidArgument) as caught:
        load(tmp_path, tables, [NATIVE, point("none", "Unsupported")])
    assert str(caught.value) == message
