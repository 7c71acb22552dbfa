"""Logs in Kubernetes' format: lines, rotation, disks that fail. The test has the process's ends."""

import os
import random
import re
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from runtimed.errors import InvalidArgument, NotFound, RuntimedError
from shim import loop, poller
from shim.crilog import CriLog, Lines
from shim.exits import Children
from shim.sinks import Origin, Sinks
from tests.unit.shim.loops import on_loop

NOW = b"2026-01-02T03:04:05.000000006Z"
LINE = re.compile(r"(\S+) (stdout|stderr) ([PF]) (.*)", re.DOTALL)


def parsed(text):
    """Return what a reader of the log sees: stream, tag and text of each line."""
    assert not text or text.endswith("\n")
    found = []
    for line in text.split("\n")[:-1]:
        match = LINE.fullmatch(line)
        assert match, line
        found.append(match.groups()[1:])
    return found


def joined(lines, stream="stdout"):
    """Return the bytes that a process wrote."""
    return "".join(text + "\n" * (tag == "F") for found, tag, text in lines if found == stream)


class Log:
    """A log of which the test writes the streams."""

    def __init__(self, path, query="", streams=("stdout", "stderr")):
        self.path = Path(path)
        self.log = CriLog(f"cri://{path}{query}", "stdout", Origin(Children(), "ns", "c1"))
        self.outputs = {name: self.log.output(name) for name in streams}

    async def __aenter__(self):
        await self.log.open()
        return self

    async def __aexit__(self, *exc):
        for output in self.outputs.values():
            output.close()
        self.log.close()
        await self.log.closed()

    def write(self, data, stream="stdout"):
        os.write(self.outputs[stream].writer, data)

    async def put(self, data, stream="stdout"):
        """Write, and let the log take it."""
        self.write(data, stream)
        self.log.settle()

    async def end(self):
        for output in self.outputs.values():
            output.handed_over()
        await self.log.drained()

    @property
    def lines(self):
        return parsed(self.path.read_text())


# Lines


def test_a_line_has_time_stream_tag_and_text():
    assert Lines("stdout", 100).cut(b"one\n\ntwo\n", NOW) == (
        b"2026-01-02T03:04:05.000000006Z stdout F one\n"
        b"2026-01-02T03:04:05.000000006Z stdout F \n"
        b"2026-01-02T03:04:05.000000006Z stdout F two\n"
    )


def test_the_beginning_of_a_line_waits_for_its_end():
    lines = Lines("stderr", 100)
    assert lines.cut(b"on", NOW) == b""
    assert lines.cut(b"e\ntw", NOW) == NOW + b" stderr F one\n"
    assert lines.end(NOW) == NOW + b" stderr P tw\n"
    assert lines.end(NOW) == b""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"abcd\n", [("F", "abcd")]),
        (b"abcde\n", [("P", "abcd"), ("F", "e")]),
        (b"abcdefgh\n", [("P", "abcd"), ("F", "efgh")]),
        (b"x\nabcdefghi\n\n", [("F", "x"), ("P", "abcd"), ("P", "efgh"), ("F", "i"), ("F", "")]),
        (b"abcdef", [("P", "abcd"), ("P", "ef")]),
        (b"\xff\xfe\n", [("F", "\udcff\udcfe")]),
    ],
)
def test_what_is_longer_than_the_limit_is_in_parts(text, expected):
    lines = Lines("stdout", 4)
    log = lines.cut(text, NOW) + lines.end(NOW)
    assert [line[1:] for line in parsed(log.decode(errors="surrogateescape"))] == expected


def test_the_lines_do_not_depend_on_how_the_bytes_arrive():
    dice = random.Random(4)
    for _ in range(300):
        data = bytes(dice.choices(b"ab\n", weights=(8, 8, 1 + dice.randrange(4)), k=dice.randrange(200)))
        whole = Lines("stdout", 16)
        expected = whole.cut(data, NOW) + whole.end(NOW)
        parts, got, position = Lines("stdout", 16), b"", 0
        while position < len(data):
            step = dice.randrange(1, 40)
            got += parts.cut(data[position : position + step], NOW)
            position += step
        assert got + parts.end(NOW) == expected
        assert joined(parsed(expected.decode())) == data.decode()


# The file


@on_loop
async def test_both_streams_are_in_one_file_that_only_its_group_may_read(tmp_path):
    async with Log(tmp_path / "log") as log:
        await log.put(b"out\n")
        await log.put(b"err\n", "stderr")
        await log.put(b"out again\n")
        assert log.lines == [("stdout", "F", "out"), ("stderr", "F", "err"), ("stdout", "F", "out again")]
        assert stat.S_IMODE(log.path.stat().st_mode) == 0o640


@on_loop
async def test_the_time_is_now_in_utc(tmp_path):
    async with Log(tmp_path / "log") as log:
        await log.put(b"x\n")
        text = log.path.read_text().split()[0]
        assert len(text) == len("2026-01-02T03:04:05.000000006Z")
        assert abs(datetime.fromisoformat(text) - datetime.now(UTC)) < timedelta(minutes=1)


@on_loop
async def test_at_the_end_of_a_stream_its_last_line_is_a_part(tmp_path):
    async with Log(tmp_path / "log", "?max_line=8") as log:
        log.write(b"0123456789abcdefXY")
        log.write(b"whole\n", "stderr")
        await log.end()
        assert [line for line in log.lines if line[0] == "stdout"] == [
            ("stdout", "P", "01234567"),
            ("stdout", "P", "89abcdef"),
            ("stdout", "P", "XY"),
        ]
        assert ("stderr", "F", "whole") in log.lines


@on_loop
async def test_what_was_there_stays_and_more_is_appended(tmp_path):
    (tmp_path / "log").write_text("before\n")
    async with Log(tmp_path / "log") as log:
        await log.put(b"x\n")
        assert log.path.read_text().startswith("before\n2")


@on_loop
async def test_a_log_that_was_renamed_goes_on_in_a_new_file(tmp_path):
    async with Log(tmp_path / "log") as log:
        await log.put(b"one\nbegun ")
        log.path.rename(tmp_path / "log.1")
        await log.put(b"two\n")
        assert parsed((tmp_path / "log.1").read_text()) == [("stdout", "F", "one")]
        assert log.lines == [("stdout", "F", "begun two")]
        log.path.rename(tmp_path / "log.2")
        log.path.touch(0o600)  # as a kubelet's ReopenContainerLog may have it
        await log.put(b"three\n")
        assert log.lines == [("stdout", "F", "three")]
        assert stat.S_IMODE(log.path.stat().st_mode) == 0o600


@on_loop
async def test_a_log_that_was_removed_or_truncated_goes_on(tmp_path):
    async with Log(tmp_path / "log") as log:
        await log.put(b"one\n")
        log.path.unlink()
        await log.put(b"two\n")
        assert log.lines == [("stdout", "F", "two")]
        os.truncate(log.path, 0)
        await log.put(b"three\n")
        assert log.lines == [("stdout", "F", "three")]


@on_loop
async def test_without_a_new_file_the_log_goes_on_in_the_old_one(tmp_path):
    directory = tmp_path / "logs"
    directory.mkdir()
    async with Log(directory / "log") as log:
        await log.put(b"one\n")
        directory.rename(tmp_path / "moved")
        await log.put(b"two\n")
        (tmp_path / "moved").rename(directory)
        await log.put(b"three\n")
        assert [text for *_, text in log.lines] == ["one", "two", "three"]


@on_loop
async def test_a_link_in_the_place_of_the_log_is_not_followed(tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("mine\n")
    async with Log(tmp_path / "log") as log:
        await log.put(b"one\n")
        log.path.unlink()
        log.path.symlink_to(victim)
        await log.put(b"two\n")
    assert victim.read_text() == "mine\n"


def fill(log):
    """Have every write to the open file fail with ENOSPC."""
    full = os.open("/dev/full", os.O_WRONLY)
    os.dup2(full, log.log._file._fd)
    os.close(full)


@on_loop
async def test_a_disk_that_fails_loses_output_and_tells_how_much(tmp_path):
    async with Log(tmp_path / "log") as log:
        await log.put(b"before\n")
        fill(log)
        await log.put(b"lost\n" * 10)
        await log.put(b"lost", "stderr")  # only begun: it is not lost yet
        await log.put(b"lost\n" * 20)
        log.path.rename(tmp_path / "log.1")  # a new file, on which there is room
        await log.put(b"after\n")
        assert [text for *_, text in log.lines] == [
            "[runtimed: 150 bytes of output could not be written and are lost]",
            "after",
        ]


@on_loop
async def test_a_line_that_was_written_in_part_does_not_spoil_the_next(tmp_path, limited_file_size):
    async with Log(tmp_path / "log") as log:
        await log.put(b"first\n")
        size = log.path.stat().st_size
        with limited_file_size(size + 45):
            await log.put(b"0123456789\nnot at all\n")
            assert log.path.read_text().endswith(" stdout F 01234")  # head 40, text 5
            await log.put(b"nor this\n")
        await log.put(b"last\n")
        assert [text for *_, text in log.lines] == [
            "first",
            "01234",
            f"[runtimed: {len('0123456789_not at all_nor this_')} bytes of output could not be written and are lost]",
            "last",
        ]


@pytest.fixture
def limited_file_size():
    import contextlib
    import resource

    @contextlib.contextmanager
    def limited(size):
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    return limited


@on_loop
async def test_a_process_never_waits_for_a_disk_that_fails(tmp_path):
    async with Log(tmp_path / "log") as log:
        await log.put(b"x\n")
        fill(log)
        for _ in range(100):  # more than any pipe holds
            log.write(b"y" * 60000 + b"\n")
            await loop.sleep(0)
        await log.end()


@on_loop
async def test_settling_ends_though_somebody_writes_for_ever(tmp_path):
    async with Log(tmp_path / "log") as log:
        zeros = os.open("/dev/zero", os.O_RDONLY)  # never empty
        poller.remove_reader(log.log._streams[0]._reader)  # which epoll does not take
        log.log._streams[0]._is_watched = False
        os.dup2(zeros, log.log._streams[0]._reader)
        os.close(zeros)
        log.log.settle()
        assert log.path.stat().st_size > 1 << 20


@on_loop
async def test_the_process_sees_the_owner_of_its_streams(tmp_path):
    if os.geteuid() != 0:
        pytest.skip("needs root to give a pipe away")
    log = CriLog(f"cri://{tmp_path}/log", "stdout", Origin(Children(), "ns", "c1", 1234, 4321))
    output = log.output("stdout")
    found = os.fstat(output.writer)
    assert (found.st_uid, found.st_gid) == (1234, 4321)
    output.close()
    log.close()


# What is refused


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("cri://relative/log", "the path must be absolute"),
        ("cri:///a%00b", "the path must be absolute"),
        ("cri:///log?max_line=0", "max_line must be a number of bytes from 1 to"),
        ("cri:///log?max_line=99999999", "max_line must be"),
        ("cri:///log?max_line=", "max_line must be"),
        ("cri:///log?max_lines=5", "there is no option 'max_lines', only max_line"),
    ],
)
def test_what_names_no_log_is_refused(uri, message):
    with pytest.raises(InvalidArgument, match=message):
        CriLog(uri, "stdout", Origin(Children(), "ns", "c1"))


@on_loop
async def test_a_log_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    os.mkfifo(tmp_path / "fifo")
    for name, error in (
        ("no/such/log", NotFound),
        ("link", RuntimedError),
        ("fifo", RuntimedError),
        ("", RuntimedError),
    ):
        log = CriLog(f"cri://{tmp_path}/{name}", "stdout", Origin(Children(), "ns", "c1"))
        with pytest.raises(error, match=str(tmp_path)):
            await log.open()
        log.close()


@on_loop
async def test_one_uri_is_one_log_and_closing_it_leaves_no_descriptor(tmp_path):
    before = sorted(os.listdir("/proc/self/fd"))  # noqa: PTH208
    sinks = Sinks(Origin(Children(), "ns", "c1"))
    uri = f"cri://{tmp_path}/a%20b"
    outputs = [sinks.output(uri, "stdout"), sinks.output(uri, "stderr")]
    await sinks.open()
    for output, text in zip(outputs, (b"one\n", b"two\n"), strict=True):
        os.write(output.writer, text)
        output.handed_over()
    await sinks.drained()
    sinks.close()
    assert [text for *_, text in parsed((tmp_path / "a b").read_text())] == ["one", "two"]
    assert sorted(os.listdir("/proc/self/fd")) == before  # noqa: PTH208
