"""``rctl cri``: pods and containers as a kubelet sees them, by the calls that a kubelet makes."""

import click

from runtimed.cli.lazy import LazyGroup

# Command -> module, as in main.py.
_COMMANDS = {
    "pods": "cri.pods",
    "runp": "cri.making",
    "inspectp": "cri.pods",
    "statsp": "cri.stats",
    "stopp": "cri.pods",
    "rmp": "cri.pods",
    "ps": "cri.containers",
    "create": "cri.making",
    "start": "cri.containers",
    "run": "cri.making",
    "inspect": "cri.containers",
    "logs": "cri.logs",
    "exec": "cri.exec",
    "attach": "cri.exec",
    "port-forward": "cri.forward",
    "stats": "cri.stats",
    "update": "cri.update",
    "checkpoint": "cri.update",
    "stop": "cri.containers",
    "rm": "cri.containers",
    "images": "cri.images",
    "inspecti": "cri.images",
    "pull": "cri.images",
    "rmi": "cri.images",
    "imagefsinfo": "cri.images",
    "events": "cri.node",
    "metrics": "cri.metrics",
    "info": "cri.node",
    "runtime-config": "cri.node",
    "version": "cri.node",
}


@click.group("cri", cls=LazyGroup, lazy=_COMMANDS, short_help="Look at a Kubernetes node, by the kubelet's own API.")
def cri_command() -> None:
    """Look at a Kubernetes node, and mend it, by the calls that the kubelet makes.

    Pods and containers are named by their ID, the beginning of one, or a name as Kubernetes has it: CONTAINER,
    POD/CONTAINER, NAMESPACE/POD. What does not tell them apart is refused. A kubelet that runs makes anew what is
    removed behind its back.

    \b
    rctl cri pods
    rctl cri ps -a
    rctl cri logs -f kube-system/coredns/coredns
    rctl cri exec -it coredns sh
    """
