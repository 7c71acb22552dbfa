"""What options mean."""

import pytest

from runtimed.cli import options
from runtimed.cli.run import split_words
from runtimed.cli.tasks import signal_number
from runtimed.errors import InvalidArgument, NotFound


@pytest.mark.parametrize(
    ("text", "count"), [("0", 0), ("512", 512), ("1k", 1024), ("64m", 64 << 20), ("2G", 2 << 30), ("1mib", 1 << 20)]
)
def test_sizes_are_in_units_of_1024(text, count):
    assert options.memory(text) == count


@pytest.mark.parametrize("text", ["", "m", "1.5g", "-1", "1x", "9" * 40])
def test_a_size_that_cannot_be_read_is_refused(text):
    with pytest.raises(InvalidArgument, match="size"):
        options.memory(text)


def test_a_volume_is_a_bind_mount_of_an_existing_path(tmp_path):
    (mount,) = options.volumes([f"{tmp_path}:/data:ro"])
    assert (mount.source, mount.destination, mount.options) == (str(tmp_path), "/data", ("rbind", "ro"))
    (mount,) = options.volumes([f"{tmp_path}:/data"])
    assert mount.options == ("rbind", "rw")


@pytest.mark.parametrize("text", ["/x", ":/y", "/tmp:/", "/tmp:data", "/tmp:/a/../b", "/tmp:/a:rx", "/tmp:/a:ro:z"])
def test_a_volume_that_cannot_be_is_refused(text):
    with pytest.raises(InvalidArgument, match="volume"):
        options.volumes([text])


def test_a_volume_that_does_not_exist_is_not_made(tmp_path):
    with pytest.raises(NotFound, match="make it first"):
        options.volumes([f"{tmp_path}/none:/data"])


def test_the_environment_comes_from_files_then_options_then_ours(tmp_path, monkeypatch):
    (tmp_path / "env").write_text("# comment\n\nA=1\nOURS\nUNSET\n")
    monkeypatch.setenv("OURS", "x")
    monkeypatch.delenv("UNSET", raising=False)
    assert options.environment(["B=2", "A="], [str(tmp_path / "env")]) == ["A=1", "OURS=x", "B=2", "A="]


def test_an_environment_file_must_be_there_and_be_text(tmp_path):
    with pytest.raises(NotFound, match="environment file"):
        options.environment([], [str(tmp_path / "none")])
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    with pytest.raises(InvalidArgument, match="not UTF-8"):
        options.environment([], [str(tmp_path / "binary")])


def test_labels_have_a_key():
    assert options.labels(["a=b=c", "d"]) == {"a": "b=c", "d": ""}
    with pytest.raises(InvalidArgument, match="label"):
        options.labels(["=x"])


@pytest.mark.parametrize(
    ("words", "args"),
    [(("c1", "sh"), ("sh",)), (("c1", "--", "sh"), ("sh",)), (("c1",), ()), (("c1", "sh", "--"), ("sh", "--"))],
)
def test_the_first_word_is_the_id(words, args):
    assert split_words(words) == ("c1", args)


@pytest.mark.parametrize(("words", "args"), [((), ()), (("--",), ()), (("--", "sh", "-c"), ("sh", "-c"))])
def test_without_an_id_there_is_a_readable_one(words, args):
    id, rest = split_words(words)
    assert id.count("-") == 2
    assert rest == args


def test_an_id_that_is_a_path_is_refused():
    with pytest.raises(InvalidArgument, match="container ID"):
        split_words(("../x",))


@pytest.mark.parametrize(("text", "number"), [("9", 9), ("KILL", 9), ("sigterm", 15), ("RTMIN+3", 37), ("SIGUSR1", 10)])
def test_signals_have_names_and_numbers(text, number):
    assert signal_number(text) == number


@pytest.mark.parametrize("text", ["", "0", "-9", "65", "99999999", "FOO", "TERM+1", "RTMIN+99", "RTMIN+x"])
def test_what_is_not_a_signal_is_refused(text):
    with pytest.raises(InvalidArgument, match="signal"):
        signal_number(text)
