"""The metrics of a daemon that has done a little of everything, as Prometheus' own parser reads them."""

import http.client
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.daemon import PrivateDaemon, private_daemon

pytestmark = pytest.mark.root

LAYERS = 3  # of the busybox image


@pytest.fixture(scope="module")
def daemon() -> Iterator[PrivateDaemon]:
    with private_daemon(start=False) as made:
        made.config.write_text(f'version = 1\n[metrics]\naddress = "{made.base}/metrics.sock"\n')
        made.start()
        yield made


def get(address: Path, path: str = "/v1/metrics") -> http.client.HTTPResponse:
    connection = http.client.HTTPConnection("localhost")
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.connect(str(address))
    connection.request("GET", path, headers={"Connection": "close"})
    return connection.getresponse()


def values(daemon: PrivateDaemon) -> dict[str, float]:
    """Return what ``name{label=value,...}`` is, by that text."""
    with get(daemon.base / "metrics.sock") as answer:
        assert answer.status == 200
        assert answer.getheader("Content-Type", "").startswith("text/plain; version=")
        families = text_string_to_metric_families(answer.read().decode())
    found = {}
    for family in families:
        for sample in family.samples:
            labels = ",".join(f"{key}={value}" for key, value in sorted(sample.labels.items()))
            found[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
    return found


def test_what_a_daemon_does_is_counted(daemon: PrivateDaemon, busybox: str):
    daemon.rctl("pull", busybox)
    daemon.rctl("pull", busybox)
    daemon.run("-d", busybox, "there", "sleep", "600")
    daemon.run("--rm", busybox, "--", "true")
    daemon.rctl("rmi", "absent.example/nothing:1", check=False)
    daemon.rctl("gc", "run")
    found = values(daemon)

    service = "grpc_service=containerd.services.transfer.v1.Transfer,grpc_type=unary"
    assert found[f"grpc_server_handled_total{{grpc_code=OK,grpc_method=Transfer,{service}}}"] == 2
    assert found[f"grpc_server_handling_seconds_count{{grpc_method=Transfer,{service}}}"] == 2
    assert found[f"grpc_server_handling_seconds_sum{{grpc_method=Transfer,{service}}}"] > 0
    assert any("grpc_code=NotFound" in name for name in found)

    assert found["runtimed_image_pull_seconds_count"] == 2
    assert found["runtimed_image_pull_layers_total{origin=downloaded}"] == LAYERS
    assert found["runtimed_image_pull_layers_total{origin=here}"] == LAYERS
    assert found["runtimed_image_pull_bytes_total"] > 100_000
    assert found["runtimed_image_pull_stage_seconds_total{stage=download}"] > 0
    assert found["runtimed_image_pull_stage_seconds_total{stage=unpack}"] > 0
    assert found["runtimed_gc_seconds_count{result=ok}"] >= 1

    assert found[f"runtimed_tasks{{namespace={daemon.namespace}}}"] == 1
    assert found["runtimed_shims"] == 1
    assert found["runtimed_events_total{topic=/tasks/start}"] == 2
    assert found["runtimed_events_total{topic=/tasks/exit}"] == 1
    assert found["runtimed_events_lost_total"] == 0
    assert found["runtimed_event_subscribers"] >= 1
    assert found["runtimed_workers{state=idle}"] >= 1
    assert found["runtimed_workers{state=busy}"] == 0

    assert found["runtimed_records{kind=images}"] == 1
    assert found["runtimed_records{kind=containers}"] == 1
    assert found["runtimed_snapshots{snapshotter=overlayfs}"] == LAYERS + 1  # the container's own
    assert found["runtimed_blob_bytes"] > found["runtimed_image_pull_bytes_total"]
    assert found["runtimed_root_size_bytes"] > found["runtimed_root_available_bytes"] > 0
    assert found["process_resident_memory_bytes"] > 1 << 20
    assert found["process_open_fds"] > 3


def test_nothing_else_is_served(daemon: PrivateDaemon):
    with get(daemon.base / "metrics.sock", "/") as answer:
        assert answer.status == 404


def test_an_address_that_is_taken_is_named(tmp_path: Path):
    with socket.create_server(("127.0.0.1", 0)) as taken, private_daemon(start=False) as daemon:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        daemon.config.write_text(f'version = 1\n[metrics]\naddress = "{address}"\n')
        done = subprocess.run(daemon.command(), capture_output=True, text=True, timeout=30, check=False)
        assert done.returncode == 1
        assert f"metrics.address: cannot listen on {address}: Address already in use" in done.stderr
        daemon.config.unlink()


def test_a_socket_that_is_taken_stays_with_who_has_it(daemon: PrivateDaemon):
    address = daemon.base / "metrics.sock"
    with private_daemon(start=False) as other:
        other.config.write_text(f'version = 1\n[metrics]\naddress = "{address}"\n')
        done = subprocess.run(other.command(), capture_output=True, text=True, timeout=30, check=False)
        assert done.returncode == 1
        assert f"socket {address}: another program listens on it; stop it, or give another address" in done.stderr
        other.config.unlink()
    with get(address) as answer:
        assert answer.status == 200


def test_what_it_takes_is_not_loaded_without_an_address():
    code = "import runtimed.server.serve, sys; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "runtimed.server.metrics" in loaded
    assert not {"prometheus_client", "runtimed.server.measures"} & set(loaded)
