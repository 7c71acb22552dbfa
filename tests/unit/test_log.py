"""Log lines as they reach an operator. In a process of their own: logging belongs to the whole process."""

import json
import subprocess
import sys


def logged(code: str) -> str:
    setup = "import logging; from runtimed import log\nlogger = logging.getLogger('some.module')\n"
    done = subprocess.run([sys.executable, "-c", setup + code], capture_output=True, text=True, check=True)
    assert done.stdout == ""
    return done.stderr


def test_a_line_is_a_json_object_with_its_fields():
    text = logged(
        "log.setup('info', 'json')\n"
        "with log.bound(namespace='ns'):\n"
        "    logger.info('task deleted', extra={'task': 't1'})\n"
        "logger.debug('too fine')\n"
    )
    (entry,) = map(json.loads, text.splitlines())
    assert entry.pop("timestamp").endswith("Z")
    assert entry == {"event": "task deleted", "level": "info", "logger": "some.module", "namespace": "ns", "task": "t1"}


def test_the_level_can_be_changed_later():
    text = logged("log.setup('error', 'auto'); logger.info('a'); log.set_level('debug'); logger.debug('b')")
    assert [json.loads(line)["event"] for line in text.splitlines()] == ["b"]


def test_an_exception_keeps_its_traceback_within_the_line():
    text = logged("log.setup('info', 'json')\ntry:\n    1 / 0\nexcept ZeroDivisionError:\n    logger.exception('bug')")
    (entry,) = map(json.loads, text.splitlines())
    assert "ZeroDivisionError" in entry["exception"]


def test_hostile_text_stays_within_its_line():
    text = logged("log.setup('info', 'json'); logger.info('x', extra={'label': 'a\\n{\"event\": \"forged\"}\\x1b[2J'})")
    (entry,) = map(json.loads, text.splitlines())
    assert entry["event"] == "x"
    assert "\x1b" not in text
