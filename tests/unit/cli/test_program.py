import inspect
import subprocess
import sys

import pytest

from runtimed.cli.program import Later, cleandoc


@pytest.mark.parametrize(
    "doc",
    [
        "One line.",
        "",
        "  The first.\n\n    Indented by four.\n      By six.\n\n    \b\n    rctl pull\n    ",
        "\n\n    After empty lines.\n  Less.\n\n",
        "\tTabs\n\tand\n\t\tmore",
        "Not indented\nat all\n  but here",
    ],
)
def test_a_help_text_is_cleaned_as_inspect_does(doc):
    assert cleandoc(doc) == inspect.cleandoc(doc)


def test_a_module_is_loaded_when_it_is_asked_for_what_it_was_not_given(monkeypatch):
    monkeypatch.delitem(sys.modules, "colorsys", raising=False)
    later = Later("colorsys")
    vars(later)["given"] = 1
    monkeypatch.setitem(sys.modules, "colorsys", later)
    import colorsys

    assert colorsys is later
    assert later.given == 1
    assert sys.modules["colorsys"] is later
    assert later.rgb_to_hsv(0, 0, 0) == (0, 0, 0)
    assert not isinstance(sys.modules["colorsys"], Later)
    assert "hsv_to_rgb" in vars(later)
    with pytest.raises(AttributeError):
        _ = later.no_such_thing


def test_what_was_postponed_works_when_it_is_used():
    code = """
from runtimed.cli.program import postpone
postpone()
import asyncio, click
import decimal, hashlib, inspect, json, platform, textwrap, traceback, uuid
assert decimal.getcontext() and decimal.Decimal("1.5") + 1 == 2.5
assert hashlib.sha256(b"").hexdigest()[:4] == "e3b0"
assert inspect.signature(len) and inspect.cleandoc.__module__ == "inspect"
assert json.loads("[1]") == [1] and platform.system() == "Linux"
assert textwrap.dedent("  a") == "a" and str(uuid.UUID(int=0))[:4] == "0000"
async def work():
    return asyncio.get_running_loop().create_future()._source_traceback
assert asyncio.run(work(), debug=True)  # a C module took this out of traceback
"""
    subprocess.run([sys.executable, "-c", code], check=True)
