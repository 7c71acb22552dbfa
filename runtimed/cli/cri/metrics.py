"""``rctl cri metrics``: what a kubelet offers to Prometheus, as the runtime tells it."""

from collections.abc import Iterator

import click

from runtimed.api import cri_pb2 as pb
from runtimed.cli import complete, output
from runtimed.cli.client import Client, Settings, run
from runtimed.cli.cri.calls import RUNTIME, as_json
from runtimed.cli.cri.find import pod_id


@click.command("metrics", short_help="Print the metrics of pods, as Prometheus has them.")
@output.formatted
@click.option("--describe", is_flag=True, help="What there is, instead of values.")
@click.argument("id", metavar="[POD]", required=False, shell_complete=complete.pods)
@click.pass_obj
def metrics_command(settings: Settings, describe: bool, id: str | None) -> int:
    """Print the metrics of pods and their containers, in Prometheus' text format: a value a line.

    \b
    rctl cri metrics --describe
    rctl cri metrics kube-system/coredns | grep memory
    """

    async def work(client: Client) -> int:
        answer = await client.call(RUNTIME.ListMetricDescriptors, pb.ListMetricDescriptorsRequest())
        descriptors = list(answer.descriptors)
        if describe:
            if settings.json:
                output.print_json([as_json(one) for one in descriptors])
            else:
                output.print_table(("NAME", "WHAT", "LABELS"), [
                    (one.name, one.help, ",".join(one.label_keys)) for one in descriptors
                ])  # fmt: skip
            return 0
        wanted = None if id is None else await pod_id(client, id)
        pods = (await client.call(RUNTIME.ListPodSandboxMetrics, pb.ListPodSandboxMetricsRequest())).pod_metrics
        found = [one for one in pods if wanted in {None, one.pod_sandbox_id}]
        if settings.json:
            output.print_json([as_json(one) for one in found])
        else:
            output.print_lines(lines(found, {one.name: list(one.label_keys) for one in descriptors}))
        return 0

    return run(settings, work)


def lines(pods: list[pb.PodSandboxMetrics], keys: dict[str, list[str]]) -> Iterator[str]:
    """Yield a line a value, ``name{key="value",...} value``."""
    for pod in pods:
        for metric in (*pod.metrics, *(one for container in pod.container_metrics for one in container.metrics)):
            labels = zip(keys.get(metric.name, []), metric.label_values, strict=False)
            text = ",".join(f'{key}="{_escaped(value)}"' for key, value in labels)
            yield f"{metric.name}{{{text}}} {metric.value.value}"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
