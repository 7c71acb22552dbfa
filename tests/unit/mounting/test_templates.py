import pytest

from runtimed.errors import InvalidArgument
from runtimed.metadata.activations import ActiveMount
from runtimed.mounting.templates import formatted
from runtimed.mounts import Mount

ACTIVE = [
    ActiveMount(mount=Mount("erofs", f"/layers/{number}", f"t{number}"), mount_point=f"/m/{number}", mounted_at=1)
    for number in range(3)
]


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("plain", "plain"),
        ("{{ mount 0 }}", "/m/0"),
        ("{{mount 1}}/upper", "/m/1/upper"),
        ("{{ source 2 }}:{{ target 2 }}", "/layers/2:t2"),
        ("lowerdir={{ overlay 0 2 }}", "lowerdir=/m/0:/m/1:/m/2"),
        ("lowerdir={{ overlay 2 0 }}", "lowerdir=/m/2:/m/1:/m/0"),
        ("{{ overlay 1 1 }}", "/m/1"),
        ("a {{- mount 0 -}} b", "a/m/0b"),
        ("a }} {{ mount 0 }}", "a }} /m/0"),
    ],
)
def test_a_template_is_filled_in_wherever_it_stands(template, text):
    filled = formatted(Mount("overlay", template, template, ("ro", template)), ACTIVE)
    assert filled == Mount("overlay", text, text, ("ro", text))


@pytest.mark.parametrize(
    "template",
    [
        "{{ mount 3 }}",
        "{{ mount -1 }}",
        "{{ overlay 0 3 }}",
        "{{ overlay 3 0 }}",
        "{{ mount x }}",
        "{{ mount }}",
        "{{ exec 0 }}",
        "{{ mount 99999999999999999999 }}",
        "{{}}",
    ],
)
def test_what_cannot_be_filled_in_is_refused(template):
    with pytest.raises(InvalidArgument, match="mount template"):
        formatted(Mount("overlay", "x", "", (template,)), ACTIVE)
