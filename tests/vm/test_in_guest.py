"""The tests of inside/, each reported here: a guest for each kernel runs all that are selected, both side by side."""

import ast
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.vm.conftest import FULL, SYSTEMD
from tests.vm.guest import CHECKOUT, Guest
from tests.vm.packages import SUITES

pytestmark = [pytest.mark.root, pytest.mark.slow]
_OUTCOME = re.compile(r"^(\S+::\w+)(\[\S+\])? (PASSED|FAILED|ERROR|SKIPPED)", re.MULTILINE)
# What a kernel has no part in is tested on 6.12 alone, unless RUNTIMED_VM_FULL wants everything everywhere.
ON_EACH_KERNEL = (
    "cgroup_v2_alone",
    "exit_status",
    "is_measured",
    "rctl_checkpoints",
    "runc_checkpoints",
    "without_checkpoints",
    "user_namespaces_of",
)
WITH_SYSTEMD = "systemd"  # in the names of files whose tests need it as the first process
# Of the tests of pods those that a kernel or cgroup v2 has a part in; RUNTIMED_VM_FULL takes them all.
FROM_OUTSIDE = {
    "test_cri_user_namespaces.py": ("",),
    "test_cri_stats.py": ("",),
    "test_cri_containers.py": ("out_of_memory", "resources_are_changed"),
    "test_cri_pods.py": (),
    "test_cri_security.py": ("privileged", "seccomp_is", "devices_are", "mounts_are"),
}


def cases() -> Iterator[tuple[str, str]]:
    """Yield each kernel with the name of each test for it."""
    inside = sorted(Path(__file__).parent.glob("inside/test_*.py"))
    for kernel in SUITES:
        for path in inside:
            for name in names_in(path):
                if WITH_SYSTEMD in path.name:
                    continue
                if FULL or kernel == "6.12" or any(part in name for part in ON_EACH_KERNEL):
                    yield kernel, f"{path.relative_to(CHECKOUT)}::{name}"
    for path in inside:
        if WITH_SYSTEMD in path.name:
            for name in names_in(path):
                yield f"6.12{SYSTEMD}", f"{path.relative_to(CHECKOUT)}::{name}"
    for file, parts in FROM_OUTSIDE.items():
        path = CHECKOUT / "tests/e2e" / file
        for name in names_in(path):
            if FULL or any(part in name for part in parts):
                yield "6.12", f"{path.relative_to(CHECKOUT)}::{name}"


def names_in(path: Path) -> Iterator[str]:
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
            yield node.name


@pytest.mark.parametrize(("kernel", "name"), list(cases()))
def test_in_guest(kernel: str, name: str, guests: Mapping[str, Guest]):
    guests[kernel].wait()
    output = guests[kernel].output
    outcomes = {found[3] for found in _OUTCOME.finditer(output) if found[1] == name}
    if outcomes == {"SKIPPED"}:
        pytest.skip(f"in the guest; its output:\n{output}")
    assert outcomes == {"PASSED"}, f"the guest's output:\n{output}"
