"""Limits of a spec, put over others."""

from runtimed.oci.limits import merged


def test_values_go_over_values_and_the_rest_stays():
    current = {"memory": {"limit": 1, "swap": 2}, "pids": {"limit": 3}, "devices": [{"allow": False}]}
    over = {"memory": {"limit": 9}, "cpu": {"shares": 4}}
    assert merged(current, over) == {
        "memory": {"limit": 9, "swap": 2},
        "pids": {"limit": 3},
        "devices": [{"allow": False}],
        "cpu": {"shares": 4},
    }
    assert current["memory"] == {"limit": 1, "swap": 2}


def test_huge_pages_go_over_those_of_their_size():
    current = {"hugepageLimits": [{"pageSize": "2MB", "limit": 1}, {"pageSize": "1GB", "limit": 2}]}
    over = {"hugepageLimits": [{"pageSize": "2MB", "limit": 5}]}
    expected = [{"pageSize": "1GB", "limit": 2}, {"pageSize": "2MB", "limit": 5}]
    assert merged(current, over)["hugepageLimits"] == expected
    assert merged({}, over) == over
