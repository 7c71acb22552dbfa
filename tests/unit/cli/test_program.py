import functools
import inspect
import subprocess
import sys

import pytest

from runtimed.cli.program import Later, cleandoc, is_coroutine_function, unwrap


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
import sys
from runtimed.cli.program import postpone
postpone()
import asyncio, click
import datetime, decimal, gettext, hashlib, inspect, json, json.decoder, platform, string, subprocess, textwrap
import msgspec, pickle, traceback, uuid
from pathlib import Path
from urllib.parse import quote_from_bytes, urlsplit
assert decimal.getcontext() and decimal.Decimal("1.5") + 1 == 2.5
assert hashlib.sha256(b"").hexdigest()[:4] == "e3b0" and hashlib.sha256(b"a").name == "sha256"
assert hashlib.new("sha512", b"").hexdigest()[:4] == "cf83" and hashlib.sha256 is not sys.modules["_sha256"].sha256
assert inspect.signature(len) and inspect.cleandoc.__module__ == "inspect"
assert string.Template("$a").substitute(a=1) == "1" and string.ascii_letters
assert gettext.gettext("a") == "a" and gettext.ngettext("a", "b", 2) == "b" and gettext.NullTranslations
assert subprocess.run(["true"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT).returncode == 0
assert Path("/a b").as_uri() == "file:///a%20b" and quote_from_bytes(b" ", safe="") == "%20" and urlsplit("a:b").scheme
now = datetime.datetime.now(datetime.UTC)
assert pickle.loads(pickle.dumps(now)) == now and now - datetime.timedelta(1) < now
assert msgspec.json.decode(msgspec.json.encode(now), type=datetime.datetime) == now
assert msgspec.json.schema(int) == {"type": "integer"}
assert json.loads("[1]") == [1] and platform.system() == "Linux"
assert textwrap.dedent("  a") == "a" and str(uuid.UUID(int=0))[:4] == "0000"
async def work():
    return asyncio.get_running_loop().create_future()._source_traceback
assert asyncio.run(work(), debug=True)  # a C module took this out of traceback
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_functions_are_told_apart_as_inspect_does():
    async def coroutine():
        pass

    async def generator():
        yield

    @functools.wraps(coroutine)
    def wrapper():
        pass

    class Holder:
        async def method(self):
            pass

    for each in (coroutine, generator, wrapper, Holder().method, Holder, len, print, functools.partial(coroutine)):
        assert unwrap(each) == inspect.unwrap(each)
        assert is_coroutine_function(each) == inspect.iscoroutinefunction(each), each
