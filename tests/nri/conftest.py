"""The plugin of `plugin.go`, compiled by Debian's Go on Debian's library for plugins."""

import subprocess
from pathlib import Path

import pytest

_SOURCE = Path(__file__).with_name("plugin.go")
_RELEASE = "trixie"  # the first one that has the library
_ENVIRONMENT = "GO111MODULE=off GOPATH=/usr/share/gocode GOCACHE=/build/cache HOME=/build CGO_ENABLED=0"


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The plugin as a program without any library. Takes a minute or two, and the network."""
    built = tmp_path_factory.mktemp("built") / "plugin"
    subprocess.run(
        [
            *("mmdebstrap", "--quiet", "--variant=minbase"),
            "--include=golang-go,golang-github-containerd-nri-dev,ca-certificates",
            "--customize-hook=mkdir $1/build",
            f"--customize-hook=copy-in {_SOURCE} /build",
            f'--customize-hook=chroot "$1" sh -c "cd /build && {_ENVIRONMENT} go build plugin.go"',
            f"--customize-hook=copy-out /build/plugin {built.parent}",
            *("--format=null", _RELEASE),
        ],
        check=True,
        timeout=600,
    )
    return built
