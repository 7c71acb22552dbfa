"""docs/compatibility.md says of every call that the daemon offers which test shows it."""

import re

from tests import compatibility


def rows():
    text = compatibility.TABLE.read_text()
    return {f"{service}.{call}": test for service, call, test in re.findall(r"\| `(.*?)` \| (\w+) \| `(.*?)` \|", text)}


def test_every_call_is_in_the_table_with_a_test_that_makes_it():
    shown = compatibility.tested()
    listed = rows()
    offered = [method.full_name for method in compatibility.methods()]
    assert len(offered) > 100
    again = "run: python -m tests.compatibility"
    assert sorted(listed) == sorted(offered), again
    untested = {call for call, test in listed.items() if test not in shown[call]}
    assert untested - compatibility.NOT_YET == set(), again
