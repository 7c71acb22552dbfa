"""Compile the .proto files of this folder into the modules of runtimed/api.

    python proto/generate.py                          write the modules, remove those no longer wanted
    python proto/generate.py --check                  write nothing; exit 1 and name the modules that are out of date
    python proto/generate.py --descriptor-set PATH    write one descriptor set of every file and its imports

Every file gives `NAME_pb2.py` and its type stub `NAME_pb2.pyi`. A file with a
service that is spoken over gRPC gives `NAME_pb2_grpc.py` as well. The services
listed in TTRPC_ONLY are spoken over ttrpc alone, which builds on the messages
and needs no stubs of gRPC's.

Needs grpcio-tools (the compiler, and google/protobuf/*.proto) and
googleapis-common-protos (google/rpc/*.proto). What is written depends on the
versions of those two and on the .proto files, and on nothing else.
"""

from __future__ import annotations

import argparse
import importlib.util
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

PROTO = Path(__file__).resolve().parent
REPO = PROTO.parent
PACKAGE = Path("runtimed/api")

TTRPC_ONLY = frozenset({"events_ttrpc", "nri", "sandbox_shim", "shim_attach", "task_v2", "task_v3", "ttrpc"})
"""Names of the files whose services, if any, get no gRPC stubs."""

GENERATED = ("*_pb2.py", "*_pb2.pyi", "*_pb2_grpc.py")
"""Patterns of the files that belong to this script; it touches no other."""

_NONE = re.compile(r"\s*None: ")
_SERVICE = re.compile(r"^service\s+\w+", re.MULTILINE)


class CompileError(Exception):
    """protoc refused a file; the message is what it printed."""


def sources() -> list[str]:
    """Every .proto file as protoc names it: relative to proto/, in sorted order."""
    return sorted(path.relative_to(PROTO).as_posix() for path in PROTO.rglob("*.proto"))


def speaks_grpc(source: str) -> bool:
    """Whether a file has a service that is spoken over gRPC."""
    path = PROTO / source
    return path.stem not in TTRPC_ONLY and _SERVICE.search(path.read_text(encoding="utf-8")) is not None


def googleapis_include() -> Path:
    """The directory in which `google/rpc/status.proto` is found."""
    spec = importlib.util.find_spec("google.rpc")
    for location in (spec.submodule_search_locations or ()) if spec else ():
        if (Path(location) / "status.proto").is_file():
            return Path(location).parents[1]
    raise CompileError("google/rpc/status.proto not found: is googleapis-common-protos installed?")


def protoc(*arguments: str) -> None:
    """Run the compiler of grpcio-tools, which knows where google/protobuf/*.proto is."""
    command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{PROTO}", f"-I{googleapis_include()}", *arguments]
    result = subprocess.run(command, cwd=PROTO, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise CompileError(result.stderr.strip() or f"protoc exited with {result.returncode}")
    sys.stderr.write(result.stderr)


def compile_to(root: Path) -> None:
    """Write every generated module below root, as root/runtimed/api/..."""
    every = sources()
    protoc(f"--python_out={root}", f"--pyi_out={root}", *every)
    protoc(f"--grpc_python_out={root}", *filter(speaks_grpc, every))
    for stub in (root / PACKAGE).glob("*.pyi"):
        lines = stub.read_text(encoding="utf-8").splitlines(keepends=True)
        # A value named None, as NRI has one, can be a name in no stub.
        stub.write_text("".join(line for line in lines if not _NONE.match(line)), encoding="utf-8")


def write_descriptor_set(path: Path) -> None:
    """Write the FileDescriptorSet of every file and of all that they import."""
    protoc("--include_imports", f"--descriptor_set_out={path.resolve()}", *sources())


def generated_below(root: Path) -> dict[str, bytes]:
    """Name and content of the generated modules in root/runtimed/api."""
    folder = root / PACKAGE
    return {path.name: path.read_bytes() for pattern in GENERATED for path in folder.glob(pattern)}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    parser = argparse.ArgumentParser(description="Compile proto/ into runtimed/api.")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--check", action="store_true", help="only say which modules are out of date")
    mode.add_argument("--descriptor-set", type=Path, metavar="PATH", help="only write the descriptor set")
    options = parser.parse_args(argv)

    try:
        if options.descriptor_set is not None:
            write_descriptor_set(options.descriptor_set)
            return 0
        with tempfile.TemporaryDirectory(prefix="runtimed-proto-") as name:
            compile_to(Path(name))
            wanted = generated_below(Path(name))
    except CompileError as error:
        print(error, file=sys.stderr)
        return 1

    present = generated_below(REPO)
    changed = sorted(name for name in wanted.keys() | present.keys() if wanted.get(name) != present.get(name))
    if options.check:
        for name in changed:
            state = "missing" if name not in present else "stale" if name not in wanted else "differs"
            print(f"{PACKAGE / name}: {state}")
        return 1 if changed else 0

    for name in changed:
        path = REPO / PACKAGE / name
        if name in wanted:
            path.write_bytes(wanted[name])
        else:
            path.unlink()
    print(f"{len(sources())} files, {len(wanted)} modules, {len(changed)} changed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
