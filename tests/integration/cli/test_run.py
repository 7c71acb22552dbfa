"""rctl run, exec and the commands around them, against real daemons and a real runc."""

import json
import os
import pty
import select
import shlex
import signal
import struct
import subprocess
import termios
from fcntl import ioctl

import pytest

from tests.integration.cli.conftest import NAMESPACE, REPO

pytestmark = pytest.mark.root

IMAGE = "example.org/box:latest"


@pytest.mark.parametrize(("command", "status"), [("exit 0", 0), ("exit 7", 7), ("sh -c 'kill -9 $$'; exit $?", 137)])
def test_the_exit_status_is_the_containers(rctl, command, status):
    assert rctl("run", "--rm", IMAGE, "--", "sh", "-c", command).returncode == status


def test_run_without_a_command_runs_the_images(rctl):
    assert rctl.ok("run", "--rm", IMAGE) == "hello\n"
    assert rctl.ok("ps", "-aq") == ""


def test_streams_are_kept_apart_and_complete(rctl):
    done = rctl("run", "--rm", IMAGE, "apart", "sh", "-c", "seq 100000; echo problem >&2")
    assert done.stdout.split() == [b"%d" % n for n in range(1, 100001)]
    assert done.stderr == b"problem\n"


def test_standard_input_goes_to_the_container_and_ends(rctl):
    data = os.urandom(3 << 20)
    assert rctl("run", "--rm", "-i", IMAGE, "--", "cat", input=data).stdout == data
    assert rctl("run", "--rm", "-i", IMAGE, "--", "cat", input=b"").stdout == b""


def test_without_i_standard_input_is_left_alone(rctl):
    assert rctl("run", "--rm", IMAGE, "--", "cat", input=b"not for it").stdout == b""


def test_output_can_be_appended_to_a_file(rctl, tmp_path):
    with (tmp_path / "out").open("ab") as file:
        file.write(b"before\n")
        file.flush()
        process = rctl.popen("run", "--rm", IMAGE, stdout=file)
        assert process.wait(60) == 0
    assert (tmp_path / "out").read_bytes() == b"before\nhello\n"


def test_options_reach_the_process(rctl, tmp_path):
    (tmp_path / "env").write_text("# comment\nFROM_FILE=2\n")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "file").write_text("mounted")
    script = "echo $FROM_IMAGE $FROM_FILE $GIVEN; pwd; cat /data/file; hostname; touch /data/x 2>&1; id -u; id -G"
    out = rctl.ok(
        "run", "--rm", "-e", "GIVEN=3", "--env-file", f"{tmp_path}/env", "-v", f"{tmp_path}/data:/data:ro",
        "-w", "/data", "--hostname", "box", "--user", "alice", "--memory", "64m", "--cpus", "0.5", "--pids-limit", "50",
        IMAGE, "--", "sh", "-c", script,
    )  # fmt: skip
    assert out.splitlines() == [
        "1 2 3", "/data", "mountedbox", "touch: /data/x: Read-only file system", "1000", "1001 10"
    ]  # fmt: skip


def test_a_read_only_container_cannot_write(rctl):
    done = rctl("run", "--rm", "--read-only", IMAGE, "--", "touch", "/x")
    assert done.returncode == 1
    assert b"Read-only" in done.stderr


def test_a_privileged_container_sees_the_hosts_devices(rctl):
    assert rctl.ok("run", "--rm", "--privileged", IMAGE, "--", "sh", "-c", "test -e /dev/kmsg && echo yes") == "yes\n"


def test_streams_that_are_closed_do_no_harm(rctl):
    command = shlex.join([*rctl.argv, "run", "--cgroup-parent", f"/{NAMESPACE}", "--rm", IMAGE, "closed"])
    closed = ["sh", "-c", f'{command} sh -c "echo x >&2; exit 5" <&- >&-']
    done = subprocess.run(closed, capture_output=True, cwd=REPO, check=False)
    assert (done.returncode, done.stderr) == (5, b"x\n")


def test_the_default_network_is_a_loopback_alone(rctl):
    out = rctl.ok("run", "--rm", IMAGE, "--", "ip", "-o", "link")
    assert out.count("\n") == 1
    assert "LOOPBACK,UP" in out


def test_a_command_that_is_missing_leaves_nothing_and_says_what_was_meant(rctl, daemon):
    done = rctl("run", IMAGE, "echo", "hi")
    assert done.returncode == 1
    message, hint = done.stderr.decode().splitlines()
    assert message.startswith("rctl: ")
    assert '"hi": executable file not found' in message
    assert hint == "hint: 'echo' was taken as the container's ID; without one: rctl run IMAGE -- COMMAND"
    assert rctl.ok("ps", "-aq") == ""
    assert " echo " not in daemon.ctr("snapshots", "ls")


@pytest.mark.parametrize("user", ["nobody-here", "alice:nogroup", "4294967296", "-1", "0x0", "+0", "a b", ":::"])
def test_a_user_that_cannot_be_is_refused_and_leaves_nothing(rctl, daemon, user):
    before = daemon.ctr("snapshots", "ls")
    done = rctl("run", "--user", user, IMAGE, "who", "true")
    assert done.returncode == 1
    assert done.stderr.startswith((b"rctl: user ", b"rctl: group "))
    assert rctl.ok("ps", "-aq") == ""
    assert daemon.ctr("snapshots", "ls") == before


def test_an_id_that_is_taken_is_refused_and_the_first_is_unharmed(rctl, tmp_path):
    rctl.ok("run", "-d", "--log", f"{tmp_path}/log", IMAGE, "twice", "sleep", "60")
    done = rctl("run", IMAGE, "twice", "true")
    assert done.returncode == 1
    assert b"already exists" in done.stderr
    assert rctl.json("ps")[0]["status"] == "running"


def test_a_detached_container_is_executed_in_logged_killed_and_removed(rctl, tmp_path):
    loop = 'trap "echo bye; exit 3" TERM; echo one; echo two; echo ready >/tmp/ready; while :; do sleep 0.1; done'
    assert rctl.ok("run", "-d", "--log", f"{tmp_path}/log", IMAGE, "web", "sh", "-c", loop) == "web\n"
    rctl.ok("exec", "web", "sh", "-c", "while ! cat /tmp/ready; do sleep 0.05; done")
    script = "cat; echo $A; pwd; id -u; exit 9"
    done = rctl("exec", "-i", "-e", "A=b", "-w", "/", "-u", "alice", "web", "sh", "-c", script, input=b"in ")
    assert (done.returncode, done.stdout) == (9, b"in b\n/\n1000\n")
    assert rctl.ok("logs", "-n", "1", "web") == "two\n"
    refused = rctl("rm", "web")
    assert (refused.returncode, b"is running" in refused.stderr) == (1, True)

    follower = rctl.popen("logs", "-f", "web", stdout=-1)
    rctl.ok("kill", "web")
    assert follower.communicate(timeout=30)[0] == b"one\ntwo\nbye\n"
    (listed,) = rctl.json("ps", "-a")
    assert (listed["status"], listed["exit_status"]) == ("exited", 3)
    assert rctl.json("inspect", "web")["task"]["exit_status"] == 3
    assert rctl.ok("rm", "web") == "web\n"
    assert b"not found" in rctl("kill", "web").stderr


def test_rm_f_ends_what_runs(rctl, tmp_path):
    rctl.ok("run", "-d", "--log", f"{tmp_path}/log", IMAGE, "stubborn", "sleep", "1000")
    assert rctl.ok("rm", "-f", "stubborn") == "stubborn\n"
    assert rctl.ok("ps", "-aq") == ""
    assert (tmp_path / "log").exists()  # a file that --log names is the user's


def test_exec_of_a_missing_command_or_container_is_an_error(rctl, tmp_path):
    rctl.ok("run", "-d", "--log", f"{tmp_path}/log", IMAGE, "c1", "sleep", "60")
    assert b"executable file not found" in rctl("exec", "c1", "nope").stderr
    assert rctl("exec", "-d", "c1", "true").returncode == 0
    missing = rctl("exec", "none", "true")
    assert (missing.returncode, b"not found" in missing.stderr) == (1, True)


def test_signals_are_forwarded(rctl):
    script = 'trap "echo got; exit 5" TERM; echo ready; while :; do sleep 0.1; done'
    process = rctl.popen("run", "--rm", IMAGE, "--", "sh", "-c", script, stdout=-1)
    assert process.stdout.readline() == b"ready\n"
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=30)
    assert (out, process.returncode) == (b"got\n", 5)


def test_a_reader_that_leaves_ends_the_container(rctl):
    process = rctl.popen("run", "--rm", IMAGE, "--", "yes", stdout=-1, stderr=-1)
    assert process.stdout.readline() == b"y\n"
    process.stdout.close()
    assert process.wait(30) == 137
    process.stderr.close()


def test_a_process_left_behind_by_exec_does_not_hold_it(rctl, tmp_path):
    rctl.ok("run", "-d", "--log", f"{tmp_path}/log", IMAGE, "c1", "sleep", "60")
    assert rctl.ok("exec", "c1", "sh", "-c", "sleep 60 & echo started", timeout=20) == "started\n"


def test_a_container_has_the_terminal_which_is_given_back_as_it_was(rctl):
    main, sub = pty.openpty()
    try:
        ioctl(sub, termios.TIOCSWINSZ, struct.pack("HHHH", 33, 77, 0, 0))
        before = termios.tcgetattr(sub)
        process = rctl.popen("run", "--rm", "-t", IMAGE, "--", "sh", stdin=sub, stdout=sub, stderr=sub)
        os.write(main, b"stty size; tty; exit 6\n")
        shown = _read_until_exit(main, process)
        assert process.returncode == 6
        assert b"33 77" in shown
        assert b"/dev/pts/0" in shown
        assert termios.tcgetattr(sub) == before
    finally:
        os.close(main)
        os.close(sub)


def test_a_terminal_is_given_back_when_the_start_fails(rctl):
    main, sub = pty.openpty()
    try:
        before = termios.tcgetattr(sub)
        process = rctl.popen("run", "--rm", "-t", IMAGE, "--", "nope", stdin=sub, stdout=sub, stderr=sub)
        assert b"executable file not found" in _read_until_exit(main, process)
        assert process.returncode == 1
        assert termios.tcgetattr(sub) == before
    finally:
        os.close(main)
        os.close(sub)


def _read_until_exit(main, process):
    shown = b""
    pidfd = os.pidfd_open(process.pid)
    try:
        while True:
            ready, _, _ = select.select([main, pidfd], [], [], 60)
            if main in ready:
                shown += os.read(main, 65536)
            else:
                process.wait(10)
                return shown
    finally:
        os.close(pidfd)


def test_a_terminal_is_needed_for_t(rctl):
    done = rctl("run", "-t", IMAGE)
    assert (done.returncode, done.stderr) == (
        1,
        b"rctl: standard input is not a terminal, which -t needs; leave -t out, or add -d\n",
    )


def test_the_container_goes_on_while_the_daemon_is_away(rctl, daemon):
    script = "read word; echo $word; while [ ! -e /tmp/go ]; do sleep 0.05; done; echo done; exit 4"
    process = rctl.popen("run", "--rm", "-i", IMAGE, "away", "sh", "-c", script, stdin=-1, stdout=-1, stderr=-1)
    process.stdin.write(b"ready\n")  # read only after rctl has heard that it runs
    process.stdin.flush()
    assert process.stdout.readline() == b"ready\n", process.stderr.read()
    daemon.stop(signal.SIGKILL)
    lost = process.stderr.readline()
    assert b"lost the daemon" in lost
    assert b"containers go on" in lost
    daemon.start()
    assert process.stderr.readline() == b"rctl: the daemon is back\n"
    rctl.ok("exec", "away", "touch", "/tmp/go")
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (4, b"done\n"), err
    assert rctl.ok("ps", "-aq") == ""


def test_events_are_shown_as_they_happen(rctl, tmp_path):
    watcher = rctl.popen("-o", "json", "events", "topic~=/tasks/", stdout=-1)
    try:
        # Subscribing takes a moment that cannot be seen from outside: run until something is heard.
        for attempt in range(20):
            rctl.ok("run", "--rm", IMAGE, f"ev{attempt}")
            if select.select([watcher.stdout], [], [], 0)[0]:
                break
        event = json.loads(watcher.stdout.readline())
        assert event["namespace"] == rctl.namespace
        assert event["topic"].startswith("/tasks/")
        assert event["event"]["container_id"].startswith("ev")
    finally:
        watcher.send_signal(signal.SIGINT)
        watcher.stdout.close()
    assert watcher.wait(30) == 130


def test_an_image_is_listed_inspected_unpacked_for_another_snapshotter_and_removed(rctl, daemon):
    daemon.ctr("images", "tag", IMAGE, "example.org/other:1")
    assert rctl.ok("images", "-q").split() == [IMAGE, "example.org/other:1"]
    image = rctl.json("inspect", "example.org/other:1")
    assert image["config"]["config"]["Cmd"] == ["/bin/echo", "hello"]
    done = rctl("run", "--rm", "--snapshotter", "native", "example.org/other:1")
    assert (done.returncode, done.stdout) == (0, b"hello\n"), done.stderr
    assert rctl.ok("rmi", "example.org/other:1") == "example.org/other:1\n"
    gone = rctl("run", "--pull", "never", "example.org/other:1")
    assert gone.returncode == 1
    assert b"hint: get it with: rctl pull example.org/other:1" in gone.stderr


def test_labels_do_not_reach_the_terminal_raw(rctl, daemon):
    daemon.ctr("containers", "create", "--label", "x=\x1b[31m", "--snapshotter", "overlayfs", IMAGE, "coloured")
    assert "\x1b" not in rctl.ok("inspect", "coloured")
    assert "\x1b" not in rctl.ok("ps", "-a")
    assert b"\x1b" not in rctl("kill", "\x1b[31m").stderr


def test_version_and_info_tell_of_both_sides(rctl):
    assert rctl.json("version")["server"]["version"]
    info = rctl.json("info")
    assert {"io.containerd.snapshotter.v1"} < {plugin["type"] for plugin in info["plugins"]}
