from runtimed.images.progress import Progress
from runtimed.images.timings import Clock, Layer, Timings
from runtimed.oci import manifest
from runtimed.oci.descriptor import Descriptor

ONE, TWO = (Descriptor(media_type=manifest.OCI_LAYER, digest=f"sha256:{n}", size=n) for n in (100, 200))


def test_the_stages_are_what_lies_between_the_steps():
    now = [0.0]
    heard: list[Progress] = []
    clock = Clock(heard.append, lambda: now[0])
    steps = [
        (0.0, "Resolving", None),
        (1.0, "fetching image content", None),
        (3.0, "waiting", TWO),
        (3.5, "waiting", ONE),
        (3.5, "already exists", ONE),
        (4.0, "downloading", TWO),
        (5.0, "complete", TWO),
        (5.0, "extracting", TWO),
        (7.0, "extracted", TWO),
    ]
    for at, event, descriptor in steps:
        now[0] = at
        clock.report(Progress(event=event, descriptor=descriptor))
    now[0] = 8.0
    assert clock.timings() == Timings(
        resolve_s=1.0,
        manifests_s=2.0,
        layers_s=5.0,
        total_s=8.0,
        downloaded=200,
        layers=[
            Layer(digest="sha256:200", size=200, begun_s=3.0, download_s=2.0, unpack_s=2.0),
            Layer(digest="sha256:100", size=100, begun_s=3.5, was_here=True),
        ],
    )
    assert [progress.event for progress in heard] == [event for _, event, _ in steps]


def test_an_image_without_layers_has_its_times_too():
    now = [5.0]
    clock = Clock(lambda _: None, lambda: now[0])
    now[0] = 6.0
    assert clock.timings() == Timings(resolve_s=1.0, total_s=1.0, layers=[])
