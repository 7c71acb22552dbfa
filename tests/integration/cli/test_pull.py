"""What only our own daemon does: pulling through Transfer, and logs of its own."""

import os
import pty
import signal

import pytest

from tests.fakes.registry import serving
from tests.integration.cli.conftest import Rctl, runtimed

pytestmark = pytest.mark.root

IMAGE = "example.org/box:latest"


@pytest.fixture(scope="module")
def daemon(tmp_path_factory, box):
    with runtimed(tmp_path_factory.mktemp("runtimed"), box) as running:
        yield running


@pytest.fixture(scope="module")
def registry(box):
    with serving(box, "app") as running:
        yield running


@pytest.fixture
def private(box):
    with serving(box, "app", auth="basic", users={"alice": "pass:word"}) as running:
        yield running


def test_a_pull_prints_a_line_a_step_and_the_name(rctl, registry):
    done = rctl("pull", f"{registry.host}/app")
    assert done.stdout.decode() == f"{registry.host}/app:latest\n"
    steps = done.stderr.decode()
    assert "manifest " in steps
    assert "layer " in steps
    assert "Completed pull" in steps
    assert "\x1b" not in steps


def test_a_pull_for_programs_prints_one_json_object(rctl, registry):
    done = rctl.json("pull", f"{registry.host}/app:latest")
    assert done["name"] == f"{registry.host}/app:latest"
    assert done["digest"].startswith("sha256:")


def test_a_pull_on_a_terminal_draws_bars(rctl, registry):
    rctl("rmi", f"{registry.host}/app")
    main, sub = pty.openpty()
    try:
        process = rctl.popen("pull", f"{registry.host}/app", stdout=-1, stderr=sub, env={**os.environ, "TERM": "xterm"})
        out, _ = process.communicate(timeout=30)
        assert (process.returncode, out.decode()) == (0, f"{registry.host}/app:latest\n")
        assert b"layer " in os.read(main, 1 << 16)
    finally:
        os.close(main)
        os.close(sub)


def test_run_pulls_what_is_missing_and_is_told_not_to(rctl, registry):
    rctl("rmi", f"{registry.host}/app")
    refused = rctl("run", "--rm", "--pull", "never", f"{registry.host}/app")
    assert refused.returncode == 1
    assert f"hint: get it with: rctl pull {registry.host}/app" in refused.stderr.decode()
    assert rctl.ok("run", "--rm", f"{registry.host}/app") == "hello\n"
    before = len(registry.seen)
    assert rctl.ok("run", "--rm", f"{registry.host}/app") == "hello\n"
    assert len(registry.seen) == before


def test_credentials_are_given_to_the_registry_that_wants_them(rctl, private):
    name = f"{private.host}/app:latest"
    assert rctl.ok("pull", "--user", "alice:pass:word", name) == f"{name}\n"
    rctl.ok("rmi", name)


@pytest.mark.parametrize("user", [(), ("--user", "alice:wrong")])
def test_without_the_right_credentials_the_hint_says_how_to_give_them(rctl, private, user):
    done = rctl("pull", *user, f"{private.host}/app")
    assert done.returncode == 1
    assert f"hint: give credentials for {private.host}: rctl pull --user NAME" in done.stderr.decode()
    assert private.host not in rctl.ok("images", "-q")


@pytest.mark.parametrize("reference", ["127.0.0.1:1/none", "NOT/lower", "a b"])
def test_a_reference_that_leads_nowhere_is_one_line_and_status_1(rctl, reference):
    done = rctl("pull", reference)
    assert done.returncode == 1
    said = [line for line in done.stderr.decode().splitlines() if line.startswith("rctl: ")]
    assert len(said) == 1
    assert reference in said[0]


def test_an_image_that_the_registry_does_not_have_is_not_found(rctl, registry):
    done = rctl("pull", f"{registry.host}/none:1")
    assert done.returncode == 1
    assert f"{registry.host}/none:1" in done.stderr.decode()


def test_the_log_of_a_detached_container_is_private_and_goes_with_it(rctl, daemon):
    rctl.ok("run", "-d", IMAGE, "logged", "sh", "-c", "echo out; echo err >&2; exit 5")
    assert rctl.ok("logs", "-f", "logged") == "out\nerr\n"
    (log,) = (daemon.directory / "root").rglob("logs/*/logged.log")
    assert (log.stat().st_mode & 0o777, log.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    assert rctl.json("ps", "-a")[0]["exit_status"] == 5
    rctl.ok("rm", "logged")
    assert not log.exists()


def test_a_label_does_not_choose_a_file_to_show_or_delete(rctl, daemon, tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("hidden")
    label = f"runtimed.io/log={secret.as_uri()}"
    daemon.ctr("containers", "create", "--snapshotter", "overlayfs", "--label", label, IMAGE, "sly")
    shown = rctl("logs", "sly")
    assert (shown.returncode, shown.stdout) == (1, b"")
    rctl.ok("rm", "sly")
    assert secret.read_text() == "hidden"


def test_a_container_is_started_again_with_its_files(rctl):
    script = "cat /data/n; echo more >>/data/n"
    rctl.ok("run", "-d", IMAGE, "again", "sh", "-c", script)
    rctl.ok("logs", "-f", "again")
    assert rctl.ok("start", "again") == "again\n"
    assert rctl.ok("logs", "-f", "again") == "more\n"


def test_an_orderly_stop_of_the_daemon_is_waited_out_as_well(rctl, daemon):
    script = "read word; echo $word; while [ ! -e /tmp/go ]; do sleep 0.05; done; exit 4"
    process = rctl.popen("run", "--rm", "-i", IMAGE, "calm", "sh", "-c", script, stdin=-1, stdout=-1, stderr=-1)
    process.stdin.write(b"ready\n")  # read only after rctl has heard that it runs
    process.stdin.flush()
    assert process.stdout.readline() == b"ready\n"
    daemon.stop(signal.SIGTERM)
    assert b"lost the daemon" in process.stderr.readline()
    daemon.start()
    assert process.stderr.readline() == b"rctl: the daemon is back\n"
    Rctl(daemon.address).ok("exec", "calm", "touch", "/tmp/go")
    process.communicate(timeout=30)
    assert process.returncode == 4


def test_an_image_for_another_machine_is_pulled_or_refused(rctl, registry):
    rctl.ok("pull", f"{registry.host}/app")
    done = rctl("run", "--rm", "--pull", "never", "--platform", "linux/s390x", f"{registry.host}/app")
    assert done.returncode == 1
    assert "has nothing for linux/s390x" in done.stderr.decode()
    done = rctl("run", "--rm", "--platform", "linux/s390x", f"{registry.host}/app")
    assert done.returncode == 1
    assert rctl.ok("ps", "-aq") == ""
