"""``rctl registry``: what the daemon would do to reach a registry, and what refers to an image there."""

import click

from runtimed.api import registry_pb2 as registry
from runtimed.cli.client import Client, Settings, run, service
from runtimed.cli.output import formatted, print_json, print_table, safe, size


@click.group("registry")
def registry_command() -> None:
    """Look at registries as the daemon sees them.

    \b
    rctl registry explain busybox
    rctl registry referrers ghcr.io/someone/app:1.0
    """


@registry_command.command("explain", short_help="Show which hosts would be asked for REF.")
@formatted
@click.argument("reference", metavar="REF")
@click.pass_obj
def explain(settings: Settings, reference: str) -> int:
    """Show which hosts would be asked for REF, in order, and where that was said.

    Nobody is asked, and no secret is shown.

    \b
    rctl registry explain ghcr.io/someone/app:1.0
    """

    async def work(client: Client) -> int:
        request = registry.ExplainRequest(reference=reference)
        answer = await client.call(service(registry, "Registry").Explain, request)
        if settings.json:
            print_json({"reference": answer.reference, "hosts": [_host(one) for one in answer.hosts]})
            return 0
        for number, one in enumerate(answer.hosts, 1):
            print(safe(f"{number}. {one.url}"))
            for name, value in _details(one):
                print(safe(f"   {name + ':':14}{value}"))
        return 0

    return run(settings, work)


@registry_command.command("referrers", short_help="List the artifacts that refer to REF.")
@formatted
@click.option("--type", "artifact_type", default="", metavar="TYPE", help="Of that artifact type only.")
@click.argument("reference", metavar="REF")
@click.pass_obj
def referrers(settings: Settings, artifact_type: str, reference: str) -> int:
    """List the artifacts in the registry that refer to REF: signatures, bills of materials.

    \b
    rctl registry referrers --type application/spdx+json ghcr.io/someone/app:1.0
    """

    async def work(client: Client) -> int:
        request = registry.ReferrersRequest(reference=reference, artifact_type=artifact_type)
        answer = await client.call(service(registry, "Registry").Referrers, request)
        if settings.json:
            print_json({"digest": answer.digest, "referrers": [_referrer(one) for one in answer.referrers]})
            return 0
        rows = [(one.digest, one.artifact_type or one.media_type, size(one.size)) for one in answer.referrers]
        print_table(("DIGEST", "TYPE", "SIZE"), rows)
        return 0

    return run(settings, work)


def _details(host: registry.RegistryHost) -> list[tuple[str, str]]:
    details = [
        ("configured", host.source),
        ("used to", ", ".join(host.capabilities) or "nothing"),
        ("credentials", host.credentials or "none"),
        ("proxy", host.proxy or "none"),
        ("trusts", ", ".join(["the system's authorities", *host.authorities])),
    ]
    if host.skip_verify:
        details[-1] = ("trusts", "anybody (skip_verify)")
    if host.url.startswith("http://"):
        details[-1] = ("trusts", "the network (plain http)")
    if host.client_certificates:
        details.append(("certificates", ", ".join(host.client_certificates)))
    if host.headers:
        details.append(("headers", ", ".join(host.headers)))
    return details


def _host(host: registry.RegistryHost) -> dict[str, object]:
    return {
        "url": host.url,
        "source": host.source,
        "capabilities": list(host.capabilities),
        "credentials": host.credentials or None,
        "proxy": host.proxy or None,
        "skip_verify": host.skip_verify,
        "authorities": list(host.authorities),
        "client_certificates": list(host.client_certificates),
        "headers": list(host.headers),
    }


def _referrer(one: registry.Referrer) -> dict[str, object]:
    return {
        "digest": one.digest,
        "media_type": one.media_type,
        "artifact_type": one.artifact_type or None,
        "size": one.size,
        "annotations": dict(one.annotations),
    }
