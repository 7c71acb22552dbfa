"""Names of signals, as images and CRI write them."""

import signal

import pytest

from runtimed.cri.container_stop import number_of


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("SIGUSR1", signal.SIGUSR1),
        ("usr2", signal.SIGUSR2),
        ("9", signal.SIGKILL),
        ("SIGRTMIN", signal.SIGRTMIN),
        ("SIGRTMIN+3", signal.SIGRTMIN + 3),
        ("SIGRTMINPLUS3", signal.SIGRTMIN + 3),
        ("SIGRTMAX-2", signal.SIGRTMAX - 2),
        ("SIGRTMAXMINUS2", signal.SIGRTMAX - 2),
        *(
            (name, signal.SIGTERM)
            for name in ("", "no such", "0", "65", "99999", "SIGRTMIN+99", "SIG_IGN", "-1", "__doc__")
        ),
    ],
)
def test_a_name_is_a_number_and_what_is_none_ends_the_container(name, number):
    assert number_of(name) == number
