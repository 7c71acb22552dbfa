"""Every call of containerd's API is answered by somebody."""

import importlib
import inspect
import pkgutil

import pytest

from runtimed import api, services

GENERATED = "runtimed.api."


def contract():
    for found in pkgutil.iter_modules(api.__path__):
        if found.name.endswith("_pb2"):
            descriptor = importlib.import_module(GENERATED + found.name).DESCRIPTOR
            if descriptor.package.startswith("containerd.services.") and ".ttrpc." not in descriptor.package:
                yield from descriptor.services_by_name.values()


def servicer(name):
    """Return the class that answers for the service of that name."""
    for found in pkgutil.iter_modules(services.__path__):
        module = importlib.import_module(f"runtimed.services.{found.name}")
        for kind_name, kind in inspect.getmembers(module, inspect.isclass):
            if kind_name.endswith(f"{name}Service") and kind.__module__ == module.__name__:
                return kind
    raise AssertionError(f"nobody answers for {name}")


SERVICES = {service.full_name: service for service in contract()}


@pytest.mark.parametrize("name", SERVICES)
def test_every_call_of_the_service_has_a_method(name):
    service = SERVICES[name]
    assert {method.name for method in service.methods} <= set(dir(servicer(service.name)))


def test_the_contract_is_whole():
    assert {name.removeprefix("containerd.services.") for name in SERVICES} == {
        "containers.v1.Containers",
        "content.v1.Content",
        "diff.v1.Diff",
        "events.v1.Events",
        "images.v1.Images",
        "introspection.v1.Introspection",
        "leases.v1.Leases",
        "mounts.v1.Mounts",
        "namespaces.v1.Namespaces",
        "sandbox.v1.Controller",
        "sandbox.v1.Store",
        "snapshots.v1.Snapshots",
        "streaming.v1.Streaming",
        "tasks.v1.Tasks",
        "transfer.v1.Transfer",
        "version.v1.Version",
    }
