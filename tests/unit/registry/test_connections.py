import pytest
from yarl import URL

from runtimed.errors import Unavailable
from runtimed.oci.reference import parse
from runtimed.registry.connections import Connections
from runtimed.registry.host import HostClient
from runtimed.registry.hosts import Endpoint
from tests.fakes.registry import FakeRegistry


@pytest.fixture
def internal(monkeypatch):
    """Every name stands for this machine, as the name server of a hostile registry may say."""

    async def resolve(self, host, port=0, family=0):
        return [{"hostname": host, "host": "127.0.0.1", "port": port, "family": 2, "proto": 0, "flags": 0}]

    monkeypatch.setattr("runtimed.registry.connections.aiohttp.ThreadedResolver.resolve", resolve)


async def test_a_name_that_a_registry_gives_does_not_lead_to_this_machine(internal):
    with FakeRegistry() as here:
        port = here.host.rpartition(":")[2]
        client = HostClient(Endpoint(base=URL("http://r.example/v2/")), parse("r.example/app"))
        try:
            with pytest.raises(Unavailable, match="its name, which a registry gave, stands for this machine"):
                await client.get(URL(f"http://evil.example:{port}/x"), limit=10)
        finally:
            await client.close()
        assert here.seen == []


@pytest.mark.parametrize(("base", "is_own"), [("http://r.example/v2/", True), ("http://127.0.0.2:5000/v2/", False)])
async def test_a_registry_of_this_machine_may_be_called_by_any_name(internal, base, is_own):
    with FakeRegistry() as here:
        port = here.host.rpartition(":")[2]
        connections = Connections(Endpoint(base=URL(base)))
        try:
            async with await connections.request("GET", URL(f"http://any.example:{port}/x"), is_own=is_own) as response:
                assert response.status == 404
        finally:
            await connections.close()
