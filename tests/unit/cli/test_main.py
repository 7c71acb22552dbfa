"""rctl as a program: arguments, errors, exit statuses. No daemon is needed to be wrong."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from runtimed.cli.main import call

REPO = Path(__file__).parents[3]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["frobnicate"], "No such command"),
        (["run"], "Missing argument"),
        (["kill"], "Missing argument"),
        (["-o", "xml", "ps"], "xml"),
        (["run", "--rm", "-d", "x"], "-d goes neither with --rm"),
        (["run", "--log", "/tmp/x", "x"], "--log is for -d"),
        (["run", "--log-uri", "cri:///tmp/x", "x"], "--log-uri is for -d"),
        (["run", "-d", "--log", "/tmp/x", "--log-uri", "cri:///tmp/x", "x"], "say the same"),
        (["exec", "-d", "-t", "c", "sh"], "-d goes neither with -t"),
        (["exec", "c", "--"], ""),
        (["logs", "-n", "-1", "c"], "-1"),
    ],
)
def test_wrong_usage_is_status_2_with_a_hint(capfd, arguments, said):
    assert call(arguments) == 2
    out, err = capfd.readouterr()
    assert out == ""
    first, second = err.splitlines()
    assert first.startswith("rctl: ")
    assert said in first
    assert second.startswith("hint: see 'rctl")


def test_no_command_shows_the_help_and_is_wrong_usage(capfd):
    assert call([]) == 2
    assert "Usage: rctl" in capfd.readouterr().err


def test_every_command_has_help(capfd):
    assert call(["--help"]) == 0
    commands = [line.split()[0] for line in capfd.readouterr().out.partition("Commands:")[2].splitlines() if line]
    assert len(commands) >= 14
    for command in commands:
        assert call([command, "--help"]) == 0
        assert f"Usage: rctl {command}" in capfd.readouterr().out


def test_a_missing_socket_says_how_to_get_a_daemon(capfd, tmp_path):
    assert call(["-a", f"{tmp_path}/none.sock", "ps"]) == 1
    assert capfd.readouterr().err.splitlines() == [
        f"rctl: no daemon at {tmp_path}/none.sock: there is no such socket",
        "hint: start it with 'runtimed', or give the address of a running one (rctl: --address)",
    ]


def test_a_socket_that_nobody_serves_is_told_apart(capfd, tmp_path):
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(f"{tmp_path}/dead.sock")
    assert call(["-a", f"unix://{tmp_path}/dead.sock", "ps"]) == 1
    assert "nobody listens on the socket" in capfd.readouterr().err


def test_an_address_that_is_too_long_for_a_socket_is_told(capfd):
    assert call(["-a", "/" + "x" * 200, "ps"]) == 1
    assert "longer than 107 bytes" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["kill", "-s", "FOO", "c"], "'FOO' is not a signal"),
        (["run", "x", "../c"], "container ID '../c'"),
        (["run", "-t", "x"], "leave -t out"),
        (["pull", "UPPER"], "must be in lower case"),
        (["pull", "--platform", "a b", "x"], "platform 'a b'"),
    ],
)
def test_a_wrong_value_is_one_line_and_status_1(capfd, monkeypatch, arguments, said):
    with open(os.devnull) as nothing:  # noqa: PTH123 - a device, not a path
        monkeypatch.setattr(sys, "stdin", nothing)
        assert call(arguments) == 1
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("rctl: ")
    assert said in line


def test_a_traceback_is_for_debug_only(capfd, tmp_path):
    call(["--debug", "-a", f"{tmp_path}/none", "ps"])
    assert "Traceback" in capfd.readouterr().err


def test_escapes_in_names_do_not_reach_the_terminal(capfd, tmp_path):
    call(["-a", f"{tmp_path}/\x1b[2J", "ps"])
    assert "\x1b" not in capfd.readouterr().err


@pytest.mark.parametrize("variable", ["RUNTIMED_NAMESPACE", "CONTAINERD_NAMESPACE"])
def test_address_and_namespace_come_from_the_environment(capfd, monkeypatch, tmp_path, variable):
    monkeypatch.setenv("RUNTIMED_ADDRESS", f"{tmp_path}/from-env")
    monkeypatch.setenv(variable, "x")
    assert call(["ps"]) == 1
    assert f"{tmp_path}/from-env" in capfd.readouterr().err


def test_run_loads_nothing_that_takes_long():
    code = (
        "import os, sys; sys.argv = ['rctl', 'run', '--help']; os._exit = lambda status: print(*loaded());\n"
        "def loaded(): return (name for name, module in sys.modules.items() if type(module) is type(sys))\n"
        "from runtimed.cli.program import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True, check=True)
    loaded = set(done.stdout.splitlines()[-1].split())
    assert "runtimed.cli.run" in loaded
    assert not loaded & {"grpc", "ssl", "_ssl", "_hashlib", "ctypes", "random", "tempfile", "typing_extensions"}
    assert not loaded & {"runtimed.cli.pull", "runtimed.mounts", "google.protobuf.internal.python_message"}


def test_a_command_loads_neither_rich_nor_the_other_commands():
    code = (
        "import sys; from runtimed.cli.main import call; call(['-a', '/none', 'version']);"
        " print(*(name for name in sys.modules if name.startswith(('rich', 'runtimed.cli', 'aiohttp', 'structlog'))))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True, check=True)
    loaded = set(done.stdout.splitlines()[-1].split())
    cli = {f"runtimed.cli{name}" for name in ("", ".main", ".client", ".complete", ".lazy", ".output", ".server")}
    assert loaded == cli | {f"runtimed.client{name}" for name in ("", ".client", ".connection")}
