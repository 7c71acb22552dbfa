"""Logs as rctl reads them."""

import os
from datetime import datetime

import pytest

from runtimed.cli.logfile import LogFile, path_of
from runtimed.errors import FailedPrecondition, InvalidArgument, NotFound

NOW = "2026-01-02T03:04:05.000000006Z"


def shown(capsysbinary, log):
    log.copy()
    found = capsysbinary.readouterr()
    return found.out, found.err


def test_a_plain_file_is_copied_as_it_is_and_followed(tmp_path, capsysbinary):
    path = tmp_path / "a b"
    path.write_bytes(b"one\n\xff")
    with LogFile(path.as_uri()) as log:
        assert shown(capsysbinary, log) == (b"one\n\xff", b"")
        with path.open("ab") as file:
            file.write(b"more\n")
        assert shown(capsysbinary, log) == (b"more\n", b"")


def test_lines_of_kubernetes_format_are_taken_apart(tmp_path, capsysbinary):
    path = tmp_path / "log"
    path.write_text(
        f"{NOW} stdout F one\n{NOW} stderr F problem\n{NOW} stdout P begun \n{NOW} stdout P:x and \n"
        f"{NOW} stdout F ended\n{NOW} stdout F \n{NOW} std"
    )
    with LogFile(f"cri://{path}?max_line=100") as log:
        assert shown(capsysbinary, log) == (b"one\nbegun and ended\n\n", b"problem\n")
        with path.open("a") as file:
            file.write("out F late\n")
        assert shown(capsysbinary, log) == (b"late\n", b"")


def test_a_line_that_was_torn_is_shown_as_it_is(tmp_path, capsysbinary):
    path = tmp_path / "log"
    path.write_text(f"{NOW} st\n{NOW} stdout F next\n")
    with LogFile(f"cri://{path}") as log:
        assert shown(capsysbinary, log) == (f"{NOW} st\nnext\n".encode(), b"")


def test_a_log_that_is_rotated_is_followed_into_the_new_file(tmp_path, capsysbinary):
    path = tmp_path / "log"
    path.write_text(f"{NOW} stdout F one\n")
    with LogFile(f"cri://{path}") as log:
        assert shown(capsysbinary, log) == (b"one\n", b"")
        with path.open("a") as file:
            file.write(f"{NOW} stdout F two\n")
        path.rename(tmp_path / "log.1")
        assert shown(capsysbinary, log) == (b"two\n", b"")  # there is no new one yet
        path.write_text(f"{NOW} stdout F three\n")
        assert shown(capsysbinary, log) == (b"three\n", b"")


@pytest.mark.parametrize(("lines", "expected"), [(0, b""), (1, b"9\n"), (3, b"7\n8\n9\n"), (99, b"%d\n" * 10)])
def test_the_last_lines(tmp_path, capsysbinary, lines, expected):
    path = tmp_path / "log"
    path.write_text("".join(f"{NOW} stdout F {number}\n" for number in range(10)))
    with LogFile(f"cri://{path}") as log:
        log.skip_to_last(lines)
        assert shown(capsysbinary, log)[0] == (expected % tuple(range(10)) if lines == 99 else expected)


def test_what_is_no_readable_log_is_refused(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "link").symlink_to("/etc/passwd")
    with pytest.raises(FailedPrecondition, match="output goes to binary:///bin/x"):
        LogFile("binary:///bin/x")
    with pytest.raises(NotFound, match="log /no/such"):
        LogFile("file:///no/such")
    with pytest.raises(InvalidArgument, match="is not a regular file"):
        LogFile(f"cri://{tmp_path}/fifo")
    with pytest.raises(Exception, match="log .*/link: Too many levels"):
        LogFile(f"cri://{tmp_path}/link")
    assert path_of("/plain/fifo") is None


def test_lines_with_their_times_those_in_pieces_with_one(tmp_path, capsysbinary):
    path = tmp_path / "log"
    path.write_text(f"{NOW} stdout P one \n{NOW} stdout F line\nto{NOW} rn\n{NOW} stderr F two\n")
    with LogFile(f"cri://{path}", timestamps=True) as log:
        out, err = shown(capsysbinary, log)
    assert out == f"{NOW} one line\n- to{NOW} rn\n".encode()
    assert err == f"{NOW} two\n".encode()


@pytest.mark.parametrize(
    ("since", "expected"), [("03:04:06+00:00", b"b\nc\n"), ("04:04:06+01:00", b"b\nc\n"), ("09:00Z", b"")]
)
def test_lines_from_a_time_on(tmp_path, capsysbinary, since, expected):
    times = ["05.000000006Z", "06.5Z", "05.9Z"]  # the clock was put back
    path = tmp_path / "log"
    path.write_text("".join(f"2026-01-02T03:04:{at} stdout F {text}\n" for at, text in zip(times, "abc", strict=True)))
    with LogFile(f"cri://{path}", since=datetime.fromisoformat(f"2026-01-02T{since}")) as log:
        assert shown(capsysbinary, log)[0] == expected
