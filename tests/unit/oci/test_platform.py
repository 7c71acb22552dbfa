import pytest

from runtimed.errors import InvalidArgument, NotFound
from runtimed.oci import platform as platforms
from runtimed.oci.descriptor import Descriptor, Platform


def entry(text, digest="a", **kwargs):
    platform = None
    if text is not None:
        system, architecture, *variant = text.split("/")
        platform = Platform(os=system, architecture=architecture, variant=variant[0] if variant else "")
    return Descriptor(digest="sha256:" + digest * 64, size=1, platform=platform, **kwargs)


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("linux/amd64", "linux/amd64"),
        ("linux/x86_64", "linux/amd64"),
        ("Linux/AMD64", "linux/amd64"),
        ("linux/amd64/v1", "linux/amd64"),
        ("linux/amd64/v3", "linux/amd64/v3"),
        ("linux/aarch64", "linux/arm64"),
        ("linux/arm64/v8", "linux/arm64"),
        ("linux/arm64/8", "linux/arm64"),
        ("linux/arm", "linux/arm/v7"),
        ("linux/arm/6", "linux/arm/v6"),
        ("linux/armhf", "linux/arm/v7"),
        ("linux/armel", "linux/arm/v6"),
        ("linux/i386", "linux/386"),
        ("macos/arm64", "darwin/arm64"),
        ("riscv64", "linux/riscv64"),
    ],
)
def test_a_platform_has_one_normal_form(text, normal):
    assert platforms.format(platforms.parse(text)) == normal


def test_a_system_alone_means_this_machines_architecture():
    assert platforms.parse("linux") == platforms.host()


@pytest.mark.parametrize("text", ["", "/", "a/b/c/d", "linux/", "nonsense", "linux/a b", "linux/" + "x" * 99])
def test_a_bad_platform_is_refused(text):
    with pytest.raises(InvalidArgument, match="platform"):
        platforms.parse(text)


@pytest.mark.parametrize(
    ("there", "wanted", "chosen"),
    [
        (["linux/arm64", "linux/amd64"], "linux/amd64", 1),
        (["linux/386", "linux/amd64"], "linux/amd64", 1),
        (["linux/386", "windows/amd64"], "linux/amd64", 0),
        (["linux/amd64", "linux/amd64/v3"], "linux/amd64", 0),
        (["linux/amd64", "linux/amd64/v2"], "linux/amd64/v3", 1),
        (["linux/arm/v5", "linux/arm/v6", "linux/arm/v7"], "linux/arm/v6", 1),
        (["linux/arm/v5", "linux/arm/v7"], "linux/arm/v6", 0),
        (["linux/arm/v7", "linux/arm64/v8"], "linux/arm64", 1),
        (["linux/arm/v7"], "linux/arm64", 0),
        ([None, "linux/arm64"], "linux/amd64", 0),
        ([None, "linux/amd64"], "linux/amd64", 1),
        (["unknown/unknown", "linux/amd64"], "linux/amd64", 1),
        (["linux/amd64", "linux/amd64"], "linux/amd64", 0),
    ],
)
def test_the_best_entry_of_an_index_is_selected(there, wanted, chosen):
    entries = [entry(text, digest=f"{number:x}") for number, text in enumerate(there)]
    assert platforms.select(entries, platforms.parse(wanted), "image x") is entries[chosen]


def test_an_attestation_is_never_selected_whatever_platform_it_claims():
    lie = entry("linux/amd64", annotations={"vnd.docker.reference.type": "attestation-manifest"})
    with pytest.raises(NotFound):
        platforms.select([lie], platforms.parse("linux/amd64"), "image x")


def test_when_none_fits_the_error_lists_what_there_is():
    entries = [entry("linux/arm64"), entry("linux/s390x"), entry("unknown/unknown")]
    with pytest.raises(NotFound, match="image x has nothing for linux/amd64; it has: linux/arm64, linux/s390x$"):
        platforms.select(entries, platforms.parse("linux/amd64"), "image x")


def test_an_entry_that_needs_features_is_not_for_a_machine_without():
    fancy = Platform(os="linux", architecture="amd64", os_features=("erofs",))
    assert not platforms.matches(fancy, platforms.parse("linux/amd64"))
