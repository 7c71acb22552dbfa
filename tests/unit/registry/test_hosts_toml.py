import pytest

from runtimed.errors import InvalidArgument
from runtimed.registry.hosts import Capability
from runtimed.registry.hosts_toml import endpoints


@pytest.fixture
def write(tmp_path):
    """Write a hosts.toml for a host and return what comes of it for that host."""

    def write(text, name="r.example", host="r.example", scheme=""):
        (tmp_path / name).mkdir(exist_ok=True)
        (tmp_path / name / "hosts.toml").write_text(text)
        return endpoints([tmp_path], host, scheme)

    return write


def bases(found):
    return [str(one) for one in found]


def test_without_a_file_it_is_the_host_itself(tmp_path):
    assert bases(endpoints([tmp_path, tmp_path / "nowhere"], "r.example")) == ["https://r.example/v2"]


def test_mirrors_come_first_in_their_order_and_name_their_lines(write, tmp_path):
    found = write(
        '# mirrors\nserver = "https://up.example"\n[host."https://z.example/pre"]\ncapabilities = ["pull"]\n'
        '[host."http://a.example:5000"]\n[host."b.example/deep/v2/"]\n'
    )
    assert bases(found) == [
        "https://z.example/pre/v2",
        "http://a.example:5000/v2",
        "https://b.example/deep/v2",
        "https://up.example/v2",
    ]
    file = tmp_path / "r.example/hosts.toml"
    assert [one.source for one in found] == [f"{file}:3", f"{file}:5", f"{file}:6", f"{file}:2"]
    assert found[0].capabilities == {Capability.PULL}
    assert found[1].capabilities == set(Capability)


def test_without_a_server_what_stands_at_the_top_is_about_the_registry_itself(write):
    *_, own = write('skip_verify = true\ncapabilities = ["push"]\n[host."https://m.example"]\n')
    assert (str(own), own.tls.skip_verify, own.capabilities) == ("https://r.example/v2", True, {Capability.PUSH})
    assert bases(write('[host."https://m.example"]\n', name="docker.io", host="docker.io")) == [
        "https://m.example/v2",
        "https://registry-1.docker.io/v2",
    ]


def test_a_path_may_be_all_there_is(write):
    [own] = write('server = "https://up.example/api/oci"\noverride_path = true\n')
    assert str(own.base / "app") == "https://up.example/api/oci/app"


def test_files_lie_beside_hosts_toml_unless_they_say_otherwise(write, tmp_path):
    (tmp_path / "r.example").mkdir()
    for name in ("ca.pem", "client.pem", "client.key"):
        (tmp_path / "r.example" / name).touch()
    (tmp_path / "other.pem").touch()
    text = f'ca = ["ca.pem", "{tmp_path}/other.pem"]\nclient = [["client.pem", "client.key"], "client.pem"]\n'
    [own] = write(text)
    directory = tmp_path / "r.example"
    assert own.tls.authorities == (f"{directory}/ca.pem", f"{tmp_path}/other.pem")
    assert own.tls.identities == (
        (f"{directory}/client.pem", f"{directory}/client.key"),
        (f"{directory}/client.pem", ""),
    )


def test_headers_are_kept_and_not_shown(write):
    [mirror, _] = write('[host."https://m.example".header]\nx-key = "hush"\nx-more = ["a", "b"]\n')
    assert mirror.headers == {"x-key": "hush", "x-more": "a, b"}
    assert "hush" not in repr(mirror)


@pytest.mark.parametrize("name", ["r.example_5000_", "r.example:5000", "_default"])
def test_the_directory_of_a_host_with_a_port(write, name):
    assert bases(write('server = "https://up.example"', name=name, host="r.example:5000")) == ["https://up.example/v2"]


def test_the_first_directory_that_knows_the_host_counts(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name / "r.example").mkdir(parents=True)
        (tmp_path / name / "r.example/hosts.toml").write_text(f'server = "https://{name}.example"')
    assert bases(endpoints([tmp_path / "one", tmp_path / "two"], "r.example")) == ["https://one.example/v2"]


def test_a_directory_of_dockers_has_certificates(tmp_path):
    (tmp_path / "r.example").mkdir()
    for name in ("a.crt", "b.cert", "b.key"):
        (tmp_path / "r.example" / name).touch()
    [own] = endpoints([tmp_path], "r.example")
    directory = tmp_path / "r.example"
    assert (own.tls.authorities, own.tls.identities) == (
        (f"{directory}/a.crt",),
        ((f"{directory}/b.cert", f"{directory}/b.key"),),
    )


@pytest.mark.parametrize(
    ("text", "line", "why"),
    [
        ("server = 1", 1, "server: must be a URL"),
        ("x = 1", 1, "x: unknown key; known here are server, host, capabilities"),
        ('host = "x"', 1, r"host: must be tables"),
        ('[host]\n"https://m" = 1', 2, "must be a table"),
        ('[host."https://m"]\n\nskip_verify = 1', 3, "skip_verify: must be true or false"),
        ('[host."https://m"]\ncapabilities = ["pul"]', 2, "'pul' is not one of pull, resolve, push"),
        ('[host."https://m"]\nca = "nowhere.pem"', 2, "nowhere.pem': no such file"),
        ('[host."https://m"]\nca = 1', 2, "ca: must be a string or a list"),
        ('[host."https://m"]\nclient = [[1]]', 2, "client: must be file names"),
        ('[host."https://m".header]\n"a b" = "x"', 2, "not a header's name and value"),
        ('[host."https://m".header]\na = "x\\r\\nb: c"', 2, "not a header's name and value"),
        ('[host."ftp://m"]', 1, "must be http"),
        ('# c\n[host."https://u:hush@m"]', 2, "credentials do not belong into a URL"),
        ('[host."https://m?x=1"]', 1, "must be http"),
        ("server = ", None, "not TOML"),
        ("a" * (2 << 20), None, "more than 1048576 bytes"),
    ],
)
def test_a_mistake_names_file_and_line(write, text, line, why):
    where = rf"hosts\.toml:{line}: " if line else r"hosts\.toml: "
    with pytest.raises(InvalidArgument, match=where) as caught:
        write(text)
    assert why in str(caught.value)
