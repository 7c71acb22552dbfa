from runtimed.metadata.reserve import Reserve


def test_the_space_is_taken_given_up_and_taken_again(tmp_path):
    path = tmp_path / "reserve"
    reserve = Reserve(path)
    assert not reserve.release()
    for _ in range(2):
        reserve.fill()
        assert path.stat().st_blocks * 512 >= 4 << 20
        assert reserve.release()
        assert path.stat().st_blocks == 0
        assert not reserve.release()


def test_space_that_is_taken_is_left_as_it_is(tmp_path):
    reserve = Reserve(tmp_path / "reserve")
    reserve.fill()
    before = (tmp_path / "reserve").stat()
    reserve.fill()
    assert (tmp_path / "reserve").stat() == before


def test_a_place_that_cannot_be_written_is_no_error(tmp_path):
    reserve = Reserve(tmp_path / "missing" / "reserve")
    reserve.fill()
    assert not reserve.release()
