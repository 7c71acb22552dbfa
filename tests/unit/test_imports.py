"""The layers of docs/architecture.md, kept true."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

REPO = Path(__file__).parents[2]

# Bottom up. A module may import from layers below its own; inside a layer only along the arrows of SIDEWAYS.
LAYERS: list[set[str]] = [
    {
        *("errors", "failpoints", "gcgraph", "log", "config", "containerd_config", "identifiers", "labels", "filters"),
        *("oci", "api", "embedded", "deprecations"),
    },
    {"linux", "rpc", "threads", "rollback", "directories", "systemd"},
    {"mounts", "content", "snapshots", "diff", "metadata", "passwd"},
    {
        *("events", "workers", "registry", "images", "tasks", "sandboxes", "mounting", "restarts", "nri"),
        *("collector", "doctor"),
    },
    {"services", "cri", "client"},
    {"server", "cli"},
    {"daemon"},
]
SIDEWAYS = {
    ("filters", "errors"),
    ("failpoints", "errors"),
    ("gcgraph", "labels"),
    ("collector", "events"),
    ("labels", "errors"),
    ("deprecations", "labels"),
    ("labels", "identifiers"),
    ("config", "errors"),
    ("containerd_config", "config"),
    ("containerd_config", "errors"),
    ("identifiers", "errors"),
    ("oci", "errors"),
    ("embedded", "errors"),
    ("rpc", "linux"),
    ("snapshots", "mounts"),
    ("diff", "mounts"),
    ("diff", "content"),
    ("metadata", "content"),
    ("metadata", "snapshots"),
    ("metadata", "mounts"),
    ("tasks", "events"),
    ("doctor", "tasks"),
    ("sandboxes", "events"),
    ("sandboxes", "tasks"),
    ("restarts", "events"),
    ("restarts", "tasks"),
    ("images", "registry"),
    ("images", "workers"),
    ("images", "events"),
    ("registry", "workers"),
}
BLOCKING = ["linux", "oci", "content", "diff", "mounts.py", "snapshots/records.py", "snapshots/snapshotter.py"]


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def sources(package: str) -> list[Path]:
    return [path for path in sorted((REPO / package).rglob("*.py")) if "api" not in path.relative_to(REPO).parts]


def part_of(module: str) -> str | None:
    """Return the part of runtimed that *module* belongs to, None for others' modules."""
    names = module.split(".")
    return names[1] if names[0] == "runtimed" and len(names) > 1 else None


def test_every_part_has_its_layer():
    parts = {path.stem for path in (REPO / "runtimed").iterdir() if path.suffix == ".py" or path.is_dir()}
    assert parts - {"__init__", "__pycache__"} == set().union(*LAYERS)


@pytest.mark.parametrize("path", sources("runtimed"), ids=lambda path: str(path.relative_to(REPO)))
def test_a_module_imports_only_from_below(path):
    level = {part: number for number, layer in enumerate(LAYERS) for part in layer}
    own = path.relative_to(REPO / "runtimed").parts[0].removesuffix(".py")
    for module in imports(path):
        other = part_of(module)
        if other is None or other == own:
            continue
        assert level[other] < level[own] or (own, other) in SIDEWAYS, f"{own} must not import {module}"


@pytest.mark.parametrize("part", BLOCKING)
def test_blocking_packages_know_no_event_loop(part):
    root = REPO / "runtimed" / part
    for path in [root] if root.suffix else root.rglob("*.py"):
        assert not {"asyncio", "grpc"} & {name.split(".")[0] for name in imports(path)}, path


@pytest.mark.parametrize("package", ["runtimed", "tests"])
def test_nobody_imports_the_shim_or_the_snapshotters_by_name(package):
    """The shim is executed or forked, snapshotters come by entry point; their own tests are the exception."""
    allowed = {"shim": {"shim"}, "snapshotters": {"snapshotters", "conformance"}}
    for path in sources(package):
        for module in imports(path):
            name = module.split(".")[0]
            if name in allowed:
                own_test = package == "tests" and allowed[name] & {*path.parts, path.stem.removeprefix("test_")}
                assert own_test, f"{path} imports {module}"


def test_snapshotters_know_only_what_a_plugin_may():
    allowed = {"errors", "labels", "linux", "mounts", "snapshots"}
    for path in sources("snapshotters"):
        assert {part for module in imports(path) if (part := part_of(module))} <= allowed, path


def test_the_shim_knows_only_vocabulary_kernel_and_wire():
    allowed = LAYERS[0] | LAYERS[1] | {"mounts"}
    for path in sources("shim"):
        assert {part for module in imports(path) if (part := part_of(module))} <= allowed, path


def test_the_shim_loads_without_what_costs_every_container_memory():
    code = "import shim.task, shim.main, shim.nursery, sys; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True, check=True)
    costly = {"grpc", "msgspec", "structlog", "aiohttp", "sqlite3", "click"}
    costly |= {"asyncio", "google.protobuf", "logging", "random", "subprocess", "threading"}
    assert not costly & set(loaded.stdout.split())


def test_the_daemon_loads_without_what_it_may_never_use():
    code = "import runtimed.daemon, runtimed.server.serve, runtimed.log, sys; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True, check=True)
    # What serves Kubernetes' streams and speaks to registries, to proxy snapshotters, to the network.
    seldom = {"aiohttp", "grpc", "pyroute2", "yaml", "http.client", "multiprocessing", "unittest", "click"}
    assert not seldom & set(loaded.stdout.split())


def test_rctl_run_loads_without_what_it_seldom_uses(tmp_path):
    """Up to its first call, which finds the daemon gone."""
    code = """
import os, socket, sys
from runtimed.cli import program
address = sys.argv[1]
sys.argv = ["rctl", "--address", address, "run", "--rm", "image"]
listener = socket.socket(socket.AF_UNIX)
listener.bind(address)
listener.listen()
def end(status):
    loaded = [name for name, module in sys.modules.items() if not isinstance(module, program.Later)]
    os.write(1, " ".join(loaded).encode())
    os.kill(os.getpid(), 9)
os._exit = end
program.postpone()
from runtimed.rpc import grpc_client
async def unary(*args):
    raise grpc_client.Lost("gone")
grpc_client.Channel.unary = unary
from runtimed.cli.main import main
main()
"""
    command = [sys.executable, "-c", code, str(tmp_path / "s")]
    loaded = subprocess.run(command, cwd=REPO, capture_output=True, text=True, check=False)
    assert "lost the daemon" in loaded.stderr
    modules = set(loaded.stdout.split())
    assert "runtimed.cli.run" in modules
    seldom = {"ast", "dataclasses", "decimal", "dis", "hashlib", "inspect", "json", "linecache", "platform", "shutil"}
    seldom |= {"ssl", "textwrap", "tokenize", "traceback", "uuid", "asyncio.sslproto", "msgspec.inspect"}
    seldom |= {"datetime", "gettext", "locale", "string", "subprocess", "urllib.parse", "concurrent.futures.thread"}
    seldom |= {"grpc", "ctypes", "typing_extensions", "runtimed.cli.pull", "runtimed.client.containers"}
    seldom |= {"runtimed.client.unpack", "runtimed.linux.devices", "runtimed.threads"}
    assert seldom & modules == set()
