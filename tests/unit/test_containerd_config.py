"""What becomes of a containerd's configuration, and what is said of the rest."""

from pathlib import Path

import pytest

from runtimed import config
from runtimed.config import CriRuntime, ProxyPlugin, Runtime
from runtimed.containerd_config import migrate
from runtimed.errors import InvalidArgument, NotFound

RUNC = "io.containerd.runc.v2"


@pytest.fixture
def migrated(tmp_path):
    """Migrate *text*; return the configuration that comes out, and what was left with the paths cut off."""

    def migrated(text):
        (tmp_path / "config.toml").write_text(text)
        done = migrate(tmp_path / "config.toml")
        (tmp_path / "ours.toml").write_text(done.text)
        return config.load(tmp_path / "ours.toml"), [
            line.removeprefix(f"{tmp_path}/config.toml:") for line in done.left
        ]

    return migrated


WANTED = [
    ('version = 2\n[grpc]\naddress = "/run/x.sock"\nuid = 1\ngid = 7\n', {"address": "/run/x.sock"}),
    ('version = 2\n[debug]\nlevel = "trace"\nformat = "json"\n', {"log": config.Log(level="debug", format="json")}),
    (
        'version = 2\n[plugins."io.containerd.gc.v1.scheduler"]\npause_threshold = 0.05\nmutation_threshold = 0\n'
        'schedule_delay = "1m0.5s"\nstartup_delay = "1500us"\ndeletion_threshold = 3\n',
        {
            "gc": config.Gc(
                pause_percent=5,
                mutation_threshold=0,
                schedule_delay_ms=60500,
                startup_delay_ms=2,
                deletion_threshold=3,
            )
        },
    ),
    ('version = 2\n[metrics]\naddress = "127.0.0.1:1338"\n', {"metrics.address": "127.0.0.1:1338"}),
    (
        'version = 3\n[plugins."io.containerd.grpc.v1.cri"]\nstream_server_address = "10.0.0.1"\n'
        'stream_server_port = "10010"\n[plugins."io.containerd.grpc.v1.cri".x509_key_pair_streaming]\n'
        'tls_key_file = "/k"\ntls_cert_file = "/c"\n',
        {"cri.streaming": config.CriStreaming(host="10.0.0.1", port=10010, certificate="/c", key="/k")},
    ),
    ('version = 1\n[plugins.restart]\ninterval = "30s"\n', {"restart": config.Restart(interval_s=30)}),
    (
        'version = 2\n[proxy_plugins.stargz]\ntype = "snapshot"\naddress = "/run/s.sock"\n'
        'capabilities = ["remap-ids"]\n',
        {"proxy_plugins": {"stargz": ProxyPlugin(address="/run/s.sock", capabilities=("remap-ids",))}},
    ),
    (
        'version = 2\n[stream_processors.x]\naccepts = ["a"]\nreturns = "b"\npath = "p"\nargs = ["-k"]\n',
        {"stream_processors": {"x": config.StreamProcessor(accepts=("a",), returns="b", path="p", args=("-k",))}},
    ),
    (
        'version = 2\n[plugins."io.containerd.nri.v1.nri"]\ndisable = false\ndisable_connections = true\n'
        'plugin_path = "/opt/p"\nplugin_request_timeout = "3s"\nplugin_registration_timeout = "1m0s"\n'
        'socket_path = "/run/n.sock"\n',
        {
            "nri": config.Nri(
                enabled=True,
                external_connections=False,
                plugin_path=Path("/opt/p"),
                request_timeout_ms=3000,
                registration_timeout_ms=60000,
                socket=Path("/run/n.sock"),
            )
        },
    ),
    ('version = 2\n[plugins."io.containerd.nri.v1.nri"]\ndisable = true\n', {"nri": config.Nri()}),
    (
        f'version = 2\n[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]\nruntime_type = "{RUNC}"\n'
        '[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]\nSystemdCgroup = true\n',
        {"runtimes": {RUNC: Runtime(systemd_cgroup=True)}},
    ),
    (
        "version = 1\n[plugins.cri]\nsystemd_cgroup = true\n",
        {"runtimes": {RUNC: Runtime(systemd_cgroup=True)}, "cri": config.Cri()},
    ),
    (
        f'version = 3\n[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.a]\nruntime_type = "{RUNC}"\n'
        f'[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.b]\nruntime_type = "{RUNC}"\n'
        '[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.b.options]\nBinaryName = "crun"\n'
        '[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.k]\nruntime_type = "io.containerd.kata.v2"\n'
        'snapshotter = "native"\npod_annotations = ["io.katacontainers.*"]\n'
        '[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.k.options]\nConfigPath = "/etc/kata.toml"\n',
        {
            "runtimes": {
                RUNC: Runtime(),
                "b": Runtime(binary="crun"),
                "io.containerd.kata.v2": Runtime(shim="containerd-shim-kata-v2", config_path="/etc/kata.toml"),
            },
        },
    ),
    (
        'version = 3\n[plugins."io.containerd.cri.v1.images"]\nsnapshotter = "native"\n'
        '[plugins."io.containerd.cri.v1.images".pinned_images]\nsandbox = "example.com/pause:1"\n'
        '[plugins."io.containerd.cri.v1.runtime"]\nmax_container_log_line_size = 4096\n'
        '[plugins."io.containerd.cri.v1.runtime".cni]\nbin_dirs = ["/a", "/b"]\nconf_dir = "/c"\n',
        {"cri.pause_image": "example.com/pause:1", "cri.snapshotter": "native", "cri.max_log_line": 4096},
    ),
]


@pytest.mark.parametrize(("text", "expected"), WANTED)
def test_what_is_taken_over(migrated, text, expected):
    loaded, left = migrated(text)
    assert left == []
    for dotted, value in expected.items():
        found = loaded
        for name in dotted.split("."):
            found = getattr(found, name)
        assert found == value


def test_handlers_lead_to_their_runtimes(migrated):
    loaded, _ = migrated(WANTED[12][0])
    assert loaded.cri.runtimes["a"] == CriRuntime()
    assert loaded.cri.runtimes["b"] == CriRuntime(runtime="b")
    kata = CriRuntime(runtime="io.containerd.kata.v2", snapshotter="native", pod_annotations=("io.katacontainers.*",))
    assert loaded.cri.runtimes["k"] == kata


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('version = 2\nroot = "/data"\n', "2: root: runtimed keeps files of its own"),
        ('version = 2\n[grpc]\n\ntcp_address = ":1"\n', "4: grpc.tcp_address: the API is served on a unix socket only"),
        ("version = 2\noom_score = -999\n", "2: oom_score: set OOMScoreAdjust="),
        ('version = 2\ndisabled_plugins = ["x"]\n', "2: disabled_plugins: the parts of runtimed"),
        ('version = 2\n[metrics]\naddress = "0:1"\n', "3: metrics.address: metrics.address: '0:1' is neither"),
        ("version = 2\n[metrics]\ngrpc_histogram = true\n", "3: metrics.grpc_histogram: how long calls take is always"),
        (
            'version = 2\n[plugins."io.containerd.nri.v1.nri"]\nplugin_request_timeout = "1h"\n',
            '3: plugins."io.containerd.nri.v1.nri".plugin_request_timeout: nri.request_timeout_ms: 3600000 is not',
        ),
        (
            'version = 2\n[plugins."io.containerd.grpc.v1.cri"]\nenable_tls_streaming = true\n',
            '3: plugins."io.containerd.grpc.v1.cri".enable_tls_streaming: TLS is spoken where',
        ),
        (
            'version = 2\n[plugins."io.containerd.grpc.v1.cri"]\nstream_server_port = "http"\n',
            "3: plugins.\"io.containerd.grpc.v1.cri\".stream_server_port: 'http' is not the number of a port",
        ),
        ('version = 2\n[debug]\nlevel = "loud"\n', "3: debug.level: 'loud' is no level of ours"),
        (
            '[plugins.cri.registry.mirrors.x]\nendpoint = ["y"]\n',
            "2: plugins.cri.registry.mirrors.x.endpoint: registries",
        ),
        (
            'version = 2\n[plugins."io.containerd.grpc.v1.cri"]\nenable_selinux = true\n',
            '3: plugins."io.containerd.grpc.v1.cri".enable_selinux: runtimed has no such setting',
        ),
        (
            'version = 3\n[plugins."io.containerd.cri.v1.runtime"]\ntolerate_missing_hugetlb_controller = false\n',
            '3: plugins."io.containerd.cri.v1.runtime".tolerate_missing_hugetlb_controller: runtimed has no such',
        ),
        (
            'version = 2\n[plugins."io.containerd.gc.v1.scheduler"]\npause_threshold = 0.9\n',
            '3: plugins."io.containerd.gc.v1.scheduler".pause_threshold: gc.pause_percent is a whole number',
        ),
        (
            'version = 2\n[plugins."io.containerd.internal.v1.restart"]\ninterval = "soon"\n',
            "3: plugins.\"io.containerd.internal.v1.restart\".interval: 'soon' is no duration",
        ),
        (
            'version = 2\n[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.x.options]\nCriuPath = "/c"\n',
            '3: plugins."io.containerd.grpc.v1.cri".containerd.runtimes.x.options.CriuPath: of a runtime\'s options',
        ),
        ('version = 2\n[proxy_plugins.x]\ntype = "content"\n', "3: proxy_plugins.x.type: a proxy plugin can only be"),
        ('version = 2\n[timeouts]\n"io.containerd.timeout.task.state" = "9s"\n', '3: timeouts."io.containerd.timeout'),
        ("version = 2\nnew_in_5 = 1\n", "2: new_in_5: runtimed has no such setting"),
    ],
)
def test_what_is_not_taken_over_is_told_of_with_its_line(migrated, text, said):
    _, left = migrated(text)
    assert len(left) == 1
    assert left[0].startswith(said)


@pytest.mark.parametrize(
    "text",
    [
        "",
        'version = 2\nroot = "/var/lib/containerd"\ntemp = ""\nimports = []\n'
        "[grpc]\nmax_recv_message_size = 16777216\n",
        'version = 2\n[plugins."io.containerd.grpc.v1.cri"]\nsandbox_image = "registry.k8s.io/pause:3.6"\n',
        'version = 2\n[plugins."io.containerd.grpc.v1.cri"]\nenable_selinux = false\nstream_server_port = "0"\n',
        'version = 2\n[timeouts]\n"io.containerd.timeout.task.state" = "2s"\n',
    ],
)
def test_what_means_nothing_is_passed_over(migrated, text):
    loaded, left = migrated(text)
    assert (loaded, left) == (config.parse({}), [])


def test_imported_files_come_last(tmp_path):
    (tmp_path / "config.toml").write_text('version = 2\nimports = ["more/*.toml"]\n[debug]\nlevel = "info"\n')
    (tmp_path / "more").mkdir()
    (tmp_path / "more/a.toml").write_text('version = 2\noom_score = 1\n[debug]\nlevel = "warn"\n')
    done = migrate(tmp_path / "config.toml")
    assert done.text == 'version = 1\n\n[log]\nlevel = "warning"\n'
    assert [line.partition(": ")[0] for line in done.left] == [f"{tmp_path}/more/a.toml:2"]


def test_what_cannot_be_read(tmp_path):
    with pytest.raises(NotFound, match="no such file"):
        migrate(tmp_path / "config.toml")
    for text, complaint in (("version = 9\n", "`version` is 9"), ("x = [", "not TOML"),
                            ('version = 2\nimports = ["config.toml"]\n', "imports itself")):  # fmt: skip
        (tmp_path / "config.toml").write_text(text)
        with pytest.raises(InvalidArgument, match=complaint):
            migrate(tmp_path / "config.toml")
