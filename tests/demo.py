"""``make demo``: a private daemon, the embedded image, one container, and how long each stage took."""

import sys
import time

from tests.daemon import private_daemon

IMAGE = "runtimed.io/hello:latest"


def main() -> int:
    """Run the demo; returns the exit status of the container."""
    began = time.monotonic()
    stages: list[tuple[str, float]] = []

    def stage(name: str, since: float) -> float:
        now = time.monotonic()
        stages.append((name, now - since))
        return now

    with private_daemon() as daemon:
        now = stage("daemon ready", began)
        daemon.rctl("pull", IMAGE)
        now = stage("image loaded", now)
        done = daemon.run("--rm", IMAGE, "demo", check=False)
        now = stage("container run", now)
    stage("daemon stopped, nothing left behind", now)

    sys.stdout.write(done.stdout)
    sys.stderr.write(done.stderr)
    print(f"exit status {done.returncode}")
    for name, seconds in stages:
        print(f"{seconds * 1000:7.0f} ms  {name}")
    print(f"{(time.monotonic() - began) * 1000:7.0f} ms  in all")
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
