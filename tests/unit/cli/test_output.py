"""What is printed, and what never is."""

import json
import time

import pytest
from google.protobuf.any_pb2 import Any

from runtimed.api import events_pb2
from runtimed.api import transfer_types_pb2 as types
from runtimed.cli import output, progress
from runtimed.client.decode import any_to_json


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain ü", "plain ü"),
        ("\x1b[31mred", "\\x1b[31mred"),
        ("a\nb\tc\r", "a\\nb\\tc\\r"),
        ("\x9b2J", "\\x9b2J"),
        ("\u202egnp.exe", "\\u202egnp.exe"),
        ("\x7f\x00", "\\x7f\\x00"),
    ],
)
def test_nothing_that_steers_a_terminal_gets_through(text, shown):
    assert output.safe(text) == shown


def test_a_table_has_columns_and_shows_what_is_missing(capsys):
    output.print_table(("ID", "IMAGE"), [("a", "x"), ("longer", ""), ("\x1b", "y")])
    assert capsys.readouterr().out == "ID      IMAGE\na       x\nlonger  -\n\\x1b    y\n"


def test_json_is_one_line_of_ascii(capsys):
    output.print_json({"a": "ü\x1b\x9b"})
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    assert out.isascii()
    assert "\x1b" not in out
    assert json.loads(out) == {"a": "ü\x1b\x9b"}


def test_a_note_goes_to_stderr(capsys):
    output.note("two\nlines")
    assert capsys.readouterr() == ("", "rctl: two\\nlines\n")


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (5 << 30, "5.0 GiB"), (1 << 50, "1024.0 TiB")]
)
def test_sizes_are_for_people(count, text):
    assert output.size(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0 seconds"), (61, "1 minute"), (7200, "2 hours"), (90000, "1 day"), (-50, "0 seconds")]
)
def test_ages_are_for_people(seconds, text):
    assert output.age(time.time() - seconds) == text


def test_an_event_is_decoded_by_its_type():
    exited = events_pb2.TaskExit(container_id="c1", exit_status=7)
    packed = Any(type_url="containerd.events.TaskExit", value=exited.SerializeToString())
    assert any_to_json(packed) == {"container_id": "c1", "exit_status": 7}
    assert any_to_json(Any(type_url="a.b/Spec", value=b'{"x": 1}')) == {"x": 1}


@pytest.mark.parametrize(
    "packed",
    [
        Any(type_url="no.such.Type", value=b"\x01"),
        Any(type_url="containerd.events.TaskExit", value=b"\xff\xff"),
        Any(type_url="x", value=b"{not json"),
        Any(type_url="x", value=b'{"a":' * 100_000),
    ],
)
def test_what_cannot_be_decoded_is_shown_as_it_is(packed):
    assert any_to_json(packed) == {"@type": packed.type_url, "hex": packed.value.hex()}


def test_a_pull_is_told_in_lines_once_a_step(capsys):
    lines = progress.Lines()
    name = "layer-sha256:" + "ab" * 32
    for event, done in (("waiting", 0), ("downloading", 1), ("downloading", 5), ("complete", 10), ("complete", 10)):
        lines.report(types.Progress(event=event, name=name, progress=done, total=10))
    lines.report(types.Progress(event="saved \x1b[2J"))
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "layer abababababab: downloading", "layer abababababab: complete (10 B)", "saved \\x1b[2J"
    ]  # fmt: skip
