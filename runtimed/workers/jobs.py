"""What the daemon and a worker process say to each other: a JSON object a line, over a socket pair."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from runtimed.diff.compression import Compression
from runtimed.mounts import Mount
from runtimed.workers.tls import Tls


class Apply(msgspec.Struct, frozen=True, kw_only=True, tag="apply"):
    """Make the layer *blob* the file *target*, or extract it over what *mounts* show on *mountpoint*; durably."""

    blob: Path
    media_type: str
    mounts: tuple[Mount, ...]
    mountpoint: Path  # an existing empty directory; each worker mounts in a mount namespace of its own
    target: Path | None  # None: extract it; else the file, if one can express the layer


class Receive(msgspec.Struct, frozen=True, kw_only=True, tag="receive"):
    """Write the uncompressed layer *blob* to a file in *directory*, and keep that for the next job, :class:`Finish`."""

    blob: Path
    media_type: str
    directory: Path


class Follow(msgspec.Struct, frozen=True, tag="follow"):
    """Do what :class:`Receive` does, of a file that grows: as messages :class:`Grown` say, up to the last of them.

    How it is compressed, its bytes tell. If it is not, its digest is the diff ID, and whoever writes it has that.
    """

    path: Path
    directory: Path


class Grown(msgspec.Struct, frozen=True, tag="grown"):
    """The file that is followed has *size* bytes; *is_whole*: and will have no more."""

    size: int
    is_whole: bool = False


class Finish(msgspec.Struct, frozen=True, kw_only=True, tag="finish"):
    """Make what was received the layer file *target* of the active snapshot that *mounts* show."""

    mounts: tuple[Mount, ...]
    mountpoint: Path
    target: Path


class Fetch(msgspec.Struct, frozen=True, tag="fetch"):
    """Append what *url* has from *offset* (bytes) on to the file *path*, until it holds *size* bytes of *digest*.

    The file is cut to *offset* first. *headers* and what *tls* says of us go to the host of *url* only. Up to
    *connections* are used at a time where one brings little.

    With a *directory* it is a layer of *media_type*, of which :class:`Receive` is done on the way, if that can be.
    """

    url: str
    headers: Mapping[str, str]
    path: Path
    offset: int
    size: int
    digest: str
    tls: Tls = Tls()
    connections: int = 1
    directory: Path | None = None
    media_type: str = ""


class Check(msgspec.Struct, frozen=True, tag="check"):
    """Check the layer file *file*."""

    file: Path


class Diff(msgspec.Struct, frozen=True, kw_only=True, tag="diff"):
    """Write the layer that makes what *upper* shows of what *lower* shows to the file *path*, which is emptied first.

    Both are mounted read-only below *mountpoint*, as for :class:`Apply`. No time in it is later than *epoch* (seconds
    since 1970), if there is one.
    """

    lower: tuple[Mount, ...]
    upper: tuple[Mount, ...]
    mountpoint: Path
    path: Path
    compression: Compression
    epoch: int | None = None


class Progress(msgspec.Struct, frozen=True, tag="progress"):
    """A job goes on; *offset* is the size of the file so far, in bytes. At most ten a second."""

    offset: int


class Done(msgspec.Struct, frozen=True, kw_only=True, tag="done"):
    """A job succeeded: the digest of a file or the diff ID of an applied layer, and its size in bytes.

    Of a layer file that is checked, the diff ID and the size of what it was made of. *diff_id* is that of a layer that
    was written to a file, or received while it was fetched (*tar_size* bytes; "": it was not).
    """

    digest: str = ""
    size: int = 0
    diff_id: str = ""
    tar_size: int = 0
    must_extract: str = ""  # why no file can express the layer: it has been extracted, or after Finish has yet to be


class Failed(msgspec.Struct, frozen=True, kw_only=True, tag="failed"):
    """A job failed: an error of runtimed.errors by its code; with a traceback if it is a bug.

    *retry_after_s* is how long the peer wants to be left alone, if it said so.
    """

    code: int
    message: str
    traceback: str = ""
    retry_after_s: float | None = None


Job = Apply | Receive | Follow | Finish | Fetch | Check | Diff
Answer = Progress | Done | Failed


def subject_of(job: Job) -> str:
    """Return what *job* is called in errors."""
    match job:
        case Fetch():
            return f"fetching {job.digest}"
        case Finish():
            return f"layer file {str(job.target)!r}"
        case Check():
            return f"layer file {str(job.file)!r}"
        case Follow():
            return f"layer in {str(job.path)!r}"
        case Diff():
            return "layer of what two snapshots differ in"
    return f"layer {job.blob.name}"


def _to_path(kind: type, value: Any) -> Any:
    return kind(value)


_encoder = msgspec.json.Encoder(enc_hook=os.fspath)
_jobs = msgspec.json.Decoder(Job, dec_hook=_to_path)
_growths = msgspec.json.Decoder(Grown)
_answers = msgspec.json.Decoder(Answer, dec_hook=_to_path)


def encode(message: Job | Grown | Answer) -> bytes:
    """Return *message* as a line."""
    return _encoder.encode(message) + b"\n"


def decode_job(line: bytes) -> Job:
    """Return the job in *line*."""
    job: Job = _jobs.decode(line)
    return job


def decode_growth(line: bytes) -> Grown:
    """Return what *line* says of the file that is followed."""
    growth: Grown = _growths.decode(line)
    return growth


def decode_answer(line: bytes) -> Answer:
    """Return the answer in *line*."""
    answer: Answer = _answers.decode(line)
    return answer
