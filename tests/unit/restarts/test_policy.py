import pytest

from runtimed import labels
from runtimed.errors import InvalidArgument
from runtimed.restarts.policy import Policy, is_wanted, parse


@pytest.mark.parametrize(
    ("text", "policy"),
    [
        ("", Policy("always")),
        ("no", Policy("no")),
        ("always", Policy("always")),
        ("unless-stopped", Policy("unless-stopped")),
        ("on-failure", Policy("on-failure")),
        ("on-failure:0", Policy("on-failure")),
        ("on-failure:3", Policy("on-failure", 3)),
    ],
)
def test_policies(text, policy):
    assert parse(text) == policy


@pytest.mark.parametrize(
    "text", ["never", "always:3", "on-failure:x", "on-failure:", "on-failure:-1", "on-failure:1:2", "ALWAYS"]
)
def test_what_is_no_policy(text):
    with pytest.raises(InvalidArgument, match="restart policy"):
        parse(text)


@pytest.mark.parametrize(
    ("policy", "more", "exit_status", "wanted"),
    [
        ("always", {}, 0, True),
        ("always", {}, None, True),
        ("no", {}, 1, False),
        ("on-failure", {}, 0, False),
        ("on-failure", {}, 1, True),
        ("on-failure", {}, None, False),
        ("on-failure:2", {labels.RESTART_COUNT: "1"}, 1, True),
        ("on-failure:2", {labels.RESTART_COUNT: "2"}, 1, False),
        ("on-failure:2", {labels.RESTART_COUNT: "many"}, 1, True),
        ("unless-stopped", {}, 0, True),
        ("unless-stopped", {labels.RESTART_EXPLICITLY_STOPPED: "true"}, 1, False),
        ("unless-stopped", {labels.RESTART_EXPLICITLY_STOPPED: "false"}, 1, True),
        ("always", {labels.RESTART_EXPLICITLY_STOPPED: "true"}, 1, True),
    ],
)
def test_who_is_wanted(policy, more, exit_status, wanted):
    assert is_wanted({labels.RESTART_POLICY: policy, **more}, exit_status) is wanted
