"""``rctl version`` and ``rctl info``: who answers."""

from importlib.metadata import version

import click
from google.protobuf.empty_pb2 import Empty

from runtimed.api import introspection_pb2 as introspection
from runtimed.api import version_pb2
from runtimed.cli.client import Client, Settings, run, service
from runtimed.cli.output import formatted, print_json, print_table, safe, timestamp


@click.command("version")
@formatted
@click.pass_obj
def version_command(settings: Settings) -> int:
    """Show the version of rctl and of the daemon.

    \b
    rctl version
    """
    client_version = version("runtimed")
    if not settings.json:
        print(f"client: {client_version}")

    async def work(client: Client) -> int:
        answer = await client.call(service(version_pb2, "Version").Version, Empty())
        if settings.json:
            server = {"version": answer.version, "revision": answer.revision}
            print_json({"client": {"version": client_version}, "server": server})
        else:
            print(f"server: {safe(answer.version)}" + (f" ({safe(answer.revision)})" if answer.revision else ""))
        return 0

    return run(settings, work)


@click.command("info")
@formatted
@click.pass_obj
def info_command(settings: Settings) -> int:
    """Show the daemon's identity and its plugins.

    \b
    rctl info
    """

    async def work(client: Client) -> int:
        stub = service(introspection, "Introspection")
        server = await client.call(stub.Server, Empty())
        answer = await client.call(stub.Plugins, introspection.PluginsRequest())
        plugins = sorted(answer.plugins, key=lambda plugin: (plugin.type, plugin.id))
        if settings.json:
            print_json(
                {
                    "uuid": server.uuid,
                    "pid": server.pid,
                    "address": str(settings.socket_path),
                    "plugins": [_plugin(plugin) for plugin in plugins],
                }
            )
            return 0
        print(
            f"uuid:    {safe(server.uuid)}\npid:     {server.pid or '-'}\naddress: {safe(str(settings.socket_path))}\n"
        )
        for exported, value in (item for plugin in plugins for item in sorted(plugin.exports.items())):
            if exported.startswith(("oci-runtime.", "advisories.")):
                print(f"{safe(exported.replace('.', ' ', 1))}: {safe(value)}")
        rows = [(p.type, p.id, _shorten(p.init_err.message) or "ok", p.exports.get("root", "")) for p in plugins]
        print_table(("TYPE", "ID", "STATUS", "ROOT"), rows)
        return 0

    return run(settings, work)


@click.command("deprecations", short_help="Show what has been used of which there will be no more.")
@formatted
@click.pass_obj
def deprecations_command(settings: Settings) -> int:
    """Show what has been used of which there will be no more, since the daemon started.

    \b
    rctl deprecations
    """

    async def work(client: Client) -> int:
        seen = (await client.call(service(introspection, "Introspection").Server, Empty())).deprecations
        if settings.json:
            print_json(
                [
                    {"id": one.id, "message": one.message, "last_occurrence": timestamp(one.last_occurrence)}
                    for one in seen
                ]
            )
            return 0
        print_table(
            ("ID", "LAST USED", "WHAT TO DO"),
            [(one.id, timestamp(one.last_occurrence) or "-", one.message) for one in seen],
        )
        return 0

    return run(settings, work)


def _shorten(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:57]}..."


def _plugin(plugin: introspection.Plugin) -> dict[str, object]:
    return {
        "type": plugin.type,
        "id": plugin.id,
        "exports": dict(plugin.exports),
        "capabilities": list(plugin.capabilities),
        "error": plugin.init_err.message or None,
    }
