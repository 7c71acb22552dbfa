"""Which advisories a version of runc is too old for."""

import pytest

from runtimed.tasks.advisories import ADVISORIES, may_be_open, parse

DEVICES = ["CVE-2025-31133", "CVE-2025-52565", "CVE-2025-52881"]


@pytest.mark.parametrize(
    ("text", "open_ids"),
    [
        ("runc version 1.1.4", [id for advisory in ADVISORIES for id in advisory.ids]),
        ("runc version 1.1.5+ds1\ncommit: x", ["CVE-2024-21626", "CVE-2024-45310", *DEVICES, "CVE-2026-41579"]),
        ("runc version 1.1.15", [*DEVICES, "CVE-2026-41579"]),
        ("runc version 1.2.0-rc.2", ["CVE-2024-45310", *DEVICES, "CVE-2026-41579"]),
        ("runc version 1.2.0~rc3", [*DEVICES, "CVE-2026-41579"]),
        ("runc version 1.2.8", ["CVE-2026-41579"]),
        ("runc version 1.3.2", [*DEVICES, "CVE-2026-41579"]),
        ("runc version 1.3.6", []),
        ("runc version 1.4.0-rc.2", [*DEVICES, "CVE-2026-41579"]),
        ("runc version 1.5.0-rc.3", []),
        ("runc version 2.0.0", []),
    ],
)
def test_a_version_is_too_old_for_what_was_mended_later_in_its_branch(text, open_ids):
    version = parse(text)
    assert version is not None
    assert may_be_open(version) == open_ids


def test_what_names_no_version_has_none():
    assert parse("crun 1.x") is None


def test_every_fix_in_the_table_is_a_version():
    assert all(parse(fix) for advisory in ADVISORIES for fix in advisory.fixed_in)
