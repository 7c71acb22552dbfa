"""The files of proto/ and the modules generated from them.

The wire tables lie beside the checkout, not in it: without them the first
test is skipped and nothing here says that clients still understand us.
"""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest
from google.protobuf import descriptor_pb2

REPO = Path(__file__).resolve().parents[2]
GENERATOR = REPO / "proto" / "generate.py"
API = REPO / "runtimed" / "api"
WIRE_CHECK = REPO.parent / "shared" / "wire" / "check.py"


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a Python script in the checkout and return what became of it."""
    return subprocess.run([sys.executable, *arguments], cwd=REPO, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def descriptor_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The descriptor set of every file in proto/, compiled afresh."""
    path = tmp_path_factory.mktemp("proto") / "set.pb"
    result = run(GENERATOR, "--descriptor-set", path)
    assert result.returncode == 0, result.stderr
    return path


def test_files_agree_with_the_wire_tables(descriptor_set: Path) -> None:
    if not WIRE_CHECK.is_file():
        pytest.skip(f"the wire tables are not there: no {WIRE_CHECK}")
    result = run(WIRE_CHECK, descriptor_set, "--all")
    assert result.stderr == ""
    assert result.returncode == 0, result.stdout


def test_generated_modules_are_fresh() -> None:
    result = run(GENERATOR, "--check")
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_every_generated_module_imports() -> None:
    names = sorted(path.stem for pattern in ("*_pb2.py", "*_pb2_grpc.py") for path in API.glob(pattern))
    assert names
    for name in names:
        importlib.import_module(f"runtimed.api.{name}")


def test_no_two_files_define_the_same_name(descriptor_set: Path) -> None:
    owner: dict[str, str] = {}
    for file in descriptor_pb2.FileDescriptorSet.FromString(descriptor_set.read_bytes()).file:
        names = [message.name for message in file.message_type]
        names += [service.name for service in file.service]
        names += [name for enum in file.enum_type for name in (enum.name, *(value.name for value in enum.value))]
        for name in (f"{file.package}.{name}" for name in names):
            assert name not in owner, f"{name} is both in {owner[name]} and in {file.name}"
            owner[name] = file.name
