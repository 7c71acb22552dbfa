import errno

import pytest

from runtimed.linux.mount import PAGE_SIZE, mount


def test_options_of_a_page_are_refused_before_the_kernel_cuts_them():
    with pytest.raises(OSError, match="do not fit in a page") as caught:
        mount("none", "/nowhere", "tmpfs", 0, "x" * PAGE_SIZE)
    assert caught.value.errno == errno.E2BIG
