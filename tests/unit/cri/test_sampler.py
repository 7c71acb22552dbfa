"""What is kept of measurements; that they are right: e2e/test_cri_stats.py."""

from types import SimpleNamespace

from runtimed.cri.sampler import Sampler


def test_what_another_thread_adds_meanwhile_is_no_error():
    nothing: object = SimpleNamespace()
    sampler = Sampler(nothing)  # type: ignore[arg-type]
    sampler._kept.update(dict.fromkeys("abc"))  # type: ignore[arg-type]

    class Ids(set):  # type: ignore[type-arg]
        """Those that there are; while they are looked at, something is measured."""

        def __contains__(self, id):
            sampler._kept[f"{id}-new"] = None  # type: ignore[assignment]
            return super().__contains__(id)

    sampler.forget(Ids("a"))
    assert "a" in sampler._kept
    assert "b" not in sampler._kept
