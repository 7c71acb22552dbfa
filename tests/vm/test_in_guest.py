"""The tests of inside/, each reported here: a guest for each kernel runs all that are selected, both side by side."""

import ast
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.vm.conftest import FULL
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
)


def cases() -> Iterator[tuple[str, str]]:
    """Yield each kernel with the name of each test for it."""
    for kernel in SUITES:
        for path in sorted(Path(__file__).parent.glob("inside/test_*.py")):
            for node in ast.parse(path.read_text()).body:
                if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or not node.name.startswith("test_"):
                    continue
                if FULL or kernel == "6.12" or any(part in node.name for part in ON_EACH_KERNEL):
                    yield kernel, f"{path.relative_to(CHECKOUT)}::{node.name}"


@pytest.mark.parametrize(("kernel", "name"), list(cases()))
def test_in_guest(kernel: str, name: str, guests: Mapping[str, Guest]):
    guests[kernel].wait()
    output = guests[kernel].output
    outcomes = {found[3] for found in _OUTCOME.finditer(output) if found[1] == name}
    if outcomes == {"SKIPPED"}:
        pytest.skip(f"in the guest; its output:\n{output}")
    assert outcomes == {"PASSED"}, f"the guest's output:\n{output}"
