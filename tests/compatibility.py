"""Which call of the API is shown by which test: ``python -m tests.compatibility`` writes docs/compatibility.md.

What is offered is read from where it is registered (runtimed/server/offered.py), what is tested from the syntax trees
of tests: a test calls what it makes a request for (``pb.CreateContainerRequest``), itself or in a function that it
uses. Where several methods take the same message, or nothing, the method must be named as well.
"""

import ast
import importlib
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from google.protobuf.descriptor import MethodDescriptor

REPO = Path(__file__).parents[1]
TABLE = REPO / "docs/compatibility.md"
_HEAD = """\
# Which call is shown by which test

Made by `python -m tests.compatibility` from the registered services and the tests; `tests/unit/test_compatibility.py`
fails when a call is missing here or has no test. One test is named for each call, usually of several; calls with `-`
have none yet, and are listed in `tests/compatibility.py`.

| service | call | a test |
|---|---|---|
"""
_SANDBOX = "e2e/test_sandboxes.py::test_a_sandbox_is_held_by_a_pause_task"
# Calls that a program makes, or a helper that makes the request of the call's name.
_BY_PROGRAMS = {
    **{f"containerd.services.sandbox.v1.Controller.{name}": _SANDBOX
       for name in ("Create", "Start", "Platform", "Status", "Metrics", "Update", "Wait")},
    "containerd.services.tasks.v1.Tasks.Update": "e2e/test_resources.py::test_rctl_changes_limits",
    "runtimed.v1.Doctor.Check": "e2e/test_doctor.py::test_it_finds_nothing_finds_a_stray_and_repairs_it",
    "runtimed.v1.Doctor.CheckLayers":
        "e2e/test_snapshots_fsck.py::test_a_layer_file_that_was_changed_is_found_and_pulled_again",
    "runtimed.v1.Doctor.RepairLayers":
        "e2e/test_power_cut.py::test_images_check_repairs_layers_and_drops_damaged_blobs",
    "runtimed.v1.Doctor.DiskUsage":
        "e2e/test_df.py::test_it_adds_up_to_what_du_says_and_tells_shared_from_unique",
    "runtimed.v1.Registry.Explain":
        "e2e/test_registries.py::test_explain_shows_hosts_lines_and_credentials_but_no_secret",
}  # fmt: skip
# Answered UNIMPLEMENTED so far, or offered without a test. Whoever writes one takes it out of here.
NOT_YET: set[str] = set()
_MODULES = ("runtimed.api", "google.protobuf.empty_pb2")
_REGISTERED = re.compile(r'_service\((\w+), "(\w+)"\)')


def methods() -> list[MethodDescriptor]:
    """Return the methods that the daemon registers, by service and in the order of the contract."""
    found = {}
    text = (REPO / "runtimed/server/offered.py").read_text()
    for alias, name in _REGISTERED.findall(text):
        module = _imports(ast.parse(text)).get(alias, f"runtimed.api.{alias}")
        service = importlib.import_module(module).DESCRIPTOR.services_by_name[name]
        found[service.full_name] = service
    return [method for name in sorted(found) for method in found[name].methods]


def tested() -> dict[str, list[str]]:
    """Return method -> the tests that call it, as ``path::name``."""
    wanted = methods()
    by_input, names = defaultdict(list), defaultdict(list)
    for method in wanted:
        by_input[method.input_type.full_name].append(method)
        names[method.name].append(method)
    result = defaultdict(list)
    for call, test in _BY_PROGRAMS.items():
        file, name = test.split("::")
        assert f"def {name}(" in (REPO / "tests" / file).read_text(), f"{test} is not there any more"
        result[call].append(test)
    for path in sorted((REPO / "tests").rglob("test_*.py")):
        for test, messages, attributes in _tests(path):
            called = {method.full_name for name in attributes for method in names[name] if len(names[name]) == 1}
            for message in messages:
                several = by_input[message]
                called |= {one.full_name for one in several if len(several) == 1 or one.name in attributes}
            for name in called:
                result[name].append(f"{path.relative_to(REPO / 'tests')}::{test}")
    return result


def _tests(path: Path) -> Iterator[tuple[str, set[str], set[str]]]:
    """Yield each test with the messages that it makes and the attributes that it names, in its helpers too."""
    own = {}
    for helper in [*_helpers(path), path]:
        tree = ast.parse(helper.read_text())
        imports = _imports(tree)
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                own[node.name] = _uses(node, imports)
    # Of a file that is imported from, the helpers count; its tests are its own.
    here = [node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    for name in [name for name in here if name.startswith("test_")]:
        seen: set[str] = set()
        left = {name}
        while left:
            seen |= left
            left = {other for one in left for other in own[one][2] if other in own} - seen
        yield name, set().union(*(own[one][0] for one in seen)), set().union(*(own[one][1] for one in seen))


def _helpers(path: Path) -> Iterator[Path]:
    """Yield the files whose functions a test may use: those that it imports, and its conftests."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("tests."):
            assert node.module
            if (helper := REPO / f"{node.module.replace('.', '/')}.py").exists():
                yield helper
    for parent in path.relative_to(REPO).parents:
        if (conftest := REPO / parent / "conftest.py").exists():
            yield conftest


def _uses(node: ast.AST, imports: dict[str, str]) -> tuple[set[str], set[str], set[str]]:
    messages, attributes, names = set(), set(), set()
    for child in ast.walk(node):
        if isinstance(child, ast.Attribute):
            attributes.add(child.attr)
            names.add(child.attr)
            if isinstance(child.value, ast.Name) and (module := imports.get(child.value.id)):
                messages.add(_message(module, child.attr))
        elif isinstance(child, ast.Name):
            names.add(child.id)
            if "." in (target := imports.get(child.id, "")):
                messages.add(_message(*target.rsplit(".", 1)))
        elif isinstance(child, ast.arg):  # a fixture
            names.add(child.arg)
    return messages, attributes, names


def _message(module: str, name: str) -> str:
    """Return a message's full name; "" if it is none."""
    if not module.endswith("_pb2"):
        return ""
    descriptor = importlib.import_module(module).DESCRIPTOR.message_types_by_name.get(name)
    return descriptor.full_name if descriptor else ""


def _imports(tree: ast.Module) -> dict[str, str]:
    """Return what names of modules and messages of runtimed.api are called in a file."""
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(_MODULES):
            for alias in node.names:
                found[alias.asname or alias.name] = f"{node.module}.{alias.name}"
    return found


def table() -> str:
    """Return the document."""
    shown = tested()
    rows = []
    for method in methods():
        tests = shown.get(method.full_name, ["-"])
        # The one nearest to the service, if there is: its own unit test.
        best = _BY_PROGRAMS.get(method.full_name) or min(
            tests, key=lambda test: (not test.startswith("unit/services"), len(test), test)
        )
        rows.append(f"| `{method.containing_service.full_name}` | {method.name} | `{best}` |\n")
    return _HEAD + "".join(rows)


if __name__ == "__main__":
    TABLE.write_text(table())
