"""docs/configuration.md says what the dataclasses say."""

import runpy
from dataclasses import fields, is_dataclass
from pathlib import Path

from runtimed import config

DOCS = Path(__file__).parents[2] / "docs"


def test_the_document_is_up_to_date():
    expected = runpy.run_path(str(DOCS / "generate_configuration.py"))["document"]()
    assert (DOCS / "configuration.md").read_text() == expected, "run: python docs/generate_configuration.py"


def test_every_setting_and_section_is_in_it():
    text = (DOCS / "configuration.md").read_text()
    for kind in vars(config).values():
        if isinstance(kind, type) and is_dataclass(kind):
            for item in fields(kind):
                assert f"| `{item.name}` |" in text or f"{item.name}]`" in text or f"{item.name}.<name>]`" in text


def test_what_a_reload_takes_over_is_a_setting():
    for name in config.RELOADED:
        found = config.parse({})
        for part in name.split("."):
            found = getattr(found, part)


def test_a_reload_takes_over_some_and_names_the_rest():
    current = config.parse({})
    new = config.parse({"log": {"level": "debug", "format": "json"}, "gc": {"pause_percent": 9}, "root": "/x"})
    changed, taken, waiting = config.reloaded(current, new)
    assert (changed.log.level, changed.log.format, changed.gc.pause_percent) == ("debug", "auto", 9)
    assert changed.root == current.root
    assert (taken, waiting) == (["gc.pause_percent", "log.level"], ["log.format", "root"])
