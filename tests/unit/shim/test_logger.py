"""Programs that take output, without a container: the test has the process's ends."""

import os
import signal
import subprocess
import sys

import pytest

from runtimed.errors import DeadlineExceeded, FailedPrecondition, InvalidArgument
from shim import logger, loop
from shim.exits import Children
from shim.logger import Logger
from shim.sinks import Origin
from tests.unit.shim.loops import on_loop

READY = "exec 5<&-\n"


@pytest.fixture
def program(tmp_path):
    """Write a program of a shell script and return its URI; {dir} is the test's directory."""

    def make(script, query=""):
        path = tmp_path / "logger program"
        path.write_text("#!/bin/sh\n" + script.replace("{dir}", f"'{tmp_path}'"))
        path.chmod(0o755)
        return f"binary://{tmp_path}/logger%20program{query}"

    return make


@pytest.fixture
def said(monkeypatch):
    """What the shim logs as warnings."""
    messages: list[str] = []
    monkeypatch.setattr("shim.log.warning", messages.append)
    return messages


def logger_of(uri):
    return Logger(uri, "stdout", Origin(Children(), "ns", "c1"))


async def ended(log):
    log.close()
    await log.closed()


def open_fds():
    return sorted(os.listdir("/proc/self/fd"))  # noqa: PTH208


@on_loop
async def test_the_program_gets_arguments_two_variables_and_six_descriptors(tmp_path, program):
    before = open_fds()
    script = (
        """
    env | grep -v '^PWD=\\|^_=\\|^SHLVL=' | sort >{dir}/env
    printf '%s\\n' "$0" "$@" >{dir}/args
    for fd in /proc/$$/fd/*; do echo ${fd##*/}=$(readlink $fd); done >{dir}/fds
    """
        + READY
        + "cat <&3 >{dir}/out; cat <&4 >{dir}/err"
    )
    log = logger_of(program(script, "?a=1&b=x%20y&c="))
    outputs = {name: log.output(name) for name in ("stdout", "stderr")}
    pipes = [os.readlink(f"/proc/self/fd/{output.reader}") for output in outputs.values()]  # noqa: PTH115
    await log.open()
    for name, output in outputs.items():
        os.write(output.writer, name.encode())
        output.handed_over()
    await log.drained()
    await ended(log)
    assert (tmp_path / "out").read_text() == "stdout"
    assert (tmp_path / "err").read_text() == "stderr"
    assert (tmp_path / "args").read_text().split("\n")[:-1] == [
        *(f"{tmp_path}/logger program", "a", "1", "b", "x y", "c", "")
    ]
    assert (tmp_path / "env").read_text().splitlines() == ["CONTAINER_ID=c1", "CONTAINER_NAMESPACE=ns"]
    fds = dict(line.split("=", 1) for line in (tmp_path / "fds").read_text().splitlines())
    assert {fds[number] for number in "01"} <= {"/dev/null", f"{tmp_path}/fds"}  # the shell has its redirection
    assert [fds["3"], fds["4"]] == pipes
    assert [target for target in fds.values() if target in pipes] == pipes  # no other descriptor of theirs
    assert open_fds() == before


# In a process of its own, in which the reader of stderr is descriptor 3, the place of stdout in the program.
CROSSWISE = """
import os, sys
from shim import loop
from shim.exits import Children
from shim.logger import Logger
from shim.sinks import Origin

async def main():
    os.close(3)
    log = Logger(sys.argv[1], "stdout", Origin(Children(), "ns", "c1"))
    outputs = {name: log.output(name) for name in ("stderr", "stdout")}
    assert outputs["stderr"].reader == 3, outputs["stderr"].reader
    await log.open()
    for name, output in outputs.items():
        os.write(output.writer, name.encode())
        output.handed_over()
    await log.drained()
    log.close()
    await log.closed()

assert os.open("/dev/null", os.O_RDONLY) == 3
loop.run(main())
"""


def test_descriptors_that_lie_in_the_programs_places_are_moved(tmp_path, program):
    uri = program(READY + "cat <&3 >{dir}/out; cat <&4 >{dir}/err")
    subprocess.run([sys.executable, "-c", CROSSWISE, uri], check=True, timeout=30)
    assert (tmp_path / "out").read_text() == "stdout"
    assert (tmp_path / "err").read_text() == "stderr"


@on_loop
async def test_of_a_stream_that_goes_elsewhere_the_program_sees_the_end_at_once(tmp_path, program):
    log = logger_of(program(READY + "cat <&4 >{dir}/err; cat <&3 >{dir}/out"))
    output = log.output("stdout")
    await log.open()
    os.write(output.writer, b"text")
    output.handed_over()
    await log.drained()
    await ended(log)
    assert (tmp_path / "out").read_text() == "text"


@on_loop
async def test_a_program_that_has_died_neither_kills_nor_holds_up_the_process(program, said):
    log = logger_of(program(READY + "read line <&3; exit 3"))
    output = log.output("stdout")
    await log.open()
    os.write(output.writer, b"go\n")
    await log.drained()
    for _ in range(50):  # much more than a pipe holds
        os.write(output.writer, b"x" * 60000)
        await loop.sleep(0)
    output.handed_over()
    while log._dropping:
        await loop.sleep(0)
    before = open_fds()
    await ended(log)
    assert len(open_fds()) == len(before) - 1  # the reader that held the pipe
    assert said == [
        f"logger {log._argv[0]!r} has ended with status 3: the output is dropped",
        f"logger {log._argv[0]!r}: 3000000 bytes of output were dropped after its end",
    ]


@on_loop
async def test_a_program_that_ends_before_it_is_ready_is_an_error(program):
    before = open_fds()
    log = logger_of(program("exit 4"))
    log.output("stdout")
    with pytest.raises(FailedPrecondition, match="logger program' ended with status 4 before it was ready"):
        await log.open()
    await ended(log)
    assert open_fds() == before


@on_loop
async def test_a_program_that_is_never_ready_is_killed(program, monkeypatch):
    monkeypatch.setattr(logger, "_READY_LIMIT_S", 0.1)
    log = logger_of(program("trap '' TERM; exec sleep 60"))
    log.output("stdout")
    with pytest.raises(DeadlineExceeded, match=r"logger program' was not ready within 0.1 s; it must close its desc"):
        await log.open()
    await ended(log)
    assert (await log._child.exited).status == 128 + signal.SIGKILL


@on_loop
async def test_a_program_without_an_interpreter_is_an_error(tmp_path):
    path = tmp_path / "logger"
    path.write_text("#!/no/such/interpreter\n")
    path.chmod(0o755)
    log = logger_of(f"binary://{path}")
    with pytest.raises(FailedPrecondition, match="logger .* cannot be started: No such file or directory"):
        await log.open()
    await ended(log)


@on_loop
async def test_a_program_is_asked_to_end_and_then_made_to(program, monkeypatch, said):
    monkeypatch.setattr(logger, "_END_LIMIT_S", 0.2)
    asked = logger_of(program("trap 'exit 6' TERM\n" + READY + "while :; do sleep 0.05; done"))
    await asked.open()
    await ended(asked)
    assert (await asked._child.exited).status == 6
    assert said == []
    made = logger_of(program("trap '' TERM\n" + READY + "while :; do sleep 0.05; done"))
    await made.open()
    await ended(made)
    assert (await made._child.exited).status == 128 + signal.SIGKILL
    assert said == [f"logger {made._argv[0]!r} did not end within 0.2 s of SIGTERM: killed"]


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("binary://log", "the path of the program must be absolute"),
        ("binary://host/bin/true", "the path of the program must be absolute"),
        ("binary:///bin/tr%00ue", "the path of the program must be absolute"),
        ("binary:///no/such/program", "/no/such/program: No such file or directory"),
        ("binary:///etc/passwd", "/etc/passwd is not a program: make it executable"),
        ("binary:///tmp", "/tmp is not a program"),
        ("binary:///bin/sh?a=b%00", "an argument has a NUL in it"),
    ],
)
def test_what_is_no_program_is_refused(uri, message):
    with pytest.raises(InvalidArgument, match=message):
        logger_of(uri)
