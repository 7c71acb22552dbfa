"""The credentials of a pull request are for the registry that the image is named after."""

import pytest

from runtimed.cri.images import Auth, _asked
from runtimed.registry.auth import Credentials


@pytest.mark.parametrize(
    ("image_host", "asking", "is_answered"),
    [
        ("r.example:5000", "r.example:5000", True),
        ("r.example", "r.example", True),
        ("docker.io", "registry-1.docker.io", True),
        ("r.example", "mirror.example", False),  # which hosts.toml may name without the kubelet's knowledge
        ("r.example", "r.example:5000", False),
    ],
)
async def test_a_mirror_is_not_told(image_host, asking, is_answered):
    ask = _asked(image_host, Auth(username="me", password="x"))
    assert ask is not None
    wanted = Credentials(username="me", secret="x") if is_answered else None
    assert await ask(asking, ()) == wanted
