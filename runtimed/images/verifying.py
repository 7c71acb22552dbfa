"""Programs that decide whether an image may be used, asked before anything of it but its root document is fetched.

Each program in ``[image_verification] directory`` is called as containerd's verifiers are::

    PROGRAM -name NAME -digest DIGEST -stdin-media-type application/vnd.oci.descriptor.v1+json   < DESCRIPTOR

Exit status 0 is yes, and what it prints to stdout is the reason, either way. All must say yes. A program that cannot be
run, is ended by a signal or takes too long has no verdict: with ``fail_closed`` the image is refused, else it is taken
and a warning logged.

The programs are root's and believed. They get nothing of the daemon's: no environment, no descriptors, and are in a
session of their own, which ends with their time.
"""

import asyncio
import hashlib
import json
import logging
import os
import re
import signal
import stat
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from runtimed import labels
from runtimed.config import ImageVerification
from runtimed.errors import FailedPrecondition, NotFound, PermissionDenied, os_errors
from runtimed.metadata.content import Content
from runtimed.oci.descriptor import Descriptor
from runtimed.threads import blocking

log = logging.getLogger(__name__)

_MOST_OUTPUT = 16 << 10  # bytes of reason that are read; a program that writes more is not waited for longer
_MOST_REASON = 256  # characters of it that are kept
_ENVIRONMENT = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}


@dataclass(frozen=True, slots=True)
class Verdict:
    """What one program said; without a verdict (None) the reason is why."""

    program: str
    accepts: bool | None
    reason: str


class Verifier:
    """Asks the programs, and keeps what they said yes to on the image's root blob, where clients see it.

    The label ``runtimed.io/image-verification`` is ``<which programs> <name> <reasons>``: the same programs are not
    asked again about the same digest under the same name.
    """

    def __init__(self, config: ImageVerification, content: Content) -> None:
        self._config = config
        self._content = content

    async def verify(self, namespace: str, name: str, root: Descriptor) -> str:
        """Ask whether the image *name*, whose root is *root*, may be used; return the label for :meth:`keep`.

        "" is nothing to keep: no programs are set up.

        Raises:
            PermissionDenied: one said no, and why; or none could say, and ``fail_closed`` is set.
            FailedPrecondition: the directory has no programs, and ``fail_closed`` is set.
        """
        if not self._config.directory:
            return ""
        programs = await blocking(_programs, self._config.directory)
        if not programs and self._config.fail_closed:
            raise FailedPrecondition(
                f"image {name}: there is no verifier in {self._config.directory}, and image_verification.fail_closed is"
                " set: no image can be used"
            )
        mark = f"{await blocking(_identity, programs)} {name} "
        kept = await self._kept(namespace, root.digest)
        if kept.startswith(mark):
            return kept
        verdicts = [await self._ask(program, name, root) for program in programs]
        for verdict in verdicts:
            fields = {"image": name, "digest": root.digest, "verifier": verdict.program, "reason": verdict.reason}
            if verdict.accepts is None and not self._config.fail_closed:
                log.warning("a verifier has no verdict; the image is taken", extra=fields)
            elif not verdict.accepts:
                log.warning("image refused", extra=fields)
                said = "refused by" if verdict.accepts is False else "not accepted, for want of a verdict of"
                raise PermissionDenied(
                    f"image {name} ({root.digest}) is {said} the verifier {verdict.program}: {verdict.reason}"
                )
        reasons = "; ".join(f"{one.program}: {one.reason or 'yes'}" for one in verdicts if one.accepts)
        is_whole = all(one.accepts for one in verdicts)
        return (mark + reasons)[: _MOST_REASON + len(mark)] if is_whole else ""

    async def keep(self, namespace: str, digest: str, label: str) -> None:
        """Label the root blob, now that it is here, with what :meth:`verify` returned."""
        if label:
            key = labels.IMAGE_VERIFICATION
            with suppress(NotFound):
                await blocking(self._content.update, namespace, digest, {key: label}, [f"labels.{key}"])

    async def _kept(self, namespace: str, digest: str) -> str:
        try:
            info = await blocking(self._content.info, namespace, digest)
        except NotFound:
            return ""
        return str(info.labels.get(labels.IMAGE_VERIFICATION, ""))

    async def _ask(self, program: Path, name: str, root: Descriptor) -> Verdict:
        media_type = "application/vnd.oci.descriptor.v1+json"
        command = [str(program), "-name", name, "-digest", root.digest, "-stdin-media-type", media_type]
        document = json.dumps({"mediaType": root.media_type, "digest": root.digest, "size": root.size}).encode()
        try:
            process = await asyncio.create_subprocess_exec(
                *command,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.DEVNULL,
                cwd="/",
                env=_ENVIRONMENT,
                start_new_session=True,
            )
        except OSError as exc:
            return Verdict(program.name, None, f"it cannot be run: {exc.strerror}")
        try:
            async with asyncio.timeout(self._config.timeout_s):
                output = await _exchange(process, document)
                status = await process.wait()
        except TimeoutError:
            return Verdict(program.name, None, f"it took longer than {self._config.timeout_s} s")
        finally:
            # Whatever it has started goes with it, also after a yes.
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
        reason = _printable(output)
        if status < 0:
            return Verdict(program.name, None, f"it was ended by signal {-status}")
        return Verdict(program.name, status == 0, reason or ("" if status == 0 else f"exit status {status}"))


async def _exchange(process: asyncio.subprocess.Process, document: bytes) -> bytes:
    """Give the program its input and return what it prints, up to a limit."""
    assert process.stdin
    assert process.stdout
    with suppress(BrokenPipeError, ConnectionResetError):
        process.stdin.write(document)
        process.stdin.close()
    output = b""
    while data := await process.stdout.read(_MOST_OUTPUT):
        output = (output + data)[:_MOST_OUTPUT]  # the rest is read, and dropped: the program must be able to end
    return output


def _programs(directory: str) -> list[Path]:
    """Return the programs in *directory*, in order. Raises PermissionDenied for one that others may write to."""
    found = []
    with os_errors(f"image verifiers in {directory}"):
        try:
            paths = sorted(Path(directory).iterdir())
        except FileNotFoundError:
            return []
        for path in paths:
            details = path.stat()
            if not stat.S_ISREG(details.st_mode) or not details.st_mode & 0o111:
                continue
            if details.st_uid not in {0, os.geteuid()} or details.st_mode & 0o022:
                raise PermissionDenied(f"image verifier {path}: others than root may change it; chown and chmod it")
            found.append(path)
    return found


def _identity(programs: Sequence[Path]) -> str:
    """Return what says that the programs are the same as before."""
    state = hashlib.sha256()
    for path in programs:
        details = path.stat()
        state.update(f"{path} {details.st_ino} {details.st_size} {details.st_mtime_ns}\n".encode())
    return state.hexdigest()[:12]


def _printable(output: bytes) -> str:
    """Return the reason for people and labels: one line, nothing that a terminal would obey."""
    return re.sub(r"[^\x20-\x7e]+", " ", output.decode(errors="replace")).strip()[:_MOST_REASON]
