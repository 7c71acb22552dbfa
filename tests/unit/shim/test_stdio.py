"""Streams without a container: the test has both ends."""

import fcntl
import os
import socket
import stat
from pathlib import Path

import pytest

from runtimed.errors import InvalidArgument, RuntimedError
from shim.exits import Children
from shim.sinks import Origin, Sinks
from shim.stdio import Output, Paths, Pipes, path_of
from tests.unit.shim.loops import on_loop


def fifo(path):
    os.mkfifo(path)
    return str(path)


def test_an_output_fifo_keeps_a_reader(tmp_path):
    path = fifo(tmp_path / "out")
    output = Output.open(path, "stdout")
    os.write(output.writer, b"nobody reads")  # no SIGPIPE
    client = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    output.handed_over()
    assert os.read(client, 100) == b"nobody reads"
    assert os.read(client, 100) == b""  # and the end is seen, as the shim holds no writer
    output.close()
    os.close(client)


@pytest.mark.parametrize(("client_has", "holds"), [(64 << 10, 256 << 10), (1 << 20, 1 << 20)])
def test_an_output_fifo_is_made_to_hold_more_but_never_less(tmp_path, client_has, holds):
    path = fifo(tmp_path / "out")
    client = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    fcntl.fcntl(client, fcntl.F_SETPIPE_SZ, client_has)
    output = Output.open(path, "stdout")
    os.set_blocking(output.writer, False)
    assert os.write(output.writer, bytes(4 << 20)) == holds
    output.close()
    os.close(client)


def test_a_new_file_has_a_mode_that_lets_others_read_it(tmp_path):
    Output.open(f"file://{tmp_path}/log", "stdout").close()
    assert stat.S_IMODE((tmp_path / "log").stat().st_mode) & 0o600 == 0o600


def test_a_path_of_a_regular_file_is_appended_to(tmp_path):
    (tmp_path / "log").write_text("before\n")
    output = Output.open(str(tmp_path / "log"), "stdout")
    os.write(output.writer, b"after\n")
    output.close()
    assert (tmp_path / "log").read_text() == "before\nafter\n"


def test_a_file_uri_may_have_escapes_and_its_directories_are_made(tmp_path):
    output = Output.open(f"file://{tmp_path}/a%20b/c/log", "stdout")
    os.write(output.writer, b"text\n")
    output.close()
    assert (tmp_path / "a b" / "c" / "log").read_text() == "text\n"


def test_a_path_alone_is_taken_as_it_is(tmp_path):
    assert path_of("/a%20b", "stdout") == "/a%20b"


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("relative", "must be absolute"),
        ("file://relative", "must be absolute"),
        ("/a\0b", "must be absolute"),
        ("http://x/y", "scheme 'http' is not supported, use a FIFO, file://, cri:// or binary://"),
    ],
)
def test_what_is_no_stream_is_refused(uri, message):
    with pytest.raises(InvalidArgument, match=message):
        path_of(uri, "stdout")


def open_fds():
    return sorted(Path("/proc/self/fd").iterdir())


@on_loop
async def test_a_stream_that_fails_closes_those_before_it(tmp_path):
    before = open_fds()
    with pytest.raises(InvalidArgument):
        Pipes(Paths(fifo(tmp_path / "in"), fifo(tmp_path / "out"), "/no/such"), Sinks(Origin(Children(), "ns", "c1")))
    assert open_fds() == before


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_a_directory_or_a_socket_is_refused(tmp_path, scheme):
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(tmp_path / "socket"))
    for path in (tmp_path, tmp_path / "socket"):
        with pytest.raises(RuntimedError, match=str(path)):
            Output.open(f"{scheme}{path}", "stdout")
