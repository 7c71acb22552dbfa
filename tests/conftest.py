"""Fixtures that every kind of test may use."""

import os
from collections.abc import Iterator

import pytest

from tests.registry import Registry, docker_registry


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs root where there is none, with the reason; CI runs as root, so nothing is skipped there."""
    if os.geteuid() == 0:
        return
    skip = pytest.mark.skip(reason="needs root: real mounts, runc, cgroups (run `make test` as root)")
    for item in items:
        if item.get_closest_marker("root") or item.get_closest_marker("e2e"):
            item.add_marker(skip)


@pytest.fixture(scope="session")
def registry() -> Iterator[Registry]:
    """Debian's docker-registry, shared by all tests: push under names of your own."""
    with docker_registry() as running:
        yield running
