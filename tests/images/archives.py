"""Builds image archives: an OCI image layout as a tar, and what docker save writes, new and old."""

import io
import json
import tarfile

from tests.images.layouts import Layout, digest_of, tar_of


def oci_archive(layout: Layout) -> bytes:
    """Return *layout* as a tar, in the order in which ``tar c`` finds the files."""
    files = {str(path.relative_to(layout.root)): path for path in sorted(layout.root.rglob("*")) if path.is_file()}
    return tar_of({name: path.read_bytes() for name, path in files.items()})


class DockerArchive:
    """An archive of docker save up to version 24: a directory a layer, some of them links, a manifest.json."""

    def __init__(self) -> None:
        self._members: list[tuple[tarfile.TarInfo, bytes]] = []
        self._images: list[dict[str, object]] = []

    def file(self, name: str, data: bytes) -> str:
        """Add a file and return its name."""
        member = tarfile.TarInfo(name)
        member.size = len(data)
        self._members.append((member, data))
        return name

    def link(self, name: str, target: str, kind: bytes = tarfile.SYMTYPE) -> str:
        """Add a symbolic link, or a hard one, and return its name."""
        member = tarfile.TarInfo(name)
        member.type, member.linkname = kind, target
        self._members.append((member, b""))
        return name

    def layer(self, number: int, data: bytes) -> str:
        """Add a layer with the files that are for old versions of Docker."""
        directory = f"{number:064x}"
        self.file(f"{directory}/VERSION", b"1.0")
        self.file(f"{directory}/json", b"{}")
        return self.file(f"{directory}/layer.tar", data)

    def image(self, tags: list[str] | None, layers: list[str], tars: list[bytes], **config: object) -> bytes:
        """Add an image of *layers*, whose uncompressed contents are *tars*; return its config."""
        document = {
            "architecture": "amd64",
            "os": "linux",
            "config": {},
            "rootfs": {"type": "layers", "diff_ids": [digest_of(tar) for tar in tars]},
            **config,
        }
        data = json.dumps(document).encode()
        name = self.file(f"{digest_of(data)[7:]}.json", data)
        self._images.append({"Config": name, "RepoTags": tags, "Layers": layers})
        return data

    def build(self, *, manifest: bytes | None = None) -> bytes:
        """Return the archive; its manifest.json comes last, as Docker writes it."""
        buffer = io.BytesIO()
        documents = {"manifest.json": json.dumps(self._images).encode() if manifest is None else manifest}
        documents["repositories"] = b"{}"
        with tarfile.open(fileobj=buffer, mode="w") as archive:
            for member, data in self._members:
                archive.addfile(member, io.BytesIO(data))
            for name, data in documents.items():
                member = tarfile.TarInfo(name)
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
        return buffer.getvalue()


def members_of(archive: bytes) -> dict[str, bytes]:
    """Return what a tar holds, in its order: the bytes of files, none for everything else."""
    found: dict[str, bytes] = {}
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        for member in tar:
            file = tar.extractfile(member) if member.isfile() else None
            found[member.name] = file.read() if file else b""
    return found
