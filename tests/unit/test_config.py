"""The configuration file: what is read, merged, refused."""

from collections.abc import Callable
from pathlib import Path

import pytest

from runtimed import config
from runtimed.errors import InvalidArgument, NotFound


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    def write(text: str, name: str = "config.toml") -> Path:
        path = tmp_path / name
        path.write_text(text)
        return path

    return write


def test_without_a_file_everything_has_a_default(monkeypatch, tmp_path):
    monkeypatch.setattr(config, "DEFAULT_PATH", tmp_path / "none.toml")
    loaded = config.load(None)
    assert loaded.root == Path("/var/lib/runtimed")
    assert loaded.address == "/run/runtimed/runtimed.sock"
    assert loaded.socket.mode == 0o660
    assert loaded.runtimes["io.containerd.runc.v2"].shim == "builtin"


def test_a_named_file_that_is_missing_is_an_error(tmp_path):
    with pytest.raises(NotFound, match=r"nowhere.toml: no such file; `runtimed config default` prints one"):
        config.load(tmp_path / "nowhere.toml")


def test_the_socket_lies_in_the_state_directory_unless_it_is_named(write):
    path = write('version = 1\nstate = "/x"\n')
    assert config.load(path).address == "/x/runtimed.sock"
    assert config.load(path, {"address": "/y/s"}).address == "/y/s"


def test_flags_win_over_the_file(write):
    path = write('version = 1\nroot = "/file"\n[log]\nlevel = "debug"\nformat = "json"\n')
    loaded = config.load(path, {"root": "/flag", "log": {"level": "error"}})
    assert (loaded.root, loaded.log) == (Path("/flag"), config.Log(level="error", format="json"))


def test_what_is_dumped_can_be_loaded(write):
    loaded = config.load(
        write(
            'version = 1\n[runtimes."my.crun.v1"]\nbinary = "crun"\n[snapshotters.overlayfs]\nmount_options = ["x"]\n'
            '[snapshotters.remote]\naddress = "/s"\nretries = 3\nnested = { a = true }\n'
        )
    )
    assert config.load(write(config.dump(loaded), "again.toml")) == loaded


def test_another_runtime_leaves_the_default_one_known(write):
    loaded = config.load(write('version = 1\n[runtimes."my.crun.v1"]\nbinary = "crun"\n'))
    assert set(loaded.runtimes) == {"io.containerd.runc.v2", "my.crun.v1"}


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("root = '/x'\n", "`version` is missing"),
        ("version = 2\n", "`version` is 2"),
        ("version = 1\nroots = '/x'\n", "config.toml:2: roots: unknown key"),
        ("version = 1\n\n[log]\n# comment\nlevle = 'info'\n", "config.toml:5: log.levle: unknown key"),
        ("version = 1\nlog.levle = 'info'\n", "config.toml:2: log.levle: unknown key"),
        ("version = 1\nlog = { levle = 'info' }\n", "config.toml:2: log.levle: unknown key"),
        ("version = 1\n[plugins]\n", "config.toml:2: plugins: unknown key"),
        (
            'version = 1\n[runtimes."io.x.y"]\nshim = "builtin"\n\nbinry = "x"\n',
            'config.toml:5: runtimes."io.x.y".binry: unknown key',
        ),
        ("version = 1\n[workers]\ncount = true\n", "config.toml:3: workers.count: must be a whole number, not True"),
        ("version = 1\n[metrics]\naddress = '0.0.0.0:1338'\n", "metrics.address: '0.0.0.0:1338' is neither"),
        ("version = 1\n[metrics]\naddress = '127.0.0.1:x'\n", "metrics.address: '127.0.0.1:x' is neither"),
        ("version = 1\n[metrics]\naddress = 'm.sock'\n", "metrics.address: 'm.sock' is neither the absolute path"),
        ("version = 1\n[workers]\ncount = 0\n", "workers.count: 0 is not between 1 and 64"),
        ("version = 1\nroot = 'relative'\n", "config.toml:2: root: 'relative' must be an absolute path"),
        ("version = 1\nlog = 3\n", "config.toml:2: log: must be a table"),
        ("version = 1\n[log]\nlevel = 'loud'\n", "log.level: 'loud' is not one of"),
        ("version = 1\nimports = 'x'\n", "config.toml:2: imports: must be a list"),
        ("version = 1\n[runtimes.a]\nshim = './x'\n", "runtimes.a.shim: './x' must be the name of a program"),
        ("version = 1\n[runtimes.'a.b']\nbinary = ''\n", "runtimes.\"a.b\".binary: '' must be the name of a program"),
        ("version = 1\n[runtimes.a]\nroot = 'x'\n", "runtimes.a.root: 'x' must be an absolute path"),
        ("version = 1\n[runtimes.a]\nconfig_type = 'x'\n", "runtimes.a.config_type: there is no config_path"),
        ("version = 1\n[runtimes.a]\nconfig_path = '/x'\n", "runtimes.a.config_path: the built-in shim reads no such"),
        ("version = 1\n[proxy_plugins.a]\naddress = 'x'\n", "proxy_plugins.a.address: 'x' must be the absolute"),
        ("version = 1\n[proxy_plugins.a]\ntype = 'content'\n", "proxy_plugins.a.type: 'content' is not"),
        ("version = 1\n[proxy_plugins.a]\ncapabilities = 'x'\n", "config.toml:3: proxy_plugins.a.capabilities: must"),
        ("version = 1\n[nri]\non_timeout = 'wait'\n", "nri.on_timeout: 'wait' is not one of open, closed, retry"),
        ("version = 1\n[nri]\nrequest_timeout_ms = 0\n", "nri.request_timeout_ms: 0 is not between 1 and 600000"),
        ("version = 1\n[nri]\nsocket = 'x'\n", "config.toml:3: nri.socket: 'x' must be an absolute path"),
        (f"version = 1\n[nri]\nsocket = '/{'x' * 107}'\n", f"nri.socket: /{'x' * 107} has 108 bytes, 107 fit"),
        (f"version = 1\n[metrics]\naddress = '/{'x' * 107}'\n", f"metrics.address: /{'x' * 107} has 108 bytes"),
        ("version = \n", "not TOML"),
    ],
)
def test_a_mistake_is_named_with_its_place(write, text, error):
    with pytest.raises(InvalidArgument) as raised:
        config.load(write(text))
    assert error in str(raised.value)


def test_imports_are_merged_over_the_file_in_order(write, tmp_path):
    (tmp_path / "conf.d").mkdir()
    write("version = 1\n[workers]\ncount = 3\n", "conf.d/1.toml")
    write("version = 1\n[workers]\ncount = 4\n[log]\nformat = 'json'\n", "conf.d/2.toml")
    loaded = config.load(write('version = 1\nimports = ["conf.d/*.toml"]\n[log]\nlevel = "debug"\n'))
    assert loaded.workers.count == 4
    assert loaded.log == config.Log(level="debug", format="json")


def test_a_mistake_in_an_import_is_named_with_the_imports_place(write):
    write("version = 1\nx = 1\n", "other.toml")
    with pytest.raises(InvalidArgument, match=r"other.toml:2: x: unknown key"):
        config.load(write('version = 1\nimports = ["other.toml"]\n'))


def test_a_file_that_imports_itself_is_refused(write):
    with pytest.raises(InvalidArgument, match="imports itself"):
        config.load(write('version = 1\nimports = ["config.toml"]\n'))


def test_an_import_that_is_missing_is_an_error_unless_it_is_a_pattern(write):
    with pytest.raises(NotFound, match=r"absent.toml"):
        config.load(write('version = 1\nimports = ["absent.toml"]\n'))
    config.load(write('version = 1\nimports = ["absent*.toml"]\n'))
